package io.pflmobile.core.device

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.conformance.text
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.openSession
import io.pflmobile.core.errors.UnreachableException
import io.pflmobile.core.state.ModelId
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonPrimitive
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Timeout
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Path
import java.util.concurrent.CopyOnWriteArrayList
import kotlin.io.path.exists
import kotlin.io.path.readText
import kotlin.io.path.writeText
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertIs
import kotlin.test.assertNotNull
import kotlin.test.assertTrue

/** Rounds of the real `pfl serve`, in which devices of Kotlin and of Python take part together. */
@Timeout(180)
class FederationTest {
    @TempDir
    lateinit var folder: Path

    private val bundle = Path.of(checkNotNull(System.getProperty("bundles"))).resolve("federated.pflb")

    @BeforeEach
    fun python() {
        PythonProgram.needed()
        assertTrue(bundle.exists(), "run `python android/desktop.py`")
    }

    private fun serve(privacy: String): PythonProgram {
        val config = folder.resolve("federation.json")
        config.writeText(
            """{"rounds": {"cohort": 3, "minimum": 3, "total": 2, "retry_s": 0.1, "deadline_s": 100}, "privacy": $privacy}""",
        )
        val address = arrayOf("--port", "0", "--open-enrolment", "--dashboard", "off", "--data", folder.resolve("server").toString())
        return PythonProgram.pfl(folder, "serve", bundle.toString(), "--json", "--config", config.toString(), *address)
    }

    /** A device of Python on rows of its own. */
    private fun pythonDevice(
        url: String,
        vararg more: String,
    ): PythonProgram {
        val rows = folder.resolve("rows.npz").toString()
        val write =
            "import sys, numpy as np; x = np.random.default_rng(5).normal(size=(40, 6)).astype('f4'); " +
                "np.savez(sys.argv[1], x=x, labels=x[:, :4].argmax(1), weight=np.ones(40, 'f4'), user=np.array(['ann'] * 40)); " +
                "print('{'); print('}')"
        PythonProgram.start(folder, write, rows).use { assertEquals(0, it.wait(60)) }
        val who = arrayOf("--data", rows, "--user", "ann", "--state", folder.resolve("ann").toString(), "--engine", "onnxruntime")
        return PythonProgram.pfl(folder, "device", "--server", url, "--bundle", bundle.toString(), *who, "--json", *more)
    }

    private class Taken(
        val summary: Summary,
        val events: List<Event>,
        val newest: Event.Measured,
    )

    private suspend fun <T> device(
        name: String,
        url: String,
        policy: PrivacyPolicy,
        patienceS: Double? = 60.0,
        use: suspend (Device, DeviceFolder, List<Event>) -> T,
    ): T =
        Bundle.open(bundle).use { opened ->
            openSession(opened, listOf(OnnxRuntimeEngine), trusted = true).use { session ->
                val model = Model.open(opened, session)
                DeviceFolder(folder.resolve(name), model.id).use { kept ->
                    Client(url, Backoff(firstS = 0.05, mostS = 0.5), timeoutS = 20.0).use { client ->
                        val events = CopyOnWriteArrayList<Event>()
                        val found =
                            Device(
                                model,
                                largestOfFour(name.hashCode().toLong()),
                                kept,
                                client,
                                policy,
                                patienceS = patienceS,
                                onEvent = events::add,
                            )
                        use(found, kept, events)
                    }
                }
            }
        }

    private suspend fun toTheEnd(
        name: String,
        url: String,
        policy: PrivacyPolicy,
    ): Taken = device(name, url, policy) { found, _, events -> Taken(found.run(), events, found.measure()) }

    private fun <T> served(
        privacy: String,
        use: (String) -> T,
    ): T = serve(privacy).use { server -> use(text(server.json().getValue("url"))) }

    private fun checkEnd(taken: Taken) {
        assertEquals(Ended.DONE, taken.summary.ended)
        assertEquals(listOf(0, 0), listOf(taken.summary.dropped, taken.summary.declined.size))
        assertEquals(2L, taken.newest.version)
        assertTrue(taken.events.count { it is Event.Reported } >= 1)
        assertTrue(taken.summary.bytesUp > 0 && taken.summary.bytesDown > 0)
    }

    @Test
    fun `private rounds of Kotlin and Python, with one device killed in the middle of its upload`() =
        served(GAUSSIAN) { url ->
            val port = url.substringAfterLast(':').toInt()
            CuttingProxy(port, keep = 700).use { network ->
                pythonDevice(url).use { python ->
                    val (one, other) =
                        runBlocking(Dispatchers.Default) {
                            coroutineScope {
                                listOf(
                                    async { toTheEnd("one", url, PrivacyPolicy()) },
                                    async { killed(network) },
                                ).awaitAll()
                            }
                        }
                    checkEnd(one)
                    checkEnd(other)
                    assertEquals(2, one.summary.rounds)
                    assertEquals(2, other.summary.rounds, "the update that was cut off counts with those of the second process")
                    assertIs<Event.Uploaded>(other.events.first { it !is Event.Joined }, "first of all it sends what waited")
                    assertEquals(
                        2,
                        python
                            .json()
                            .getValue("rounds")
                            .jsonPrimitive.int,
                    )
                    assertEquals(0, python.wait(60))
                }
                checkFolders(url)
            }
        }

    /** Folders of Kotlin go on in Python, and back. */
    private fun checkFolders(url: String) {
        val events = folder.resolve("events.jsonl")
        val other = arrayOf("--state", folder.resolve("one").toString(), "--events", events.toString())
        pythonDevice(url, *other).use { python ->
            val found = python.json()
            assertEquals("done", text(found.getValue("ended")))
            assertEquals(0, python.wait(60))
        }
        assertTrue("\"event\": \"joined\"" in events.readText() && "\"again\": true" in events.readText(), events.readText())
        Bundle.open(bundle).use { opened ->
            DeviceFolder(folder.resolve("ann"), ModelId.of(opened.manifest), "ann").use { kept ->
                assertTrue(kept.enrolled && kept.waiting == 0)
                kept.personal.load()
            }
        }
    }

    /** A device whose network ends in the middle of its first upload, and that a second process goes on with. */
    private suspend fun killed(network: CuttingProxy): Taken {
        device("other", network.address, PrivacyPolicy(), patienceS = 0.0) { found, kept, _ ->
            val error = assertFailsWith<UnreachableException> { found.run() }
            assertTrue(network.cut, error.stackTraceToString())
            assertEquals(1, kept.waiting)
            assertNotNull(kept.personal.load())
        }
        network.open()
        return toTheEnd("other", network.address, PrivacyPolicy())
    }

    @Test
    fun `rounds that are not private need everybody's word`() =
        served(NONE) { url ->
            runBlocking(Dispatchers.Default) {
                val refusing = device("one", url, PrivacyPolicy()) { found, _, _ -> found.run() }
                assertEquals(Ended.PRIVACY, refusing.ended)
                assertEquals(mapOf("privacy" to 1), refusing.declined)
                val taken =
                    pythonDevice(url, "--allow-no-privacy").use { python ->
                        val both =
                            coroutineScope {
                                listOf("two", "three").map { async { toTheEnd(it, url, PrivacyPolicy(require = false)) } }.awaitAll()
                            }
                        assertEquals(
                            2,
                            python
                                .json()
                                .getValue("rounds")
                                .jsonPrimitive.int,
                        )
                        both
                    }
                taken.forEach { checkEnd(it) }
                assertEquals(listOf(2, 2), taken.map { it.summary.rounds })
                val (first, second) = taken.map { it.newest.shared.getValue("loss") }
                assertTrue(first.isFinite() && second.isFinite() && first != second)
            }
        }

    private companion object {
        const val GAUSSIAN =
            """{"mechanism": "gaussian", "clip_norm": 0.5, "noise_multiplier": 4.0, "cohort": 3, "rounds": 2, "delta": 1e-6}"""
        const val NONE = """{"mechanism": "none", "clip_norm": 10, "cohort": 3, "rounds": 2}"""
    }
}
