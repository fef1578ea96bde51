package io.pflmobile.sdk

import android.app.job.JobParameters
import io.pflmobile.core.personal.LeaveResult
import io.pflmobile.core.personal.PersonalModel
import io.pflmobile.core.personal.RoundsResult

/** What the system starts for [RoundsScheduler]; an app does not use it. */
public class RoundsJobService : ModelJobService() {
    override val kind: String get() = JobNotes.ROUNDS

    override suspend fun last(
        model: PersonalModel,
        params: JobParameters,
    ): Double? = if (RoundsScheduler.isLeaving(params.extras)) null else model.status().rounds?.asked

    override suspend fun work(
        model: PersonalModel,
        name: String,
        params: JobParameters,
    ): Done {
        if (RoundsScheduler.isLeaving(params.extras)) return leave(model, name, params)
        val federation = RoundsScheduler.federationOf(this, params.extras, name) ?: return Done("not-taking-part")
        return when (val result = model.takePart(federation, deviceFacts(this))) {
            is RoundsResult.TookPart -> Done("took-part")
            is RoundsResult.NoRound -> Done("no-round")
            is RoundsResult.NotProtected -> Done("not-protected")
            is RoundsResult.NotEnoughExamples -> Done("not-enough-examples")
            RoundsResult.Paused -> Done("paused")
            RoundsResult.Cancelled -> Done("cancelled")
            is RoundsResult.Unreachable -> Done.failed(result.error, again = true)
            is RoundsResult.Refused -> Done.failed(result.error)
            is RoundsResult.Failed -> Done.failedOrBusy(model, result.error)
        }
    }

    private suspend fun leave(
        model: PersonalModel,
        name: String,
        params: JobParameters,
    ): Done =
        when (val result = model.leave(RoundsScheduler.federationToLeave(this, params.extras, name))) {
            LeaveResult.Left, LeaveResult.NotThere -> Done("left").also { RoundsScheduler.jobs.cancel(this, name) }
            is LeaveResult.Unreachable -> Done.failed(result.error, again = true)
            is LeaveResult.Failed -> Done.failed(result.error)
        }
}
