package io.pflmobile.sdk

import android.app.job.JobInfo
import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.net.ConnectivityManager
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import io.pflmobile.core.device.DeviceFacts
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.personal.ModelStatus

/**
 * When a phone may learn by itself. All of it is checked when a job starts and while it runs.
 *
 * @property charging only while it charges
 * @property idle only while nobody uses it
 * @property unmetered only on a network that costs nothing; learning itself needs no network
 * @property minBatteryPercent not with less in the battery
 * @property cool not while the system reports that the phone is hot
 * @property everyHours at most once in so many hours
 * @throws ConfigException a value makes no sense
 */
public data class PersonalizationConstraints(
    val charging: Boolean = true,
    val idle: Boolean = true,
    val unmetered: Boolean = false,
    val minBatteryPercent: Int = 30,
    val cool: Boolean = true,
    val everyHours: Int = 24,
) {
    init {
        if (minBatteryPercent !in 0..100) throw ConfigException("$minBatteryPercent % in the battery", "give 0 to 100")
        if (everyHours < 1) throw ConfigException("every $everyHours hours", "give 1 or more")
    }

    /** Those that do not hold now. */
    internal fun unmet(context: Context): Set<Waiting> =
        buildSet {
            val battery = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
            if (charging && (battery?.getIntExtra(BatteryManager.EXTRA_PLUGGED, 0) ?: 0) == 0) add(Waiting.CHARGING)
            if (minBatteryPercent > 0 && percent(battery) < minBatteryPercent) add(Waiting.BATTERY)
            val power = context.getSystemService(PowerManager::class.java)
            if (idle && power?.isInteractive == true) add(Waiting.IDLE)
            if (cool && Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q && power != null) {
                if (power.currentThermalStatus >= PowerManager.THERMAL_STATUS_MODERATE) add(Waiting.THERMAL)
            }
            if (unmetered) {
                val network = context.getSystemService(ConnectivityManager::class.java)
                if (network?.activeNetwork == null || network.isActiveNetworkMetered) add(Waiting.UNMETERED)
            }
        }

    /** What is left in the battery; full where the phone does not say. */
    private fun percent(battery: Intent?): Int {
        val level = battery?.getIntExtra(BatteryManager.EXTRA_LEVEL, -1) ?: -1
        val scale = battery?.getIntExtra(BatteryManager.EXTRA_SCALE, -1) ?: -1
        return if (level < 0 || scale <= 0) 100 else 100 * level / scale
    }
}

/**
 * For what a job of a model waits.
 *
 * @param last when it was done last, in seconds since 1970
 * @param outcome of the last job
 */
internal fun waiting(
    context: Context,
    status: ModelStatus,
    job: JobInfo?,
    last: Double?,
    outcome: JobOutcome?,
): Set<Waiting> {
    if (status.training) return setOf(Waiting.RUNNING)
    val constraints = JobExtras.constraintsOf((job ?: return setOf(Waiting.NOT_SCHEDULED)).extras)
    return buildSet {
        if (status.paused) add(Waiting.PAUSED)
        if (Jobs.tooSoon(outcome?.since(last) ?: last, constraints)) add(Waiting.INTERVAL)
        if (outcome?.failed == true && (last == null || last < outcome.began)) add(Waiting.FAILED)
        addAll(constraints.unmet(context))
    }
}

/** What a phone tells an aggregator of itself now, so that it is asked only when it can; for [io.pflmobile.core.personal.PersonalModel.takePart]. */
public fun deviceFacts(context: Context): DeviceFacts {
    val unmet = PersonalizationConstraints(unmetered = true, minBatteryPercent = 0).unmet(context)
    return DeviceFacts(
        "android-${Build.VERSION.SDK_INT}",
        idle = Waiting.IDLE !in unmet,
        charging = Waiting.CHARGING !in unmet,
        unmetered = Waiting.UNMETERED !in unmet,
        freeBytes = context.noBackupFilesDir.usableSpace,
    )
}

/** For what the next training or round of a phone waits. */
public enum class Waiting {
    /** Nobody scheduled it. */
    NOT_SCHEDULED,

    /** It is under way. */
    RUNNING,

    /** The user paused learning. */
    PAUSED,

    /** The last one was not long enough ago. */
    INTERVAL,

    /** The phone does not charge. */
    CHARGING,

    /** The phone is in use. */
    IDLE,

    /** There is no network that costs nothing. */
    UNMETERED,

    /** There is too little in the battery. */
    BATTERY,

    /** The phone is hot. */
    THERMAL,

    /** The last job failed, and nothing was done since; the scheduler's `lastJob` says how. The next one tries again. */
    FAILED,
}
