package io.pflmobile.keyboard.model

import android.content.Context
import io.pflmobile.core.local.Payload
import io.pflmobile.core.personal.PersonalModel
import io.pflmobile.core.personal.PersonalizeResult
import io.pflmobile.keyboard.R
import io.pflmobile.sdk.PersonalizationScheduler
import io.pflmobile.sdk.Waiting
import io.pflmobile.sdk.open

/** The model of the app's assets, which learns by itself while the phone charges and nobody uses it. */
internal class SdkAssistant private constructor(
    private val context: Context,
    private val model: PersonalModel,
) : Assistant {
    override suspend fun suggest(
        text: String,
        count: Int,
    ): List<String> = model.suggest(text, count).map { it.word }

    override suspend fun ownWords(): List<String> = model.learnedWords()

    override suspend fun remember(text: String) {
        model.remember(text)
    }

    override suspend fun standing(): Standing {
        val status = model.status()
        return Standing(
            result = status.last?.let { Standing.Result(it.before[RIGHT] ?: 0.0, it.after[RIGHT] ?: 0.0, it.adopted) },
            words = ownWords(),
            examples =
                model.examples(NEWEST).reversed().mapNotNull { kept ->
                    (kept.payload as? Payload.Text)?.let { Standing.Kept(kept.id, it.text) }
                },
            exampleCount = status.examples,
            waits = PersonalizationScheduler.whyWaiting(context, model).map { context.getString(WAITS.getValue(it)) },
            paused = status.paused,
        )
    }

    override suspend fun train(progress: (Int) -> Unit) {
        val result = model.personalize { progress(it.step.toInt()) }
        if (result is PersonalizeResult.Failed) throw result.error
    }

    override suspend fun forgetWord(word: String) {
        model.forgetWord(word)
    }

    override suspend fun forgetExample(id: Long) {
        model.forgetExample(id)
    }

    override suspend fun pause(paused: Boolean) {
        if (paused) model.pause() else model.resume()
    }

    override suspend fun revert() {
        model.revert(SHIPPED)
    }

    override suspend fun eraseEverything() {
        model.eraseEverything()
    }

    companion object {
        private const val BUNDLE = "keyboard.pflb"

        /** The share of next words that are the model's first. */
        private const val RIGHT = "top1"
        private const val NEWEST = 20
        private const val SHIPPED = 0
        private val WAITS =
            mapOf(
                Waiting.NOT_SCHEDULED to R.string.waits_schedule,
                Waiting.RUNNING to R.string.waits_running,
                Waiting.PAUSED to R.string.waits_paused,
                Waiting.INTERVAL to R.string.waits_interval,
                Waiting.CHARGING to R.string.waits_charging,
                Waiting.IDLE to R.string.waits_idle,
                Waiting.UNMETERED to R.string.waits_unmetered,
                Waiting.BATTERY to R.string.waits_battery,
                Waiting.THERMAL to R.string.waits_thermal,
            )

        suspend fun open(context: Context): Assistant {
            val model = PersonalModel.open(context, BUNDLE)
            PersonalizationScheduler.schedule(context, model)
            return SdkAssistant(context, model)
        }
    }
}
