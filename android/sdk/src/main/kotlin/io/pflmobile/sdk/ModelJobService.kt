package io.pflmobile.sdk

import android.app.job.JobParameters
import android.app.job.JobService
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.personal.PersonalModel
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.async
import kotlinx.coroutines.cancel
import kotlinx.coroutines.delay
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.launch
import kotlinx.coroutines.supervisorScope
import kotlinx.coroutines.withContext
import java.util.concurrent.ConcurrentHashMap

/** What jobs with a model have in common; an app does not use it. */
public abstract class ModelJobService internal constructor() : JobService() {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Default)
    private val running = ConcurrentHashMap<Int, Job>()

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

    override fun onDestroy() {
        scope.cancel()
        super.onDestroy()
    }

    /** When this was last done with the model, in seconds since 1970. */
    internal abstract suspend fun last(model: PersonalModel): Double?

    /** Does it; whether the system should try again before the next interval. */
    internal abstract suspend fun work(
        model: PersonalModel,
        name: String,
        params: JobParameters,
    ): Boolean

    /** Whether the system should try again before the next interval. */
    private suspend fun run(params: JobParameters): Boolean {
        val name = JobExtras.nameOf(params.extras) ?: return false
        val constraints = JobExtras.constraintsOf(params.extras)
        val openWith = PersonalizationScheduler.openWith
        if (openWith == null && JobExtras.isOutdated(this, params.extras)) return false
        if (constraints.unmet(this).isNotEmpty()) return true
        return try {
            val model = openWith?.invoke(this, name) ?: PersonalModel.open(this, name, JobExtras.optionsOf(params.extras))
            try {
                if (Jobs.tooSoon(last(model), constraints)) return false
                whileMet(constraints) { work(model, name, params) }
            } finally {
                withContext(NonCancellable) { model.close() }
            }
        } catch (_: PflException) {
            false // the app's next opening tells it
        }
    }

    /** What [step] gives, as long as the constraints hold; true where they ceased. */
    private suspend fun whileMet(
        constraints: PersonalizationConstraints,
        step: suspend () -> Boolean,
    ): Boolean =
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
                true
            } finally {
                watch.cancel()
            }
        }

    internal companion object {
        /** Milliseconds between looks at the constraints. */
        @Volatile var watchEveryMs = 2_000L
    }
}
