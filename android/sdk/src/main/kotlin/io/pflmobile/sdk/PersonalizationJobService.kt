package io.pflmobile.sdk

import android.app.job.JobParameters
import io.pflmobile.core.personal.PersonalModel
import io.pflmobile.core.personal.PersonalizeResult

/** What the system starts for [PersonalizationScheduler]; an app does not use it. */
public class PersonalizationJobService : ModelJobService() {
    override val kind: String get() = JobNotes.PERSONALIZATION

    override suspend fun last(
        model: PersonalModel,
        params: JobParameters,
    ): Double? = model.status().last?.at

    override suspend fun work(
        model: PersonalModel,
        name: String,
        params: JobParameters,
    ): Done =
        when (val result = model.personalize()) {
            is PersonalizeResult.Adopted -> Done("adopted")
            is PersonalizeResult.Kept -> Done("kept")
            is PersonalizeResult.NotEnoughExamples -> Done("not-enough-examples")
            PersonalizeResult.Paused -> Done("paused")
            PersonalizeResult.Cancelled -> Done("cancelled")
            is PersonalizeResult.Failed -> Done.failedOrBusy(model, result.error)
        }
}
