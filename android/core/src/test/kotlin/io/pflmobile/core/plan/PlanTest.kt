package io.pflmobile.core.plan

import io.pflmobile.core.bundle.Role
import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.table
import io.pflmobile.core.conformance.trained
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.files.parseJson
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.contentOrNull
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class PlanTest {
    private val vectors = Vectors.read("plan.json")
    private val valid = vectors.getValue("valid").jsonArray.map { it.jsonObject }

    private fun plan(case: JsonObject) = Plan.load(case.getValue("plan").toString())

    private fun name(case: JsonObject) = case.getValue("name").jsonPrimitive.content

    private fun texts(list: JsonElement) = list.jsonArray.map { it.jsonPrimitive.content }

    @Test
    fun `valid plans get Python's defaults and unroll alike`() {
        for (case in valid) {
            val plan = plan(case)
            assertEquals(parseJson(case.getValue("full").toString()), parseJson(plan.dump()), name(case))
            assertEquals(parseJson(plan.dump()), parseJson(Plan.load(plan.dump()).dump()), name(case))
            assertEquals(texts(case.getValue("unrolled")), plan.steps().map { it.kind }, name(case))
        }
    }

    @Test
    fun `plans read in the same words`() {
        for (case in valid) {
            assertEquals(texts(case.getValue("words")), plan(case).words(), name(case))
            assertEquals(texts(case.getValue("reports")), plan(case).reports, name(case))
        }
    }

    @Test
    fun `phases say the same of themselves`() {
        for (case in valid) {
            val asks = case.getValue("asks").jsonArray.map { it.jsonObject }
            plan(case).distinctSteps().zip(asks).forEach { (phase, want) ->
                fun text(field: String) = want.getValue(field).jsonPrimitive.contentOrNull

                fun truth(field: String) = want.getValue(field).jsonPrimitive.boolean
                val who = "${name(case)}: ${phase.kind}"
                assertEquals(text("kind"), phase.kind, who)
                assertEquals(texts(want.getValue("reads")), phase.reads, who)
                assertEquals(texts(want.getValue("step_reads")), phase.stepReads, who)
                assertEquals(text("writes"), phase.writes, who)
                assertEquals(text("makes_copy"), phase.makesCopy, who)
                assertEquals(text("changes"), phase.changes, who)
                assertEquals(text("takes_over"), phase.takesOver, who)
                assertEquals(text("reported"), phase.reported, who)
                assertEquals(text("examples"), phase.examples?.name?.lowercase(), who)
                assertEquals(truth("remembers"), phase.remembers, who)
                assertEquals(texts(want.getValue("programs")), phase.programs, who)
                assertEquals(texts(want.getValue("metrics")), phase.metrics, who)
                assertEquals(truth("leaves_rate"), phase.leavesRate, who)
                assertEquals(truth("needs_rate"), phase.needsRate, who)
                for (steps in want.getValue("optimizer_steps").jsonArray.map { it.jsonArray }) {
                    val (rows, batch) = steps.take(2).map { it.jsonPrimitive.int }
                    assertEquals(steps[2].jsonPrimitive.long, phase.optimizerSteps(rows, batch), who)
                }
            }
            assertEquals(asks.size, plan(case).distinctSteps().size, name(case))
        }
    }

    @Test
    fun `invalid plans are refused`() {
        for (case in vectors.getValue("invalid").jsonArray.map { it.jsonObject }) {
            assertFailsWith<ConfigException>(name(case)) { plan(case) }
        }
    }

    @Test
    fun `what is not JSON is refused`() {
        for (text in listOf("", "{", "{\"phases\": }", "[1,]", "{\"seed\": 1, \"seed\": 1}", "[".repeat(200), "{\"seed\": NaN}")) {
            assertFailsWith<ConfigException>(text) { Plan.load(text) }
        }
    }

    @Test
    fun `plans that do not fit a model are refused by the same errors`() {
        val fit = vectors.getValue("fit").jsonObject
        val table = table(fit.getValue("tensors"))
        for (case in fit.getValue("cases").jsonArray.map { it.jsonObject }) {
            val refused =
                try {
                    checkPlan(plan(case), table, texts(fit.getValue("sets")), emptyList())
                    JsonNull.contentOrNull
                } catch (error: PflException) {
                    error.code
                }
            assertEquals(case.getValue("refused").jsonPrimitive.contentOrNull, refused, name(case))
        }
    }

    @Test
    fun `patterns select the same tensors`() {
        val model = Vectors.read("model.json")
        val table = table(model.getValue("tensors"))
        for ((pattern, names) in model.getValue("patterns").jsonObject) {
            assertEquals(texts(names), table.filter { matches(pattern, it) }.map { it.name }, pattern)
        }
    }

    @Test
    fun `a pattern of many stars is matched at once`() {
        val long = trained("a".repeat(200), Role.SHARED, emptyList())
        assertEquals(false, matches("*a".repeat(99) + "*b", long))
    }

    @Test
    fun `numbers are printed as Python prints them`() {
        val printed =
            mapOf(
                0.1 to "0.1",
                5.0 to "5",
                1e-8 to "1e-08",
                123456.0 to "123456",
                1234567.0 to "1.23457e+06",
                1e30 to "1e+30",
                -2.5e-5 to "-2.5e-05",
                0.0001 to "0.0001",
                0.0 to "0",
                1.0 / 3 to "0.333333",
            )
        for ((value, text) in printed) assertEquals(text, general(value))
    }
}
