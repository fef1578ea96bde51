package io.pflmobile.sdk

import android.app.job.JobParameters
import io.pflmobile.core.personal.PersonalModel
import io.pflmobile.core.personal.RoundsResult

/** What the system starts for [RoundsScheduler]; an app does not use it. */
public class RoundsJobService : ModelJobService() {
    override suspend fun last(model: PersonalModel): Double? = model.status().rounds?.asked

    override suspend fun work(
        model: PersonalModel,
        name: String,
        params: JobParameters,
    ): Boolean {
        val federation = RoundsScheduler.federationOf(this, params.extras, name)
        return model.takePart(federation, deviceFacts(this)) is RoundsResult.Unreachable
    }
}
