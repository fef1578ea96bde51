package io.pflmobile.sdk

import android.app.job.JobParameters
import io.pflmobile.core.personal.PersonalModel

/** What the system starts for [PersonalizationScheduler]; an app does not use it. */
public class PersonalizationJobService : ModelJobService() {
    override suspend fun last(model: PersonalModel): Double? = model.status().last?.at

    override suspend fun work(
        model: PersonalModel,
        name: String,
        params: JobParameters,
    ): Boolean {
        model.personalize()
        return false
    }
}
