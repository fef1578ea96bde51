package io.pflmobile.scenarios

import io.pflmobile.core.device.Backoff
import io.pflmobile.core.device.Event
import io.pflmobile.core.device.PrivacyPolicy
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.personal.Federation
import io.pflmobile.core.personal.LeaveResult
import io.pflmobile.core.personal.ModelOptions
import io.pflmobile.core.personal.PersonalModel
import io.pflmobile.core.personal.PersonalizeResult
import io.pflmobile.core.personal.RememberResult
import io.pflmobile.core.personal.RoundsResult
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.async
import kotlinx.coroutines.coroutineScope
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.double
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonPrimitive
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertIs
import kotlin.test.assertNotNull
import kotlin.test.assertTrue

/**
 * A user whose app has a personal model.
 *
 * @property place where it is
 * @property bundle that was open before; null for a new user
 */
internal class Phone(
    private val place: Place,
    private var bundle: String?,
) : User {
    private var model: PersonalModel? = null

    override suspend fun carryOut(step: JsonObject) {
        when (val what = word(step, "do")) {
            "open" -> open(step)
            "restart" -> restart(step["bundle"]?.let(::word))
            "remember" -> remember(step)
            "learn" -> learn(step)
            "suggest" -> suggest(step)
            "status" -> status(step)
            "forget" -> open().forgetWord(word(step, "word"))
            "pause" -> open().pause()
            "resume" -> open().resume()
            "revert" -> open().revert()
            "erase" -> open().eraseEverything()
            "serve" -> assertNotNull(place.aggregator, "whoever carries out the scenario starts an aggregator before")
            "take_part" -> takePart(step)
            "leave" -> leave(step)
            else -> error("no such step: $what")
        }
    }

    override suspend fun close() {
        model?.close()
        model = null
    }

    private fun open() = assertNotNull(model, "a scenario begins with open")

    private fun name() = assertNotNull(bundle, "a scenario begins with open")

    private suspend fun restart(newer: String? = null) {
        close()
        bundle = newer ?: bundle
        model = place.open(name(), OPTIONS.copy(engines = listOf(place.engine)))
    }

    private suspend fun open(step: JsonObject) {
        val kept = bundle
        bundle = word(step, "bundle")
        val refused = step["refused"]?.let(::word)
        if (refused == null) return restart()
        assertEquals(refused, assertFailsWith<PflException> { restart() }.code)
        bundle = kept
    }

    private suspend fun remember(step: JsonObject) {
        val refused = step["refused"]?.let(::word)
        repeat(step["times"]?.jsonPrimitive?.int ?: 1) {
            for (message in step.getValue("texts").jsonArray.map(::word)) {
                when (val result = open().remember(message)) {
                    is RememberResult.Kept -> assertEquals(null, refused, message)
                    is RememberResult.Refused -> assertEquals(refused, result.reason.name, message)
                }
            }
        }
    }

    private suspend fun learn(step: JsonObject) {
        val cancelAt = step["stop_after"]?.jsonPrimitive?.int
        val killAt = step["kill_after"]?.jsonPrimitive?.int
        val result =
            stoppable { stop ->
                open().personalize {
                    if (it.step.toInt() == killAt) place.kill()
                    if (it.step.toInt() == cancelAt) stop()
                }
            }
        val ends =
            when (result) {
                null, PersonalizeResult.Cancelled -> "cancelled"
                is PersonalizeResult.Adopted -> "adopted"
                is PersonalizeResult.Kept -> "kept"
                is PersonalizeResult.NotEnoughExamples -> "not_enough"
                PersonalizeResult.Paused -> "paused"
                is PersonalizeResult.Failed -> throw result.error
            }
        assertEquals(word(step, "ends"), ends)
        if (step["resumed"]?.jsonPrimitive?.boolean == true) {
            assertNotNull(assertIs<PersonalizeResult.Adopted>(result).report.report.resumedAt)
        }
    }

    /** What the block gives; null where it was stopped. */
    private suspend fun <T> stoppable(block: suspend CoroutineScope.(stop: () -> Unit) -> T): T? =
        coroutineScope {
            val job = Job()
            val running = async(Dispatchers.Default + job) { block { job.cancel() } }
            running.join()
            if (running.isCancelled && job.isCancelled) null else running.await().also { job.complete() }
        }

    private suspend fun takePart(step: JsonObject) {
        val killAt = step["kill_at"]?.let(::word)
        val rounds = step["rounds"]?.jsonPrimitive?.int ?: 1
        val most = step["max_epsilon"]?.jsonPrimitive?.double
        val policy = if (most == null) PrivacyPolicy() else PrivacyPolicy(maxEpsilon = most)
        val result = open().takePart(federation(policy), rounds = rounds) { if (nameOf(it) == killAt) place.kill() }
        val ends =
            when (result) {
                is RoundsResult.TookPart -> "took_part"
                is RoundsResult.NoRound -> "no_round"
                is RoundsResult.NotProtected -> "not_protected"
                is RoundsResult.NotEnoughExamples -> "not_enough"
                is RoundsResult.Paused -> "paused"
                is RoundsResult.Cancelled -> "cancelled"
                is RoundsResult.Unreachable -> "unreachable"
                is RoundsResult.Refused -> throw result.error
                is RoundsResult.Failed -> throw result.error
            }
        assertEquals(word(step, "ends"), ends)
        if (result is RoundsResult.TookPart) {
            assertEquals(rounds, result.summary.rounds)
            assertEquals(emptyMap(), result.summary.declined)
        }
    }

    /** The event's name in scenarios; of those that none names, no word. */
    private fun nameOf(event: Event): String = if (event is Event.Finished) "finished" else ""

    private suspend fun leave(step: JsonObject) {
        val ends =
            when (val result = open().leave(federation())) {
                is LeaveResult.Left -> "left"
                is LeaveResult.NotThere -> "not_there"
                is LeaveResult.Unreachable -> "unreachable"
                is LeaveResult.Failed -> throw result.error
            }
        assertEquals(word(step, "ends"), ends)
    }

    private fun federation(policy: PrivacyPolicy = PrivacyPolicy()): Federation {
        val url = assertNotNull(place.aggregator, "there is no aggregator here")
        return Federation(url, policy, backoff = QUICK)
    }

    private suspend fun suggest(step: JsonObject) {
        val words = open().suggest(word(step, "text")).map { it.word }
        step["has"]?.let { assertContains(words, word(it)) }
        step["lacks"]?.let { assertTrue(word(it) !in words, "$words") }
    }

    private suspend fun status(step: JsonObject) {
        val now = open().status()
        val shown =
            mapOf(
                "examples" to now.examples,
                "words" to now.words,
                "version" to now.version,
                "paused" to now.paused,
                "rounds" to (now.rounds?.rounds ?: 0).toInt(),
                "waiting" to (now.rounds?.waiting ?: 0),
            )
        for ((name, want) in step - "do") assertEquals(value(want), shown.getValue(name), name)
    }

    private fun value(element: JsonElement): Any = element.jsonPrimitive.let { it.content.toBooleanStrictOrNull() ?: it.int }

    private companion object {
        val OPTIONS = ModelOptions(trusted = true, checkpointEvery = 1)
        val QUICK = Backoff(firstS = 0.05, mostS = 0.5)
    }
}
