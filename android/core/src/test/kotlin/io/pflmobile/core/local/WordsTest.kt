package io.pflmobile.core.local

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.assertBits
import io.pflmobile.core.conformance.assertDouble
import io.pflmobile.core.conformance.table
import io.pflmobile.core.conformance.tensors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.TooManyStepsException
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.state.PersonalState
import kotlinx.coroutines.test.runTest
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class WordsTest {
    private val vectors = Vectors.read("words.json")
    private val table = table(vectors.getValue("tensors"))
    private val initial = tensors(vectors.getValue("initial"))
    private val cases = vectors.getValue("cases").jsonArray.map { it.jsonObject }

    private fun strings(list: JsonElement) = list.jsonArray.map { it.jsonPrimitive.content }

    private fun texts(
        run: JsonObject,
        part: String,
    ) = Examples.Texts(strings(run.getValue(part)))

    private fun trainer(
        case: JsonObject,
        encoder: Encoder? = WordEncoder(),
        most: Most = Most(),
    ) = LocalTrainer(WordToy(table), Plan.load(case.getValue("plan").toString()), table, initial, encoder, most = most)

    @Test
    fun `texts, slots and the memory go Python's way`() =
        runTest {
            for (case in cases) {
                var state: PersonalState? = null
                for (run in case.getValue("runs").jsonArray.map { it.jsonObject }) {
                    val name = text(case.getValue("name"))
                    val report = trainer(case).personalize(texts(run, "train"), texts(run, "holdout"), state)
                    state = report.state
                    assertEquals(text(run.getValue("status")), report.status.name.lowercase(), name)
                    assertEquals(strings(run.getValue("words")), report.words, name)
                    run.getValue("losses").jsonArray.zip(report.losses).forEach { (want, found) ->
                        assertDouble(want, found, "$name: loss")
                    }
                    assertBits(tensors(run.getValue("tensors")), state?.tensors ?: initial, name)
                    for ((moment, found) in listOf("before" to report.before, "after" to report.after)) {
                        val metrics = run.getValue(moment).jsonObject
                        assertEquals(metrics.keys, found.keys, name)
                        for ((metric, want) in metrics) assertDouble(want, found.getValue(metric), "$name: $metric $moment")
                    }
                }
            }
        }

    @Test
    fun `texts need an encoder, and slots need texts`() =
        runTest {
            val case = cases.first()
            val run =
                case
                    .getValue("runs")
                    .jsonArray
                    .first()
                    .jsonObject
            assertFailsWith<ConfigException> { trainer(case, encoder = null).personalize(texts(run, "train"), texts(run, "holdout")) }
            val rows = Examples.Arrays(WordEncoder().encode(listOf("see you", "you see"), dropUnknown = true))
            assertFailsWith<ConfigException> { trainer(case).personalize(rows, rows) }
        }

    @Test
    fun `rows that count only once words have a slot are within the limit too`() =
        runTest {
            val phases = """{"kind": "assign_slots"}, {"kind": "train", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.1}}"""
            val plan = """{"plan": {"phases": [$phases]}}"""
            val case = Json.parseToJsonElement(plan).jsonObject
            val train = Examples.Texts(List(4) { "see you home" } + List(4) { "frob frob frob" }) // without a slot frob is unknown
            assertFailsWith<TooManyStepsException> {
                trainer(
                    case,
                    most = Most(steps = 1),
                ).personalize(train, Examples.Texts(listOf("see")))
            }
        }
}
