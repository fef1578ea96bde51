package io.pflmobile.sdk

import android.app.job.JobInfo
import android.app.job.JobScheduler
import android.content.ComponentName
import android.content.Context
import android.os.PersistableBundle
import io.pflmobile.core.bundle.VerificationKey
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.ExecuTorchEngine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.local.Retention
import io.pflmobile.core.personal.LastTraining
import io.pflmobile.core.personal.ModelOptions
import io.pflmobile.core.personal.PersonalModel
import java.util.concurrent.TimeUnit

/** Lets the system start training when the phone has time for it. The schedule outlives the process and a restart of the phone. */
public object PersonalizationScheduler {
    /**
     * How a job opens a model, by the name that it was scheduled with. By default as it was opened when it was scheduled. An app with an
     * engine of its own sets this in `Application.onCreate`.
     */
    @Volatile public var openWith: (suspend (Context, String) -> PersonalModel)? = null

    /**
     * Trains [model] again and again, at most once in the interval of the constraints. The same schedule goes on; another one of the same
     * model is replaced. Call it at each start of the app: after an update of the app the old schedule does nothing.
     *
     * @throws ConfigException the model has an engine of the app's own and [openWith] is not set
     * @throws StateException the system refuses the job, or the model was not opened by a context
     */
    public fun schedule(
        context: Context,
        model: PersonalModel,
        constraints: PersonalizationConstraints = PersonalizationConstraints(),
    ) {
        val name = Openings.nameOf(model)
        val extras = packed(context, name, model.options, constraints)
        val scheduler = schedulerOf(context)
        val before = find(scheduler, name)
        // scheduling anew would stop a job that runs, and begin a new interval
        if (before != null && values(before.extras) == values(extras)) return
        val id = before?.id ?: freeId(scheduler, name)
        val job =
            JobInfo
                .Builder(id, ComponentName(context, PersonalizationJobService::class.java))
                .setExtras(extras)
                .setPeriodic(TimeUnit.HOURS.toMillis(constraints.everyHours.toLong()))
                .setRequiresCharging(constraints.charging)
                .setRequiresDeviceIdle(constraints.idle)
                .setRequiresBatteryNotLow(constraints.minBatteryPercent > 0)
                .setRequiredNetworkType(if (constraints.unmetered) JobInfo.NETWORK_TYPE_UNMETERED else JobInfo.NETWORK_TYPE_NONE)
                .setPersisted(true)
                .build()
        if (scheduler.schedule(job) != JobScheduler.RESULT_SUCCESS) {
            throw StateException("the system refuses the job of '$name'", "check that the app schedules no more than 100 jobs")
        }
    }

    /** Ends the schedule of a model; training of it that runs as a job ends within one step. */
    public fun cancel(
        context: Context,
        model: PersonalModel,
    ) {
        val scheduler = schedulerOf(context)
        find(scheduler, Openings.nameOf(model))?.let { scheduler.cancel(it.id) }
    }

    /** For what the next training of a model waits; empty where it only waits for the system. */
    public suspend fun whyWaiting(
        context: Context,
        model: PersonalModel,
    ): Set<Waiting> {
        val status = model.status()
        if (status.training) return setOf(Waiting.RUNNING)
        val job = find(schedulerOf(context), Openings.nameOf(model)) ?: return setOf(Waiting.NOT_SCHEDULED)
        val constraints = constraintsOf(job.extras)
        return buildSet {
            if (status.paused) add(Waiting.PAUSED)
            if (tooSoon(status.last, constraints)) add(Waiting.INTERVAL)
            addAll(constraints.unmet(context))
        }
    }

    /** Whether the last training was less than the interval ago. */
    internal fun tooSoon(
        last: LastTraining?,
        constraints: PersonalizationConstraints,
    ): Boolean {
        val ago = System.currentTimeMillis() / 1000.0 - (last ?: return false).at
        return ago in 0.0..TimeUnit.HOURS.toSeconds(constraints.everyHours.toLong()).toDouble()
    }

    /** Whether the app was updated since: its options may be others now. */
    internal fun isOutdated(
        context: Context,
        extras: PersistableBundle,
    ): Boolean = extras.getLong(UPDATED) != updated(context)

    private fun updated(context: Context) = context.packageManager.getPackageInfo(context.packageName, 0).lastUpdateTime

    /** What can be compared. */
    @Suppress("DEPRECATION") // the typed ones are of API 33
    private fun values(extras: PersistableBundle): Map<String, Any?> =
        extras.keySet().associateWith { name -> extras.get(name).let { if (it is Array<*>) it.toList() else it } }

    private fun schedulerOf(context: Context): JobScheduler =
        context.getSystemService(JobScheduler::class.java) ?: throw StateException("there is no JobScheduler", "call it in an app")

    private fun find(
        scheduler: JobScheduler,
        name: String,
    ): JobInfo? =
        scheduler.allPendingJobs.find {
            it.service.className == PersonalizationJobService::class.java.name &&
                nameOf(it.extras) == name
        }

    /** The app has jobs of its own, so the ids are far from where people count. */
    private fun freeId(
        scheduler: JobScheduler,
        name: String,
    ): Int {
        val taken = scheduler.allPendingJobs.mapTo(HashSet()) { it.id }
        return generateSequence(FIRST_ID + (name.hashCode() and 0xffff)) { it + 1 }.first { it !in taken }
    }

    internal fun nameOf(extras: PersistableBundle): String? = extras.getString(NAME)

    internal fun constraintsOf(extras: PersistableBundle) =
        PersonalizationConstraints(
            extras.getBoolean("charging"),
            extras.getBoolean("idle"),
            extras.getBoolean("unmetered"),
            extras.getInt("battery"),
            extras.getBoolean("cool"),
            extras.getInt("hours"),
        )

    internal fun optionsOf(extras: PersistableBundle): ModelOptions {
        fun long(name: String) = if (extras.containsKey(name)) extras.getLong(name) else null
        val byName = ENGINES.associateBy { it.name }
        return ModelOptions(
            extras.getString("key")?.let(VerificationKey::parse),
            extras.getBoolean("trusted"),
            extras.getStringArray("engines").orEmpty().mapNotNull { byName[it] },
            extras.getInt("threads"),
            Retention(
                long("max_examples")?.toInt(),
                if (extras.containsKey("max_age")) extras.getDouble("max_age") else null,
                long("max_bytes"),
            ),
            extras.getStringArray("blocked").orEmpty().toSet(),
            extras.getDouble("test"),
            extras.getLong("checkpoint_every"),
            extras.getLong("engine_idle_ms"),
            extras.getBoolean("discard_other_state"),
        )
    }

    private fun packed(
        context: Context,
        name: String,
        options: ModelOptions,
        constraints: PersonalizationConstraints,
    ): PersistableBundle {
        val own = options.engines.filterNot { it in ENGINES }
        if (own.isNotEmpty() && openWith == null) {
            throw ConfigException(
                "a job in a new process cannot make the engine '${own.first().name}'",
                "set PersonalizationScheduler.openWith in Application.onCreate",
            )
        }
        return PersistableBundle().apply {
            putString(NAME, name)
            putLong(UPDATED, updated(context))
            putBoolean("charging", constraints.charging)
            putBoolean("idle", constraints.idle)
            putBoolean("unmetered", constraints.unmetered)
            putInt("battery", constraints.minBatteryPercent)
            putBoolean("cool", constraints.cool)
            putInt("hours", constraints.everyHours)
            options.key?.let { putString("key", it.hex) }
            putBoolean("trusted", options.trusted)
            putStringArray("engines", options.engines.map { it.name }.toTypedArray())
            putInt("threads", options.threads)
            options.retention.maxExamples?.let { putLong("max_examples", it.toLong()) }
            options.retention.maxAge?.let { putDouble("max_age", it) }
            options.retention.maxBytes?.let { putLong("max_bytes", it) }
            putStringArray("blocked", options.blockedWords.toTypedArray())
            putDouble("test", options.test)
            putLong("checkpoint_every", options.checkpointEvery)
            putLong("engine_idle_ms", options.engineIdleMs)
            putBoolean("discard_other_state", options.discardOtherState)
        }
    }

    private const val NAME = "name"
    private const val UPDATED = "updated"
    private const val FIRST_ID = 0x70666c00
    private val ENGINES: List<Engine> = listOf(ExecuTorchEngine, OnnxRuntimeEngine)
}
