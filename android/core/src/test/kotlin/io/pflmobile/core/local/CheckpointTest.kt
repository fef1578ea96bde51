package io.pflmobile.core.local

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.assertBits
import io.pflmobile.core.conformance.floats
import io.pflmobile.core.conformance.tensors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.state.Loaded
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.state.PersonalState
import io.pflmobile.core.state.StateStore
import io.pflmobile.core.text.BlockList
import kotlinx.coroutines.test.runTest
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Path
import kotlin.io.path.exists
import kotlin.io.path.readBytes
import kotlin.io.path.writeBytes
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertNull
import kotlin.test.assertTrue

class CheckpointTest {
    @TempDir
    lateinit var folder: Path

    private val vectors = Vectors.read("trainer.json")
    private val train = Examples.Arrays(tensors(vectors.getValue("train")))
    private val holdout = Examples.Arrays(tensors(vectors.getValue("holdout")))
    private val initial = floats(vectors.getValue("initial"))
    private val sets = vectors.getValue("sets").jsonObject.mapValues { tensors(it.value) }
    private val plans =
        vectors.getValue("cases").jsonArray.associate {
            text(it.jsonObject.getValue("name")) to
                it.jsonObject.getValue("plan").toString()
        }

    /** Keeps one state in memory. */
    private class InMemory(
        private var state: PersonalState? = null,
    ) : StateStore {
        private var version = 0

        override fun hold() = AutoCloseable {}

        override fun load() = Loaded(state, version)

        override fun save(state: PersonalState): Int {
            this.state = state
            return ++version
        }

        override fun write(state: PersonalState) = version + 1

        override fun blocked() = BlockList.empty()
    }

    private val path get() = folder.resolve("checkpoint")

    private fun checkpoints(version: String = "1") = Checkpoints(path, ModelId.of("toy", version, Toy.TABLE), every = 2)

    private fun trainer(plan: String) = LocalTrainer(Toy(), Plan.load(plan), Toy.TABLE, initial, sets = sets)

    private fun bits(report: TrainReport) =
        report.trained!!.let {
            it.tensors +
                it.copies.flatMap { (copy, v) -> v.map { "$copy:${it.key}" to it.value } }
        }

    @Test
    fun `a run stopped after any step ends as if it never was`() =
        runTest {
            for ((name, plan) in plans) {
                val whole = trainer(plan).personalize(train, holdout)
                if (whole.status == Status.SKIPPED) continue
                val store = InMemory()
                for (stopAt in 1..whole.steps) {
                    val part =
                        trainer(
                            plan,
                        ).personalize(train, holdout, store = store, checkpoints = checkpoints(), stop = Counter()::second)
                    if (part.status != Status.CANCELLED) {
                        assertEquals(stopAt, whole.steps, name)
                        break
                    }
                    assertEquals(stopAt, part.steps, name)
                    assertTrue(path.exists())
                }
                val rest = trainer(plan).personalize(train, holdout, store = store, checkpoints = checkpoints())
                assertEquals(whole.status, rest.status, name)
                assertEquals(whole.losses, rest.losses, name)
                assertEquals(whole.reports, rest.reports, name)
                assertEquals(whole.after, rest.after, name)
                assertBits(bits(whole), bits(rest), name)
                assertEquals(whole.steps, rest.resumedAt, name)
                assertFalse(path.exists(), name)
            }
        }

    /** True from the second time on that it is asked: after one step. */
    private class Counter {
        private var asked = 0

        fun second() = ++asked >= 2
    }

    @Test
    fun `a checkpoint of another job is discarded and said so`() =
        runTest {
            val plan = plans.getValue("fedavg")
            val store = InMemory()

            suspend fun stopped(): ByteArray {
                trainer(plan).personalize(train, holdout, store = store, checkpoints = checkpoints(), stop = Counter()::second)
                return path.readBytes()
            }
            val saved = stopped()
            for (other in listOf<suspend () -> TrainReport>(
                { trainer(plans.getValue("fedprox")).personalize(train, holdout, store = store, checkpoints = checkpoints()) },
                { trainer(plan).personalize(holdout, holdout, store = store, checkpoints = checkpoints()) },
                { trainer(plan).personalize(train, holdout, store = store, checkpoints = checkpoints("2")) },
            )) {
                path.writeBytes(saved)
                val report = other()
                assertNull(report.resumedAt)
                assertEquals(1, report.notes.size)
            }
            path.writeBytes(saved.copyOf(saved.size - 1))
            val report = trainer(plan).personalize(train, holdout, store = InMemory(), checkpoints = checkpoints())
            assertTrue("could not be read" in report.notes.single())
        }

    @Test
    fun `a run that diverged leaves no checkpoint`() =
        runTest {
            val plan = """{"phases": [{"kind": "train", "steps": 60, "optimizer": {"kind": "sgd", "lr": 1000}}]}"""
            assertFailsWith<NonFiniteException> {
                trainer(
                    plan,
                ).personalize(train, holdout, store = InMemory(), checkpoints = checkpoints())
            }
            assertFalse(path.exists())
        }

    @Test
    fun `no steps between checkpoints are refused`() {
        assertFailsWith<ConfigException> { Checkpoints(path, ModelId.of("toy", "1", Toy.TABLE), every = 0) }
    }
}
