package io.pflmobile.sdk

import android.app.job.JobParameters
import android.app.job.JobService
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.personal.PersonalModel
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.async
import kotlinx.coroutines.cancel
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.delay
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.launch
import kotlinx.coroutines.supervisorScope
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withContext
import java.util.concurrent.ConcurrentHashMap

/** What jobs with a model have in common; an app does not use it. */
public abstract class ModelJobService internal constructor() : JobService() {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Default)
    private val running = ConcurrentHashMap<Int, Job>()

    /** Begins the job, in a coroutine of its own; true, as it goes on after this returns. */
    override fun onStartJob(params: JobParameters): Boolean {
        running[params.jobId] =
            scope.launch {
                val again = run(params)
                running.remove(params.jobId)
                jobFinished(params, again)
            }
        return true
    }

    /** The system takes the phone back; training goes on from its checkpoint another time. */
    override fun onStopJob(params: JobParameters): Boolean {
        running.remove(params.jobId)?.cancel()
        return true
    }

    /** Stops what runs within one step. */
    override fun onDestroy() {
        scope.cancel()
        super.onDestroy()
    }

    /** Under which name the outcome of such jobs is kept. */
    internal abstract val kind: String

    /** When this was last done with the model, in seconds since 1970; null where it must not wait for the interval. */
    internal abstract suspend fun last(
        model: PersonalModel,
        params: JobParameters,
    ): Double?

    /** Does it. */
    internal abstract suspend fun work(
        model: PersonalModel,
        name: String,
        params: JobParameters,
    ): Done

    /**
     * How a job ended.
     *
     * @property again whether the system should try again before the next interval
     */
    internal class Done(
        val code: String,
        val again: Boolean = false,
        val failed: Boolean = false,
    ) {
        companion object {
            fun failed(
                error: Throwable,
                again: Boolean = false,
            ) = Done((error as? PflException)?.code ?: error.javaClass.name, again, failed = true)

            /** Of something that could not be done, or of a training that the app itself began, after which the system may try again. */
            suspend fun failedOrBusy(
                model: PersonalModel,
                error: PflException,
            ) = if (error is StateException && model.status().training) Done("busy", again = true) else failed(error)
        }
    }

    /** Whether the system should try again before the next interval. */
    private suspend fun run(params: JobParameters): Boolean {
        val name = JobExtras.nameOf(params.extras) ?: return false
        val began = seconds()
        val done =
            try {
                done(name, params) ?: return false
            } catch (error: Exception) {
                // whatever it is: the app's process must not end by a job that nobody sees
                currentCoroutineContext().ensureActive()
                Done.failed(error)
            }
        if (done !== UNMET) JobNotes.of(this, name).ended(kind, JobOutcome(began, seconds(), done.code, done.failed))
        return done.again
    }

    /** Null where there is nothing to do. */
    private suspend fun done(
        name: String,
        params: JobParameters,
    ): Done? {
        val constraints = JobExtras.constraintsOf(params.extras)
        val openWith = PersonalizationScheduler.openWith
        if (openWith == null && JobExtras.isOutdated(this, params.extras)) return null
        if (constraints.unmet(this).isNotEmpty()) return UNMET
        val model = openWith?.invoke(this, name) ?: PersonalModel.open(this, name, JobExtras.optionsOf(this, params.extras))
        try {
            val last = last(model, params)
            if (Jobs.tooSoon(JobNotes.of(this, name).outcome(kind)?.since(last) ?: last, constraints)) return null
            // the system may start both jobs of a model at once
            return whileMet(constraints) { TURNS.computeIfAbsent(name) { Mutex() }.withLock { work(model, name, params) } }
        } finally {
            withContext(NonCancellable) { model.close() }
        }
    }

    /** What [step] gives, as long as the constraints hold. */
    private suspend fun whileMet(
        constraints: PersonalizationConstraints,
        step: suspend () -> Done,
    ): Done =
        supervisorScope {
            val work = async { step() }
            val watch =
                launch {
                    while (true) {
                        delay(watchEveryMs)
                        if (constraints.unmet(this@ModelJobService).isNotEmpty()) work.cancel()
                    }
                }
            try {
                work.await()
            } catch (_: CancellationException) {
                ensureActive() // else the system stopped the job
                UNMET
            } finally {
                watch.cancel()
            }
        }

    internal companion object {
        /** Milliseconds between looks at the constraints. */
        @Volatile var watchEveryMs = 2_000L

        /** The constraints do not hold, or ceased to. */
        private val UNMET = Done("stopped", again = true)

        /** Jobs of one model take turns. */
        private val TURNS = ConcurrentHashMap<String, Mutex>()

        private fun seconds() = System.currentTimeMillis() / 1000.0
    }
}
