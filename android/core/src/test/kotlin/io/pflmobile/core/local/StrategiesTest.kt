package io.pflmobile.core.local

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.bundle.Role
import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.assertBits
import io.pflmobile.core.conformance.assertDouble
import io.pflmobile.core.conformance.floats
import io.pflmobile.core.conformance.tensors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.conformance.trained
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.plan.change
import io.pflmobile.core.state.PersonalState
import kotlinx.coroutines.test.runTest
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.TestFactory
import kotlin.test.assertEquals

class StrategiesTest {
    private val vectors = Vectors.read("strategies.json")
    private val train = Examples.Arrays(tensors(vectors.getValue("train")))
    private val holdout = Examples.Arrays(tensors(vectors.getValue("holdout")))
    private val initial = floats(vectors.getValue("initial"))

    private fun sets(given: JsonElement) = given.jsonObject.mapValues { tensors(it.value) }

    @TestFactory
    fun `every strategy's plans end with Python's bits`(): List<DynamicTest> =
        vectors.getValue("cases").jsonArray.map { it.jsonObject }.map { case ->
            DynamicTest.dynamicTest(text(case.getValue("strategy"))) {
                val roles = case.getValue("roles").jsonObject.mapValues { (_, role) -> Role.entries.single { it.wireName == text(role) } }
                val table = roles.map { (name, role) -> trained(name, role, initial.getValue(name).shape) }
                case.getValue("runs").jsonArray.forEachIndexed { number, run -> check(run.jsonObject, table, "run $number") }
            }
        }

    private fun check(
        run: JsonObject,
        table: List<DeviceTensor>,
        what: String,
    ) = runTest {
        val plan = Plan.load(run.getValue("plan").toString())
        val given = sets(run.getValue("sets"))
        val old = run.getValue("state").jsonObject
        val copies = sets(old.getValue("copies"))
        val before = tensors(old.getValue("tensors"))
        val state = if (before.isEmpty()) null else PersonalState(before, copies)
        val report = LocalTrainer(Toy(), plan, table, initial, sets = given).personalize(train, holdout, state)
        val trained = report.trained!!
        assertEquals(text(run.getValue("status")), report.status.name.lowercase(), what)
        val losses = run.getValue("losses").jsonArray
        assertEquals(losses.size, report.losses.size, what)
        losses.zip(report.losses).forEach { (want, found) -> assertDouble(want, found, "$what: loss") }
        assertBits(tensors(run.getValue("tensors")), trained.tensors, what)
        val made = sets(run.getValue("copies"))
        assertEquals(made.keys, trained.copies.keys, what)
        for ((copy, values) in made) assertBits(values, trained.copies.getValue(copy), "$what: $copy")
        val kept = run.getValue("kept")
        if (kept !is JsonNull) {
            assertEquals(
                kept.jsonArray.map { it.jsonPrimitive.content },
                report.state!!
                    .copies.keys
                    .sorted(),
                what,
            )
        }
        val reports = run.getValue("reports").jsonObject
        assertEquals(reports.keys, report.reports.keys, what)
        for ((number, want) in reports) assertDouble(want, report.reports.getValue(number), "$what: $number")
        assertDouble(run.getValue("before"), report.before.getValue("loss"), "$what: before")
        assertDouble(run.getValue("after"), report.after.getValue("loss"), "$what: after")
        val sent = change(plan, table, initial + given["global"].orEmpty(), trained.copiesBefore, trained.tensors, trained.copies)
        assertBits(tensors(run.getValue("sent")), sent, "$what: sent")
    }
}
