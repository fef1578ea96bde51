package io.pflmobile.core.personal

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.errors.BundleException
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.DataException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.errors.UnwritableException
import io.pflmobile.core.files.FolderLock
import io.pflmobile.core.local.Evaluator
import io.pflmobile.core.local.Examples
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.state.PersonalStateStore
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.sameBits
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.async
import kotlinx.coroutines.job
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Files
import java.nio.file.Path
import java.util.concurrent.atomic.AtomicReference
import kotlin.io.path.exists
import kotlin.io.path.isRegularFile
import kotlin.io.path.listDirectoryEntries
import kotlin.io.path.name
import kotlin.io.path.readBytes
import kotlin.io.path.walk
import kotlin.io.path.writeBytes
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertSame
import kotlin.test.assertTrue

/** What an app does with a model, over real bundles and the real ONNX Runtime. */
class PersonalModelTest {
    @TempDir
    lateinit var folder: Path

    private val bundles = Path.of(System.getProperty("bundles"))
    private val engine = CountingEngine()
    private val examples = InMemoryExamples()
    private val models = ArrayList<PersonalModel>()

    private fun options(engine: CountingEngine = this.engine) = ModelOptions(trusted = true, engines = listOf(engine), engineIdleMs = 0)

    private suspend fun open(
        options: ModelOptions = options(),
        bundle: String = "tiny",
        home: Path = folder.resolve("model"),
    ) = PersonalModel.open(bundles.resolve("$bundle.pflb"), home, options, { NOW }) { examples }.also { models += it }

    private suspend fun learn(model: PersonalModel) {
        repeat(COUNT) { assertIs<RememberResult.Kept>(model.remember(text(it))) }
    }

    private fun text(number: Int) = SAID[number % SAID.size] + if (number % 4 == 0) " now" else ""

    @AfterEach
    fun `nothing stays open`() =
        runBlocking {
            models.forEach { it.close() }
            assertEquals(0, engine.open)
            assertFalse(PersonalModel.isOpen(folder.resolve("model")))
        }

    @Test
    fun `it learns what the user says, and serves it after it was opened again`() =
        runBlocking {
            val model = open()
            assertTrue(model.takesText)
            assertTrue("Thai" in model.scriptsNotServed && "Latn" !in model.scriptsNotServed, "${model.scriptsNotServed}")
            assertEquals(emptyList(), model.learnedWords())
            learn(model)
            var steps = 0L
            val result = assertIs<PersonalizeResult.Adopted>(model.personalize { steps = it.step })
            assertEquals(steps, result.report.report.steps)
            assertTrue(result.report.after.getValue("loss") < result.report.before.getValue("loss"))
            assertTrue("zorp" in model.learnedWords())
            val suggested = model.suggest("see you at the")
            assertEquals("zorp", suggested.first().word)
            assertTrue(suggested.zipWithNext().all { (one, next) -> one.probability >= next.probability })
            val status = model.status()
            assertEquals(COUNT, status.examples)
            assertEquals(1, status.version)
            assertEquals(result.report.after, status.last?.after)
            assertEquals(NOW, status.last?.at)
            model.close()
            assertEquals(1, examples.closings)

            val again = open()
            assertEquals(suggested, again.suggest("see you at the"))
            assertEquals(status.copy(engineOpen = false), again.status())
            assertEquals(status.last, again.status().last)
        }

    @Test
    fun `it does what the evaluator does, bit for bit`() =
        runBlocking {
            val model = open()
            learn(model)
            model.personalize()
            Bundle.open(bundles.resolve("tiny.pflb")).use { bundle ->
                engine.open(bundle.engineFiles(engine.name), bundle.manifest.programs, 1).use { session ->
                    val texts = Examples.Texts(List(COUNT, ::text))
                    val want = Evaluator(bundle, session).personalize(texts).report.state!!
                    val found = PersonalStateStore(model.folder.resolve("state"), model.model).load().state!!
                    assertEquals(want.words, found.words)
                    for ((name, value) in want.tensors) assertTrue(value.sameBits(found.tensors.getValue(name)), name)
                }
            }
        }

    @Test
    fun `arrays are remembered, learned and told apart`() =
        runBlocking {
            val model = open(bundle = "arrays")
            assertFalse(model.takesText)
            val rows = List(40) { number -> FloatArray(6) { if (it == number % 4) 2f else 0f } to (number % 4) }
            for ((features, label) in rows) assertIs<RememberResult.Kept>(model.remember(features, label))
            assertIs<PersonalizeResult.Adopted>(model.personalize())
            for ((features, label) in rows.take(4)) {
                val best = model.predict(features).labels.first()
                assertEquals(label, best.label)
                assertTrue(best.probability in 0.25..1.0)
            }
            assertFailsWith<TensorMismatchException> { model.predict(FloatArray(5)) }
            assertFailsWith<TensorMismatchException> { model.remember(mapOf("y" to FloatTensor(FloatArray(6), listOf(6)))) }
            assertFailsWith<DataException> { model.remember(FloatArray(6), 4) }
            for (label in listOf(4L, -100L)) {
                val row = mapOf("x" to FloatTensor(FloatArray(6), listOf(6)), "labels" to LongTensor(longArrayOf(label), listOf(1)))
                assertFailsWith<DataException> { model.remember(row) }
            }
            assertFailsWith<DataException> { model.remember(FloatArray(6) { Float.NaN }, 1) }
            assertFailsWith<ConfigException> { model.remember("a text") }
            assertFailsWith<ConfigException> { model.suggest("a text") }
            Unit
        }

    @Test
    fun `what must not be kept is refused with a reason`() =
        runBlocking {
            val model = open(options().copy(blockedWords = setOf("Kestrel")))

            suspend fun reason(text: String) = assertIs<RememberResult.Refused>(model.remember(text)).reason
            assertEquals(RememberResult.Reason.BLOCKED, reason("the kestrel's nest"))
            assertEquals(RememberResult.Reason.EMPTY, reason("  \n"))
            model.pause()
            assertEquals(RememberResult.Reason.PAUSED, reason("see you"))
            assertIs<PersonalizeResult.Paused>(model.personalize())
            model.close()
            val again = open(options().copy(blockedWords = setOf("Kestrel")))
            assertTrue(again.status().paused)
            again.resume()
            examples.room = 0
            assertEquals(RememberResult.Reason.STORAGE_FULL, assertIs<RememberResult.Refused>(again.remember("see you")).reason)
            assertEquals(0, again.status().examples)
            assertFailsWith<ConfigException> { again.predict(FloatArray(3)) }
            Unit
        }

    @Test
    fun `too few examples are said`() =
        runBlocking {
            val model = open()
            assertEquals(PersonalizeResult.NotEnoughExamples(0), model.personalize())
            model.remember("see you")
            assertEquals(PersonalizeResult.NotEnoughExamples(1), model.personalize())
        }

    @Test
    fun `killed in the middle it ends as if it never was, though more was said meanwhile`() =
        runBlocking {
            val whole = open(home = folder.resolve("whole"))
            learn(whole)
            whole.personalize()
            val want = PersonalStateStore(whole.folder.resolve("state"), whole.model).load().state!!
            whole.close()

            val model = open()
            val begun = launch(Dispatchers.Default) { model.personalize { if (it.step == STOP_AT) coroutineContext.job.cancel() } }
            begun.join()
            assertTrue(begun.isCancelled)
            assertEquals(0, model.status().version)
            assertFalse(model.status().training)
            model.remember("the bus is late")
            val result = assertIs<PersonalizeResult.Adopted>(model.personalize())
            assertEquals(STOP_AT, result.report.report.resumedAt)
            val found = PersonalStateStore(model.folder.resolve("state"), model.model).load().state!!
            assertEquals(want.words, found.words)
            for ((name, value) in want.tensors) assertTrue(value.sameBits(found.tensors.getValue(name)), name)
            assertFalse(model.folder.resolve("under-way").exists())
        }

    @Test
    fun `a training that is paused ends within a step, and measuring within a batch`() =
        runBlocking {
            val model = open()
            learn(model)
            val stepped = CompletableDeferred<Unit>()
            val running = async(Dispatchers.Default) { model.personalize { stepped.complete(Unit) } }
            stepped.await()
            model.pause()
            val before = engine.runs.count { it == "gradients" }
            assertIs<PersonalizeResult.Cancelled>(running.await())
            assertTrue(engine.runs.count { it == "gradients" } <= before + 1)
            model.resume()

            engine.runs.clear()
            val measuring = AtomicReference<Job>()
            val slow = CountingEngine { if (it == "evaluate") measuring.get().cancel() }
            val other = open(options(slow), home = folder.resolve("other"))
            measuring.set(launch(Dispatchers.Default, CoroutineStart.LAZY) { other.personalize() })
            measuring.get().join()
            assertTrue(measuring.get().isCancelled)
            assertTrue(slow.runs.count { it == "evaluate" } <= 2, "${slow.runs}")
            assertEquals(0, slow.open)
        }

    @Test
    fun `a suggestion is not kept waiting by a training, and a second training is refused`() =
        runBlocking {
            val model = open()
            learn(model)
            var suggested = 0
            val result =
                model.personalize {
                    if (it.step == 3L) {
                        runBlocking {
                            suggested = model.suggest("see you").size
                            assertIs<PersonalizeResult.Failed>(model.personalize())
                            assertTrue(model.status().training)
                        }
                    }
                }
            assertIs<PersonalizeResult.Adopted>(result)
            assertTrue(suggested > 0)
        }

    @Test
    fun `a forgotten word is in no state, no example and no suggestion, and is not learned again`() =
        runBlocking {
            val model = open()
            learn(model)
            model.personalize()
            val forgotten = model.forgetWord("Zorp")
            assertEquals(1, forgotten.slots)
            assertEquals(emptyList(), model.learnedWords())
            assertTrue(model.examples().isNotEmpty())
            assertTrue(model.suggest("see you at the").none { it.word == "zorp" })
            assertEquals(RememberResult.Reason.BLOCKED, assertIs<RememberResult.Refused>(model.remember("at the zorp")).reason)
            val one = model.examples().first()
            assertTrue(model.forgetExample(one.id))
            assertFalse(model.forgetExample(one.id))
            model.personalize()
            assertEquals(emptyList(), model.learnedWords())
            assertFailsWith<ConfigException> { model.forgetWord("two words") }
            Unit
        }

    @Test
    fun `it goes back to what served before`() =
        runBlocking {
            val model = open()
            val shipped = model.suggest("see you at the")
            learn(model)
            model.personalize()
            assertEquals(listOf(1), model.versions().map { it.version })
            assertEquals(0, model.revert())
            assertEquals(shipped, model.suggest("see you at the"))
            assertEquals(1, model.revert(1))
            assertTrue("zorp" in model.learnedWords())
        }

    @Test
    fun `erased, nothing is left but empty locks and the unpacked bundle`() =
        runBlocking {
            val model = open()
            val shipped = model.suggest("see you at the")
            learn(model)
            model.personalize()
            model.eraseEverything()
            assertEquals(shipped, model.suggest("see you at the"))
            assertEquals(0, model.status().examples)
            assertNull(model.status().last)
            model.close()
            val left =
                folder
                    .resolve("model")
                    .walk()
                    .filter { it.isRegularFile() }
                    .toList()
            assertEquals(setOf(FolderLock.NAME), left.map { it.name }.toSet())
        }

    @Test
    fun `a second opening shares the model, and one with other options is refused`() =
        runBlocking {
            val first = open()
            assertSame(first, open())
            assertFailsWith<ConfigException> { open(options().copy(test = 0.5)) }
            first.close()
            first.remember("see you")
            first.close()
            assertFailsWith<StateException> { first.remember("see you") }
            assertFailsWith<StateException> { first.suggest("see you") }
            Unit
        }

    @Test
    fun `another process that has it open is named`() =
        runBlocking {
            val home = folder.resolve("model").also { it.toFile().mkdirs() }
            FolderLock.take(home, 0).use {
                assertTrue("another process" in assertFailsWith<StateException> { open() }.message)
            }
        }

    @Test
    fun `a bundle that cannot be opened leaves nothing open`() =
        runBlocking {
            val damaged = folder.resolve("damaged.pflb")
            val bytes = bundles.resolve("tiny.pflb").readBytes()
            damaged.writeBytes(bytes.copyOf(bytes.size / 2))
            val home = folder.resolve("model")
            assertFailsWith<BundleException> {
                PersonalModel.open(damaged, home, options()) { examples }
            }
            assertFalse(PersonalModel.isOpen(home))
            assertNotNull(open())
            Unit
        }

    @Test
    fun `what is not the model's own is neither opened nor erased`() =
        runBlocking {
            val precious = folder.resolve("photos/holiday.jpg")
            Files.createDirectories(precious.parent)
            precious.writeBytes(ByteArray(3))
            val error = assertFailsWith<ConfigException> { open(home = precious.parent) }
            assertTrue("holiday.jpg" in error.message, error.message)
            assertFailsWith<StateException> { PersonalModel.erase(precious.parent) }
            assertEquals(listOf("holiday.jpg"), precious.parent.listDirectoryEntries().map { it.name })
            val file = assertFailsWith<UnwritableException> { open(home = precious) }
            assertTrue("is a file, not a folder" in file.message, file.message)
        }

    @Test
    fun `an idle engine is closed`() =
        runBlocking {
            val model = open()
            model.suggest("see you")
            assertEquals(0, engine.open)
            model.suggest("see you")
            assertEquals(2, engine.openings)
            val patient = open(options().copy(engineIdleMs = 3_600_000), home = folder.resolve("patient"))
            patient.suggest("see you")
            patient.suggest("see you")
            assertEquals(3, engine.openings)
            assertTrue(patient.status().engineOpen)
        }

    @Test
    fun `a new version of the bundle keeps what was learned, another model is refused or set aside`() =
        runBlocking {
            val model = open()
            learn(model)
            model.personalize()
            val words = model.learnedWords()
            val state = model.folder.resolve("state")
            val id = model.model
            model.close()
            // as if it had been learned with the version before
            PersonalStateStore(state, id.copy(version = "0")).also { it.carryOver(sameWeights = true, discard = false) }
            val again = open()
            assertEquals(words, again.learnedWords())
            again.close()

            val foreign = PersonalStateStore(state, id).load().state!!
            PersonalStateStore(state, ModelId(id.name, id.version, "0".repeat(64))).also {
                it.carryOver(sameWeights = false, discard = true)
                it.save(foreign)
            }
            val error = assertFailsWith<StateException> { open() }
            assertTrue("belongs to" in error.message)
            val fresh = open(options().copy(discardOtherState = true))
            assertEquals(emptyList(), fresh.learnedWords())
            assertEquals(COUNT, fresh.status().examples)
            assertNull(fresh.status().last)
            assertIs<PersonalizeResult.Adopted>(fresh.personalize())
            Unit
        }

    private companion object {
        const val NOW = 1_700_000_000.0
        const val COUNT = 30
        const val STOP_AT = 5L
        val SAID = listOf("see you at the zorp tonight", "the zorp is late again", "ok see you there")
    }
}
