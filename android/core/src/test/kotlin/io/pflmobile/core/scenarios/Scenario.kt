package io.pflmobile.core.scenarios

import io.pflmobile.core.conformance.text
import io.pflmobile.core.device.PrivacyPolicy
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.local.ExampleStore
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
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.double
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import java.nio.file.Path
import kotlin.io.path.readText
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertIs
import kotlin.test.assertNotNull
import kotlin.test.assertTrue

/** One file of `conformance/scenarios`, read. */
internal class Scenario(
    file: Path,
) {
    val steps: List<JsonObject> =
        Json
            .parseToJsonElement(file.readText())
            .jsonObject
            .getValue("steps")
            .jsonArray
            .map { it.jsonObject }
}

/**
 * Where a scenario is carried out.
 *
 * @property bundles where the bundles lie
 * @property folder of the model
 * @property engine runs the programs
 * @property examples opens the store of examples
 * @property kill ends the process at once
 * @property serve starts an aggregator for a bundle and gives its address; each device adds noise, and one makes a round
 */
internal class Phone(
    private val bundles: Path,
    private val folder: Path,
    private val engine: Engine,
    private val examples: (Path) -> ExampleStore,
    private val kill: () -> Unit,
    private val serve: (bundle: Path) -> String = { error("there is no aggregator here") },
) {
    private var model: PersonalModel? = null
    private var bundle = ""
    private var server = ""

    /** Does one step and checks what it gives. */
    suspend fun carryOut(step: JsonObject) {
        when (val what = text(step.getValue("do"))) {
            "open" -> open(step)
            "restart" -> restart()
            "remember" -> remember(step)
            "learn" -> learn(step)
            "suggest" -> suggest(step)
            "status" -> status(step)
            "forget" -> open().forgetWord(text(step.getValue("word")))
            "pause" -> open().pause()
            "resume" -> open().resume()
            "revert" -> open().revert()
            "erase" -> open().eraseEverything()
            "serve" -> server = serve(bundles.resolve("${text(step.getValue("bundle"))}.pflb"))
            "take_part" -> takePart(step)
            "leave" -> leave(step)
            else -> error("no such step: $what")
        }
    }

    /** Ends as a process does that the system has no complaint about. */
    suspend fun close() {
        model?.close()
        model = null
    }

    /** Goes on in a new process with the bundle that the one before had. */
    suspend fun goOn(bundle: String) {
        this.bundle = bundle
        restart()
    }

    private fun open() = assertNotNull(model, "a scenario begins with open")

    private suspend fun restart() {
        close()
        model = PersonalModel.open(bundles.resolve("$bundle.pflb"), folder, OPTIONS.copy(engines = listOf(engine)), examples = examples)
    }

    private suspend fun open(step: JsonObject) {
        bundle = text(step.getValue("bundle"))
        val refused = step["refused"]?.let(::text)
        if (refused == null) return restart()
        assertEquals(refused, assertFailsWith<PflException> { restart() }.code)
    }

    private suspend fun remember(step: JsonObject) {
        val refused = step["refused"]?.let(::text)
        repeat(step["times"]?.jsonPrimitive?.int ?: 1) {
            for (message in step.getValue("texts").jsonArray.map(::text)) {
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
                    if (it.step.toInt() == killAt) kill()
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
        assertEquals(text(step.getValue("ends")), ends)
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
        val most = step["max_epsilon"]?.jsonPrimitive?.double
        val policy = if (most == null) PrivacyPolicy() else PrivacyPolicy(maxEpsilon = most)
        val ends =
            when (val result = open().takePart(Federation(server, policy), rounds = 1)) {
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
        assertEquals(text(step.getValue("ends")), ends)
    }

    private suspend fun leave(step: JsonObject) {
        val ends =
            when (val result = open().leave(Federation(server))) {
                is LeaveResult.Left -> "left"
                is LeaveResult.NotThere -> "not_there"
                is LeaveResult.Unreachable -> "unreachable"
                is LeaveResult.Failed -> throw result.error
            }
        assertEquals(text(step.getValue("ends")), ends)
    }

    private suspend fun suggest(step: JsonObject) {
        val words = open().suggest(text(step.getValue("text"))).map { it.word }
        step["has"]?.let { assertContains(words, text(it)) }
        step["lacks"]?.let { assertTrue(text(it) !in words, "$words") }
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
    }
}
