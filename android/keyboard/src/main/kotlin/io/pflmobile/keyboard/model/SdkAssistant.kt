package io.pflmobile.keyboard.model

import android.content.Context
import io.pflmobile.core.device.Backoff
import io.pflmobile.core.device.PrivacyPolicy
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.local.Payload
import io.pflmobile.core.personal.Federation
import io.pflmobile.core.personal.LeaveResult
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

    /** Why rounds cannot be scheduled; null where they can, or need not. */
    @Volatile private var trouble: String? = null

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
        val spent = given?.spent
        return Standing.Rounds(
            server,
            preferences.rounds,
            if (preferences.rounds) words(RoundsScheduler.whyWaiting(context, model)) else emptyList(),
            given?.rounds ?: 0,
            given?.bytesSent ?: 0,
            spent?.epsilon ?: 0.0,
            POLICY.maxEpsilon,
            spent?.delta ?: 0.0,
            RoundsScheduler.isLeaving(context, model),
            given?.problem?.message,
            trouble,
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
        trouble = null
        try {
            if (on) join() else leave()
        } catch (error: PflException) {
            trouble = error.message
        }
    }

    private fun join() {
        // an address that is none is refused before anything else
        val federation = federation(preferences.server)
        // before the job, which asks for it
        preferences.rounds = true
        try {
            RoundsScheduler.schedule(context, model, federation)
        } catch (error: PflException) {
            preferences.rounds = false
            throw error
        }
    }

    private suspend fun leave() {
        preferences.rounds = false
        RoundsScheduler.cancel(context, model)
        val server = preferences.server.ifEmpty { return }
        // where the server is out of reach, a job of the library tells it later
        val left = RoundsScheduler.leave(context, model, federation(server))
        if (left is LeaveResult.Failed) throw left.error
    }

    /** Has a job of rounds where the user wants one, and none where not: the process may have ended between the two. */
    private fun reconcile() {
        val server = preferences.server
        try {
            if (preferences.rounds && server.isNotEmpty()) {
                RoundsScheduler.schedule(context, model, federation(server))
            } else if (!RoundsScheduler.isLeaving(context, model)) {
                RoundsScheduler.cancel(context, model)
            }
        } catch (error: PflException) {
            // suggestions need no rounds
            trouble = error.message
            RoundsScheduler.cancel(context, model)
        }
    }

    override suspend fun revert() {
        model.revert(SHIPPED)
    }

    override suspend fun eraseEverything() {
        preferences.rounds = false
        trouble = null
        model.eraseEverything()
        // a job that still has to leave has no credential for it any more
        RoundsScheduler.cancel(context, model)
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
                Waiting.FAILED to R.string.waits_failed,
            )

        /** @param bundle an asset, or the path of a file */
        suspend fun open(
            context: Context,
            bundle: String = BUNDLE,
            options: ModelOptions = ModelOptions(),
        ): Assistant {
            val model = PersonalModel.open(context, bundle, options)
            try {
                PersonalizationScheduler.schedule(context, model)
            } catch (_: PflException) {
                // the screen says that nothing is scheduled; suggestions need none
            }
            return SdkAssistant(context, model).apply { reconcile() }
        }

        /** Where the user takes part now; null where nowhere. */
        fun federation(context: Context): Federation? =
            Preferences(context).run { if (rounds && server.isNotEmpty()) federation(server) else null }

        /**
         * Fails closed: besides what the library asks for, nothing is sent that no noise hides, so no numbers measured on the user's
         * sentences either.
         */
        val POLICY = PrivacyPolicy(report = false)

        /** A user who leaves does not wait long. */
        private fun federation(server: String) = Federation(server, POLICY, patienceS = 0.0, backoff = Backoff(attempts = 2))
    }
}
