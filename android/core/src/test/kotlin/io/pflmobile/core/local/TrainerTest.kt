package io.pflmobile.core.local

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.assertBits
import io.pflmobile.core.conformance.assertDouble
import io.pflmobile.core.conformance.floats
import io.pflmobile.core.conformance.tensors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.engines.Session
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.NoExamplesException
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.errors.TooManyStepsException
import io.pflmobile.core.errors.TooSlowException
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.tensors.FloatTensor
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.cancel
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.test.runTest
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNull
import kotlin.time.Duration.Companion.seconds
import kotlin.time.TestTimeSource

class TrainerTest {
    private val vectors = Vectors.read("trainer.json")
    private val train = Examples.Arrays(tensors(vectors.getValue("train")))
    private val holdout = Examples.Arrays(tensors(vectors.getValue("holdout")))
    private val initial = floats(vectors.getValue("initial"))
    private val sets = vectors.getValue("sets").jsonObject.mapValues { tensors(it.value) }
    private val cases = vectors.getValue("cases").jsonArray.map { it.jsonObject }

    private fun plan(case: JsonObject) = Plan.load(case.getValue("plan").toString())

    private fun sgd(steps: Int) = Plan.load("""{"phases": [{"kind": "train", "steps": $steps, "optimizer": {"kind": "sgd", "lr": 0.1}}]}""")

    private fun trainer(
        plan: Plan,
        most: Most = Most(),
        session: Session = Toy(),
    ) = LocalTrainer(session, plan, Toy.TABLE, initial, sets = sets, most = most)

    @Test
    fun `whole runs end with Python's bits`() =
        runTest {
            for (case in cases) {
                val name = text(case.getValue("name"))
                val before = initial.mapValues { it.value.copy() }
                val report = trainer(plan(case)).personalize(train, holdout)
                assertEquals(text(case.getValue("status")), report.status.name.lowercase(), name)
                assertEquals(case.getValue("steps").jsonPrimitive.long, report.steps, name)
                val losses = case.getValue("losses").jsonArray
                assertEquals(losses.size, report.losses.size, name)
                losses.zip(report.losses).forEach { (want, found) -> assertDouble(want, found, "$name: loss") }
                assertBits(tensors(case.getValue("tensors")), report.state?.tensors ?: initial, name)
                val copies = case.getValue("copies").jsonObject
                assertEquals(
                    copies.keys,
                    report.state
                        ?.copies
                        .orEmpty()
                        .keys,
                    name,
                )
                for ((copy, values) in copies) assertBits(tensors(values), report.state!!.copies.getValue(copy), "$name: $copy")
                val reports = case.getValue("reports").jsonObject
                assertEquals(reports.keys, report.reports.keys, name)
                for ((number, want) in reports) assertDouble(want, report.reports.getValue(number), "$name: $number")
                assertDouble(case.getValue("before"), report.before.getValue("loss"), "$name: before")
                val after = case.getValue("after")
                if (after is JsonNull) {
                    assertNull(
                        report.after["loss"],
                    )
                } else {
                    assertDouble(after, report.after.getValue("loss"), "$name: after")
                }
                assertBits(before, initial, "$name: the shipped values")
            }
        }

    @Test
    fun `training goes on from a state without changing it`() =
        runTest {
            for (case in cases) {
                val trainer = trainer(plan(case))
                val first = trainer.personalize(train, holdout).state ?: continue
                val tensors = first.tensors.mapValues { (it.value as FloatTensor).copy() }
                trainer.personalize(train, holdout, first)
                assertBits(tensors, first.tensors, text(case.getValue("name")))
            }
        }

    @Test
    fun `stop is asked after each step`() =
        runTest {
            var asked = 0
            val report = trainer(sgd(6)).personalize(train, holdout, stop = { ++asked == 3 })
            assertEquals(Status.CANCELLED, report.status)
            assertEquals(2, report.steps) // asked once before the first
            assertNull(report.state)
        }

    @Test
    fun `a cancelled coroutine makes no other step`() =
        runTest {
            val session = Toy()
            assertFailsWith<CancellationException> {
                coroutineScope {
                    trainer(sgd(1000), session = session).personalize(train, holdout) { if (it.step == 2L) cancel() }
                }
            }
            assertEquals(3, session.calls) // one to measure before, two steps
        }

    @Test
    fun `progress counts the steps of the whole plan`() =
        runTest {
            val seen = ArrayList<Long>()
            trainer(sgd(4)).personalize(train, holdout) {
                assertEquals(4, it.of)
                seen += it.step
            }
            assertEquals(listOf(1L, 2L, 3L, 4L), seen)
        }

    @Test
    fun `limits of the bundle hold`() =
        runTest {
            assertFailsWith<TooManyStepsException> { trainer(sgd(6), Most(steps = 5)).personalize(train, holdout) }
            val clock = TestTimeSource()
            val slow = trainer(sgd(6), Most(seconds = 10.0))
            slow.clock = clock
            var steps = 0
            assertFailsWith<TooSlowException> {
                slow.personalize(train, holdout) {
                    steps++
                    clock += 6.seconds
                }
            }
            assertEquals(2, steps)
        }

    @Test
    fun `the last step is never too late`() =
        runTest {
            val clock = TestTimeSource()
            val slow = trainer(sgd(2), Most(seconds = 10.0))
            slow.clock = clock
            val report = slow.personalize(train, holdout) { clock += 6.seconds }
            assertEquals(Status.ADOPTED, report.status)
            assertEquals(12.0, report.seconds)
        }

    @Test
    fun `what cannot be trained is refused`() =
        runTest {
            val diverging = Plan.load("""{"phases": [{"kind": "train", "steps": 9, "optimizer": {"kind": "sgd", "lr": 1e30}}]}""")
            assertFailsWith<NonFiniteException> { trainer(diverging).personalize(train, holdout) }
            val nothing =
                Examples.Arrays(
                    train.rows.mapValues { (name, value) ->
                        if (name ==
                            "weight"
                        ) {
                            zeros(value as FloatTensor)
                        } else {
                            value
                        }
                    },
                )
            assertFailsWith<NoExamplesException> { trainer(sgd(1)).personalize(nothing, holdout) }
            assertFailsWith<ConfigException> { trainer(sgd(1)).personalize(Examples.Texts(listOf("a")), holdout) }
            assertFailsWith<TensorMismatchException> { trainer(sgd(1)).personalize(Examples.Arrays(train.rows - "x"), holdout) }
            assertFailsWith<TensorMismatchException> { LocalTrainer(Toy(), sgd(1), Toy.TABLE, initial - "a") }
            assertFailsWith<ConfigException> {
                trainer(Plan.load("""{"phases": [{"kind": "assign_slots", "module": "m"}]}"""))
            }
        }

    @Test
    fun `nothing held out trains nothing`() =
        runTest {
            val nothing =
                Examples.Arrays(
                    holdout.rows.mapValues { (name, value) ->
                        if (name ==
                            "weight"
                        ) {
                            zeros(value as FloatTensor)
                        } else {
                            value
                        }
                    },
                )
            val report = trainer(sgd(1)).personalize(train, nothing)
            assertEquals(Reason.TOO_FEW_EXAMPLES, report.guard?.reason)
            assertEquals(Status.SKIPPED, report.status)
        }

    private fun zeros(like: FloatTensor) = FloatTensor(FloatArray(like.size), like.shape)
}
