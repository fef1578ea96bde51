package io.pflmobile.core.personal

import io.pflmobile.core.device.PythonProgram
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.files.FullDisk
import io.pflmobile.core.files.RealDisk
import io.pflmobile.core.local.ExampleStore
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Timeout
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Path
import kotlin.io.path.exists
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertNull
import kotlin.test.assertSame
import kotlin.test.assertTrue

/** What goes wrong around a personal model: disks, other processes, and apps that change their mind. */
@Timeout(60)
class PersonalModelFaultsTest {
    @TempDir
    lateinit var folder: Path

    private val bundles = Path.of(System.getProperty("bundles"))
    private val home get() = folder.resolve("model")
    private val engine = CountingEngine()
    private val examples = InMemoryExamples()
    private val models = ArrayList<PersonalModel>()
    private val options = ModelOptions(trusted = true, engines = listOf(engine), engineIdleMs = 0)

    private suspend fun open(
        room: Int? = null,
        examples: (Path) -> ExampleStore = { this.examples },
    ): PersonalModel =
        PersonalModel
            .open(
                bundles.resolve("tiny.pflb"),
                home,
                options,
                { 1.0 },
                Dispatchers.Default,
                if (room == null) RealDisk else FullDisk(room),
                examples,
            ).also { models += it }

    private suspend fun learn(model: PersonalModel) = repeat(30) { model.remember(SAID[it % SAID.size]) }

    @AfterEach
    fun close() =
        runBlocking {
            models.forEach { it.close() }
            assertEquals(0, engine.open)
            assertFalse(PersonalModel.isOpen(home))
        }

    @Test
    fun `an erasure that one fault stops erases the rest, and the next one all`() =
        runBlocking {
            val model = open()
            learn(model)
            assertIs<PersonalizeResult.Adopted>(model.personalize())
            val fault = StateException("the database does not answer", "try again")
            examples.fault = fault
            assertSame(fault, assertFailsWith<StateException> { model.eraseEverything() })
            val half = model.status()
            assertEquals(listOf<Any?>(0, 0, 30, null), listOf(half.version, half.words, half.examples, half.last))
            examples.fault = null
            model.eraseEverything()
            assertEquals(0, model.status().examples)
        }

    @Test
    fun `without space for a new state the old one serves, nothing is lost, and the next training does it`() =
        runBlocking {
            val first = open()
            learn(first)
            assertIs<PersonalizeResult.Adopted>(first.personalize())
            val suggested = first.suggest("see you at the")
            repeat(30) { first.remember("see you at the blick tonight") }
            first.close()

            val full = open(room = 500) // a note of what it began with, and no more
            assertIs<StorageFullException>(assertIs<PersonalizeResult.Failed>(full.personalize()).error)
            assertEquals(listOf(1, 60), full.status().let { listOf(it.version, it.examples) })
            assertEquals(suggested, full.suggest("see you at the"))
            full.close()

            val again = open()
            assertIs<PersonalizeResult.Adopted>(again.personalize())
            assertEquals(2, again.status().version)
        }

    @Test
    fun `opening that is cancelled leaves nothing open`() =
        runBlocking {
            val job =
                launch(Dispatchers.Default) {
                    open {
                        cancel() // the screen that asked is gone, while the bundle is being read
                        examples
                    }
                }
            job.join()
            assertTrue(job.isCancelled)
            assertFalse(PersonalModel.isOpen(home))
            assertEquals(1, examples.closings)
        }

    @Test
    fun `closing goes on where the coroutine that asked for it was cancelled`() =
        runBlocking {
            val model = open()
            launch(Dispatchers.Default, start = CoroutineStart.UNDISPATCHED) {
                cancel()
                model.close()
            }.join()
            assertFalse(PersonalModel.isOpen(home))
            assertEquals(1, examples.closings)
        }

    @Test
    fun `a folder that another process has open is neither opened nor erased`() =
        runBlocking {
            PythonProgram.needed()
            open().close()
            val hold =
                "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print('{'); print('}', flush=True); " +
                    "sys.stdin.read()"
            PythonProgram.start(folder, hold, home.resolve(".lock").toString()).use { other ->
                other.json()
                assertTrue("another process" in assertFailsWith<StateException> { open() }.message)
                assertTrue("another process" in assertFailsWith<StateException> { PersonalModel.erase(home) }.message)
                assertTrue(home.resolve("state").exists())
            }
            val model = open()
            assertFailsWith<StateException> { PersonalModel.erase(home) }
            model.close()
            PersonalModel.erase(home)
            assertFalse(home.exists())
            PersonalModel.erase(home)
        }

    @Test
    fun `a clock that jumps does not matter to what was learned`() =
        runBlocking {
            var now = 2e9
            val model =
                PersonalModel
                    .open(bundles.resolve("tiny.pflb"), home, options, { now }, Dispatchers.Default, RealDisk) { examples }
                    .also { models += it }
            assertNull(model.status().last)
            learn(model)
            assertIs<PersonalizeResult.Adopted>(model.personalize())
            now = 1.0
            repeat(10) { model.remember("see you at the blick tonight") }
            assertFalse(model.personalize() is PersonalizeResult.Failed)
            assertEquals(1.0, model.status().last?.at)
            assertEquals(model.versions().map { it.version }.sorted(), model.versions().map { it.version })
            assertTrue(model.versions().last().current)
        }

    private companion object {
        val SAID = listOf("see you at the zorp tonight", "the zorp is late again", "ok see you there")
    }
}
