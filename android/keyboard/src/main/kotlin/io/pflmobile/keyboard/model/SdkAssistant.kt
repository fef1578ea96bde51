package io.pflmobile.keyboard.model

import android.content.Context
import io.pflmobile.core.device.Backoff
import io.pflmobile.core.local.Payload
import io.pflmobile.core.personal.Federation
import io.pflmobile.core.personal.ModelOptions
import io.pflmobile.core.personal.ModelStatus
import io.pflmobile.core.personal.PersonalModel
import io.pflmobile.core.personal.PersonalizeResult
import io.pflmobile.keyboard.R
import io.pflmobile.sdk.PersonalizationScheduler
import io.pflmobile.sdk.RoundsScheduler
import io.pflmobile.sdk.Waiting
import io.pflmobile.sdk.open

/** The model of the app's assets, which learns by itself while the phone charges and nobody uses it. */
internal class SdkAssistant private constructor(
    private val context: Context,
    private val model: PersonalModel,
) : Assistant {
    private val preferences = Preferences(context)

    override suspend fun suggest(
        text: String,
        count: Int,
    ): List<String> = model.suggest(text, count).map { it.word }

    override suspend fun complete(
        text: String,
        prefix: String,
        count: Int,
    ): List<String> = model.complete(text, prefix, count)

    override suspend fun remember(text: String) {
        model.remember(text)
    }

    override suspend fun standing(): Standing {
        val status = model.status()
        return Standing(
            result = status.last?.let { Standing.Result(it.before[RIGHT] ?: 0.0, it.after[RIGHT] ?: 0.0, it.adopted) },
            words = model.learnedWords(),
            examples =
                model.examples(NEWEST).reversed().mapNotNull { kept ->
                    (kept.payload as? Payload.Text)?.let { Standing.Kept(kept.id, it.text) }
                },
            exampleCount = status.examples,
            rounds = rounds(status),
            waits = words(PersonalizationScheduler.whyWaiting(context, model)),
            paused = status.paused,
        )
    }

    private fun words(waits: Set<Waiting>) = waits.map { context.getString(WAITS.getValue(it)) }

    private suspend fun rounds(status: ModelStatus): Standing.Rounds? {
        val server = preferences.server.ifEmpty { return null }
        val given = status.rounds
        return Standing.Rounds(
            server,
            preferences.rounds,
            if (preferences.rounds) words(RoundsScheduler.whyWaiting(context, model)) else emptyList(),
            given?.rounds ?: 0,
            given?.bytesSent ?: 0,
            given?.spent?.epsilon ?: 0.0,
            federation(server).policy.maxEpsilon,
            given?.spent?.delta ?: 0.0,
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

    override suspend fun takePart(on: Boolean) {
        val server = preferences.server
        if (on) RoundsScheduler.schedule(context, model, federation(server))
        // only now: an address that is none was refused
        preferences.rounds = on
        if (!on && server.isNotEmpty()) RoundsScheduler.leave(context, model, federation(server))
    }

    override suspend fun revert() {
        model.revert(SHIPPED)
    }

    override suspend fun eraseEverything() {
        preferences.rounds = false
        RoundsScheduler.cancel(context, model)
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

        /** @param bundle an asset, or the path of a file */
        suspend fun open(
            context: Context,
            bundle: String = BUNDLE,
            options: ModelOptions = ModelOptions(),
        ): Assistant {
            val model = PersonalModel.open(context, bundle, options)
            PersonalizationScheduler.schedule(context, model)
            val preferences = Preferences(context)
            if (preferences.rounds) RoundsScheduler.schedule(context, model, federation(preferences.server))
            return SdkAssistant(context, model)
        }

        /** Fails closed: the policy is the library's, by which nothing is sent that nothing protects. A user who leaves does not wait long. */
        private fun federation(server: String) = Federation(server, patienceS = 0.0, backoff = Backoff(attempts = 2))
    }
}
