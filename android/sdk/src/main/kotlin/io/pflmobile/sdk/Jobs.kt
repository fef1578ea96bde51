package io.pflmobile.sdk

import android.app.job.JobInfo
import android.app.job.JobScheduler
import android.app.job.JobService
import android.content.ComponentName
import android.content.Context
import android.os.PersistableBundle
import io.pflmobile.core.errors.StateException
import java.util.concurrent.TimeUnit

/**
 * The system's jobs of one service, one for each model.
 *
 * @param firstId the app has jobs of its own, so the ids are far from where people count
 */
internal class Jobs(
    private val service: Class<out JobService>,
    private val firstId: Int,
) {
    /** Puts a job in the place of the one of this model; the same one goes on, as scheduling anew would stop it and begin a new interval. */
    fun put(
        context: Context,
        name: String,
        constraints: PersonalizationConstraints,
        network: Int,
        extras: PersistableBundle,
    ) {
        val scheduler = schedulerOf(context)
        val before = find(scheduler, name)
        if (before != null && values(before.extras) == values(extras)) return
        val id = before?.id ?: freeId(scheduler, name)
        val job =
            JobInfo
                .Builder(id, ComponentName(context, service))
                .setExtras(extras)
                .setPeriodic(TimeUnit.HOURS.toMillis(constraints.everyHours.toLong()))
                .setRequiresCharging(constraints.charging)
                .setRequiresDeviceIdle(constraints.idle)
                .setRequiresBatteryNotLow(constraints.minBatteryPercent > 0)
                .setRequiredNetworkType(network)
                .setPersisted(true)
                .build()
        if (scheduler.schedule(job) != JobScheduler.RESULT_SUCCESS) {
            throw StateException("the system refuses the job of '$name'", "check that the app schedules no more than 100 jobs")
        }
    }

    fun find(
        context: Context,
        name: String,
    ): JobInfo? = find(schedulerOf(context), name)

    fun cancel(
        context: Context,
        name: String,
    ) {
        val scheduler = schedulerOf(context)
        find(scheduler, name)?.let { scheduler.cancel(it.id) }
    }

    private fun find(
        scheduler: JobScheduler,
        name: String,
    ): JobInfo? = scheduler.allPendingJobs.find { it.service.className == service.name && JobExtras.nameOf(it.extras) == name }

    private fun freeId(
        scheduler: JobScheduler,
        name: String,
    ): Int {
        val taken = scheduler.allPendingJobs.mapTo(HashSet()) { it.id }
        return generateSequence(firstId + (name.hashCode() and 0xffff)) { it + 1 }.first { it !in taken }
    }

    /** What can be compared. */
    @Suppress("DEPRECATION") // the typed ones are of API 33
    private fun values(extras: PersistableBundle): Map<String, Any?> =
        extras.keySet().associateWith { name -> extras.get(name).let { if (it is Array<*>) it.toList() else it } }

    private fun schedulerOf(context: Context): JobScheduler =
        context.getSystemService(JobScheduler::class.java) ?: throw StateException("there is no JobScheduler", "call it in an app")

    companion object {
        /**
         * Whether something was done less than half of the interval ago. The system sees to the interval, and begins a job somewhere in it:
         * with the whole of it, a job that comes a minute earlier than the day before would leave its day out. A clock that was set back
         * does not keep it waiting.
         */
        fun tooSoon(
            last: Double?,
            constraints: PersonalizationConstraints,
        ): Boolean {
            val ago = System.currentTimeMillis() / 1000.0 - (last ?: return false)
            return ago in 0.0..TimeUnit.HOURS.toSeconds(constraints.everyHours.toLong()) / 2.0
        }
    }
}
