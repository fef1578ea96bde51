package io.pflmobile.sdk

import android.app.job.JobParameters
import android.app.job.JobService
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.personal.PersonalModel
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import java.util.concurrent.ConcurrentHashMap

/** What the system starts for [PersonalizationScheduler]; an app does not use it. */
public class PersonalizationJobService : JobService() {
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

    /** Whether the system should try again before the next interval. */
    private suspend fun run(params: JobParameters): Boolean {
        val name = PersonalizationScheduler.nameOf(params.extras) ?: return false
        val constraints = PersonalizationScheduler.constraintsOf(params.extras)
        if (PersonalizationScheduler.openWith == null && PersonalizationScheduler.isOutdated(this, params.extras)) return false
        if (constraints.unmet(this).isNotEmpty()) return true
        return try {
            val model =
                PersonalizationScheduler.openWith?.invoke(this, name)
                    ?: PersonalModel.open(this, name, PersonalizationScheduler.optionsOf(params.extras))
            try {
                if (PersonalizationScheduler.tooSoon(model.status().last, constraints)) return false
                whileMet(constraints) { model.personalize() }
            } finally {
                withContext(NonCancellable) { model.close() }
            }
        } catch (_: PflException) {
            false // the app's next opening tells it
        }
    }

    /** Runs [step] as long as the constraints hold; whether it was stopped. */
    private suspend fun whileMet(
        constraints: PersonalizationConstraints,
        step: suspend () -> Unit,
    ): Boolean =
        coroutineScope {
            val work = launch { step() }
            val watch =
                launch {
                    while (true) {
                        delay(watchEveryMs)
                        if (constraints.unmet(this@PersonalizationJobService).isNotEmpty()) work.cancel()
                    }
                }
            work.join()
            watch.cancel()
            work.isCancelled
        }

    internal companion object {
        /** Milliseconds between looks at the constraints. */
        @Volatile var watchEveryMs = 2_000L
    }
}
