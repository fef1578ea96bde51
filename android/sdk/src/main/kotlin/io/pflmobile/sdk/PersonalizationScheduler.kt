package io.pflmobile.sdk

import android.app.job.JobInfo
import android.content.Context
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.personal.PersonalModel
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/**
 * Lets the system start training when the phone has time for it. The schedule outlives the process and a restart of the phone.
 *
 * Jobs run in the app's main process. One process at a time opens a model: an app that opens it in another one (`android:process`) keeps
 * its jobs from it, and each of them fails.
 */
public object PersonalizationScheduler {
    private const val FIRST_ID = 0x70666c00
    internal val jobs = Jobs(PersonalizationJobService::class.java, FIRST_ID)

    /**
     * How a job opens a model, by the name that it was scheduled with; for [RoundsScheduler] too. By default as it was opened when it was
     * scheduled. An app with an engine of its own sets this in `Application.onCreate`.
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
        val network = if (constraints.unmetered) JobInfo.NETWORK_TYPE_UNMETERED else JobInfo.NETWORK_TYPE_NONE
        jobs.put(context, name, constraints, network, JobExtras.packed(context, name, model.options, constraints))
    }

    /** Ends the schedule of a model; training of it that runs as a job ends within one step. */
    public fun cancel(
        context: Context,
        model: PersonalModel,
    ) {
        jobs.cancel(context, Openings.nameOf(model))
    }

    /** For what the next training of a model waits; empty where it only waits for the system. */
    public suspend fun whyWaiting(
        context: Context,
        model: PersonalModel,
    ): Set<Waiting> {
        val status = model.status()
        val name = Openings.nameOf(model)
        return waiting(context, status, jobs.find(context, name), status.last?.at, lastJob(context, model))
    }

    /** How the last job of a model ended; null before the first, and after everything was erased. */
    public suspend fun lastJob(
        context: Context,
        model: PersonalModel,
    ): JobOutcome? = withContext(Dispatchers.IO) { JobNotes.of(context, Openings.nameOf(model)).outcome(JobNotes.PERSONALIZATION) }
}
