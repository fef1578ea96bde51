package io.pflmobile.core.device

import io.pflmobile.core.errors.DeviceException
import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.errors.NotTheAggregatorException
import io.pflmobile.core.errors.ServerProblemException
import io.pflmobile.core.errors.UnreachableException
import io.pflmobile.core.local.Examples
import io.pflmobile.core.local.Toy
import io.pflmobile.core.privacy.Clipping
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.tensors.FloatTensor
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.ExperimentalCoroutinesApi
import kotlinx.coroutines.async
import kotlinx.coroutines.cancel
import kotlinx.coroutines.test.TestScope
import kotlinx.coroutines.test.UnconfinedTestDispatcher
import kotlinx.coroutines.test.runTest
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long
import mockwebserver3.MockWebServer
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Path
import java.util.concurrent.CopyOnWriteArrayList
import kotlin.io.path.exists
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertIs
import kotlin.test.assertTrue

/** A device and an aggregator that is told what to answer; the toy model trains. */
@OptIn(ExperimentalCoroutinesApi::class)
class DeviceTest {
    @TempDir
    lateinit var folder: Path

    private val id = ModelId.of("toy", "1", Toy.TABLE)
    private val server = MockWebServer()
    private var fake = FakeAggregator(id)
    private val events = CopyOnWriteArrayList<Event>()
    private var now = 1000.0

    @BeforeEach
    fun start() {
        server.dispatcher = fake
        server.start()
    }

    @AfterEach
    fun end() = server.close()

    private fun federation(
        rounds: Int,
        change: FakeAggregator.() -> Unit = {},
    ) {
        fake = FakeAggregator(id, rounds).apply(change)
        server.dispatcher = fake
    }

    private fun zeros(shape: Int) = FloatTensor(FloatArray(shape), listOf(shape))

    private val rows =
        mapOf(
            "x" to FloatTensor(FloatArray(2 * COUNT) { 1f + it % 2 }, listOf(COUNT, 2)),
            "y" to FloatTensor(FloatArray(3 * COUNT) { -1f + it % 3 }, listOf(COUNT, 3)),
            "weight" to FloatTensor(FloatArray(COUNT) { 1f }, listOf(COUNT)),
        )

    private suspend fun <T> device(
        dispatcher: CoroutineDispatcher,
        policy: PrivacyPolicy = PrivacyPolicy(),
        patienceS: Double? = 600.0,
        attest: Attest? = null,
        onEvent: (Event) -> Unit = {},
        use: suspend (Device, DeviceFolder) -> T,
    ): T {
        val model = Model(id, Toy(), Toy.TABLE, mapOf("a" to zeros(2), "b" to zeros(3)))
        return DeviceFolder(folder.resolve("device"), id).use { kept ->
            client(server).use { client ->
                val found =
                    Device(
                        model,
                        Examples.Arrays(rows),
                        kept,
                        client,
                        policy,
                        0.2,
                        DeviceFacts("test", charging = false),
                        "",
                        null,
                        attest,
                        patienceS,
                        {
                            events += it
                            onEvent(it)
                        },
                        { now },
                        null,
                        dispatcher,
                    )
                use(found, kept)
            }
        }
    }

    private suspend fun TestScope.run(
        policy: PrivacyPolicy = PrivacyPolicy(),
        patienceS: Double? = 600.0,
    ): Summary = device(UnconfinedTestDispatcher(testScheduler), policy, patienceS) { found, _ -> found.run() }

    private inline fun <reified T : Event> told(): List<T> = events.filterIsInstance<T>()

    @Test
    fun `rounds from enrolment to the last report`() =
        runTest {
            federation(2)
            val summary = run()
            assertEquals(listOf(Ended.DONE, 2, 0), listOf(summary.ended, summary.rounds, summary.dropped))
            val kinds = events.filterNot { it is Event.Stepped }.map { it.javaClass.simpleName }
            val round = listOf("Assigned", "Downloaded", "Finished", "Uploaded", "Reported")
            assertEquals(listOf("Joined") + round + round, kinds)
            assertEquals(listOf(false, true), told<Event.Downloaded>().map { it.cached })
            assertEquals(2 * 12, told<Event.Stepped>().size)
            val (head, values) = fake.update(1)
            assertEquals(listOf(1L, 0L, 12L), listOf(head.round, head.version, head.steps))
            assertTrue(head.clipped && head.examples > 0)
            assertTrue(Clipping.norm(values) in 0.0499..0.05, "${values.toList()}")
            val report = fake.sent("/evaluation").first().jsonObject
            assertEquals(setOf("global", "personalized", "adopted"), report.keys)
            val facts = fake.sent("/check-in").first().jsonObject
            assertEquals(16L, facts.getValue("examples").jsonPrimitive.long)
            assertEquals(
                "false",
                facts
                    .getValue("facts")
                    .jsonObject
                    .getValue("charging")
                    .jsonPrimitive.content,
            )
            device(UnconfinedTestDispatcher(testScheduler)) { found, kept ->
                assertEquals(0, kept.waiting)
                assertTrue(kept.enrolled && kept.personal.current > 0)
                assertEquals(2L, found.measure().version)
                assertTrue(told<Event.Joined>().last().again)
                found.leave()
                assertTrue(!kept.enrolled && kept.personal.current > 0)
            }
            assertEquals("DELETE /v1/devices/me", fake.requests.last())
            assertEquals(1, fake.requests.count { it == "POST /v1/devices" })
        }

    @Test
    fun `nothing leaves the device where nothing protects it`() =
        runTest {
            federation(2) { privacy = FakeAggregator.NONE }
            val summary = run()
            assertEquals(Ended.PRIVACY, summary.ended)
            assertEquals(mapOf("privacy" to 1), summary.declined)
            assertTrue(fake.requests.none { it.startsWith("PUT") || "/sets/" in it })
            assertEquals("{\"reason\":\"privacy\"}", fake.sent("/decline").single().toString())
            assertEquals(Ended.DONE, run(PrivacyPolicy(require = false)).ended)
            assertEquals(1, fake.updates.size)
        }

    @Test
    fun `noise of the device is counted, and hides what the update was`() =
        runTest {
            federation(1) { privacy = FakeAggregator.LOCAL }
            run()
            val (head, values) = fake.update(1)
            assertTrue(!head.clipped && Clipping.norm(values) > 0)
            assertTrue(fake.requests.none { it.endsWith("/evaluation") })
            device(UnconfinedTestDispatcher(testScheduler)) { _, kept ->
                assertEquals(1L, kept.sentUnderOwnNoise)
                assertTrue(kept.ownEpsilon(1e-6) > 1)
            }
        }

    @Test
    fun `an update that cannot be sent waits, and goes out first of all`() =
        runTest {
            fake.instead = { if (it.method == "PUT") stranger("", 502).build() else null }
            assertFailsWith<UnreachableException> { run(patienceS = 0.0) }
            assertTrue(told<Event.Finished>().size == 1 && told<Event.Uploaded>().isEmpty())
            fake.instead = { null }
            events.clear()
            val summary = run()
            assertEquals(1, summary.rounds)
            assertIs<Event.Uploaded>(events[1])
            assertTrue(told<Event.Finished>().isEmpty(), "it was trained again")
        }

    @Test
    fun `what was accepted without an answer is not sent twice`() =
        runTest {
            var lost = true
            fake.instead = { request ->
                if (request.method == "PUT" && lost) {
                    lost = false
                    fake.updates[fake.task(1)] = request.body!!.toByteArray()
                    answer("{\"status\":").build()
                } else {
                    null
                }
            }
            device(UnconfinedTestDispatcher(testScheduler)) { found, kept ->
                assertEquals(1, found.run(rounds = 1).rounds)
                assertEquals(0, kept.waiting)
            }
            assertTrue(told<Event.Uploaded>().single().duplicate)
        }

    @Test
    fun `an update of a round that is over is dropped, and the next task is done`() =
        runTest {
            federation(2)
            var refusals = 0
            fake.instead = { if (it.method == "PUT" && refusals++ == 0) problem("round-closed", 410).build() else null }
            val summary = run()
            assertEquals(listOf(2, 1), listOf(summary.rounds, summary.dropped))
            assertTrue(told<Event.Dropped>().single().why.startsWith("round-closed"))
        }

    @Test
    fun `a device that is revoked ends, and keeps what waits`() =
        runTest {
            fake.instead = { if (it.method == "PUT") problem("device-revoked", 403).build() else null }
            assertEquals("device-revoked", assertFailsWith<ServerProblemException> { run() }.code)
            device(UnconfinedTestDispatcher(testScheduler)) { _, kept -> assertEquals(1, kept.waiting) }
        }

    @Test
    fun `an update whose time is over is dropped, and one that a stricter policy refuses`() =
        runTest {
            fake.instead = { if (it.method == "PUT") stranger("", 502).build() else null }
            assertFailsWith<UnreachableException> { run(patienceS = 0.0) }
            fake.instead = { null }
            assertEquals(1, run(PrivacyPolicy(onlyLocal = true)).dropped)
            assertTrue("no noise of its own" in told<Event.Dropped>().single().why)

            federation(1)
            fake.instead = { if (it.method == "PUT") stranger("", 502).build() else null }
            assertFailsWith<UnreachableException> { run(patienceS = 0.0) }
            fake.instead = { null }
            now += 61
            run()
            assertEquals("its task has expired", told<Event.Dropped>().last().why)
        }

    @Test
    fun `after a clock jumped back the server says whether the time of an update is over`() =
        runTest {
            fake.instead = { if (it.method == "PUT") stranger("", 502).build() else null }
            assertFailsWith<UnreachableException> { run(patienceS = 0.0) }
            now -= 86_400
            var refusals = 0
            fake.instead = { if (it.method == "PUT" && refusals++ == 0) problem("task-expired", 410).build() else null }
            val summary = run()
            assertEquals(listOf(1, 1), listOf(summary.rounds, summary.dropped))
            assertTrue(told<Event.Dropped>().single().why.startsWith("task-expired"))
        }

    @Test
    fun `a device that left already can forget its credential`() =
        runTest {
            run()
            fake.instead = { if (it.method == "DELETE") problem("unauthorized", 401).build() else null }
            device(UnconfinedTestDispatcher(testScheduler)) { found, kept ->
                found.leave()
                assertTrue(!kept.enrolled)
            }
        }

    @Test
    fun `a device does not leave at another server`() =
        runTest {
            run()
            val model = Model(id, Toy(), Toy.TABLE, mapOf("a" to zeros(2), "b" to zeros(3)))
            DeviceFolder(folder.resolve("device"), id).use { kept ->
                Client("http://127.0.0.1:1", QUICK).use { client ->
                    assertFailsWith<DeviceFolderException> { Device(model, Examples.Arrays(rows), kept, client).leave() }
                    assertEquals(null, client.credential)
                }
                assertTrue(kept.enrolled)
            }
        }

    @Test
    fun `an aggregator that asks for time gets it after the last try too`() =
        runTest {
            fake.instead = { if (it.target == "/v1/check-in") problem("unavailable", 503, "Retry-After" to "7").build() else null }
            assertFailsWith<ServerProblemException> {
                device(
                    UnconfinedTestDispatcher(testScheduler),
                    patienceS = 0.0,
                ) { found, _ -> found.run() }
            }
            var failures = 0
            fake.instead = {
                if (it.target == "/v1/check-in" && failures++ < QUICK.attempts) {
                    problem("unavailable", 503, "Retry-After" to "7").build()
                } else {
                    null
                }
            }
            assertEquals(1, run().rounds)
            assertTrue(told<Event.Offline>().single().seconds >= 7)
        }

    @Test
    fun `plans that send what they must not, or nothing, are declined`() =
        runTest {
            val personal = FakeAggregator.PLAN.replace("\"upload\": [\"role:shared\"]", "\"upload\": [\"role:personal\"]")
            val nothing = FakeAggregator.PLAN.replace("\"group\": [\"*\"]", "\"group\": [\"role:personal\"]")
            for (bad in listOf(personal, nothing, "{}", FakeAggregator.PLAN.replace("train", "dance"))) {
                federation(1) { plan = bad }
                assertEquals(mapOf("plan" to 1), run().declined, bad)
            }
            federation(1) { layout = """[{"name": "a", "shape": [2]}, {"name": "b", "shape": [3]}]""" }
            assertEquals(mapOf("plan" to 1), run().declined)
            assertTrue(fake.updates.isEmpty())
        }

    @Test
    fun `a federation of another model, and a folder of another server, are refused`() =
        runTest {
            fake.instead = {
                if (it.target == "/v1/federation") {
                    FakeAggregator(id.copy(version = "2")).dispatch(it)
                } else {
                    null
                }
            }
            assertFailsWith<DeviceException> { run() }
            fake.instead = { null }
            run()
            MockWebServer().use { other ->
                other.dispatcher = FakeAggregator(id)
                other.start()
                val model = Model(id, Toy(), Toy.TABLE, mapOf("a" to zeros(2), "b" to zeros(3)))
                DeviceFolder(folder.resolve("device"), id).use { kept ->
                    client(other).use { client ->
                        assertFailsWith<DeviceFolderException> { Device(model, Examples.Arrays(rows), kept, client).run() }
                        assertEquals(null, client.credential)
                    }
                }
            }
        }

    @Test
    fun `a verdict of the platform is bound to the challenge`() =
        runTest {
            federation(1) { attestation = """["play-integrity"]""" }
            assertFailsWith<DeviceException> { run() }
            val attest = Attest { challenge, kinds -> Attest.Verdict(kinds.single(), "for $challenge") }
            device(UnconfinedTestDispatcher(testScheduler), attest = attest) { found, _ -> found.run() }
            val sent = fake.sent("/v1/devices").single().jsonObject
            assertEquals("""{"kind":"play-integrity","challenge":"c1","verdict":"for c1"}""", sent.getValue("attestation").toString())
        }

    @Test
    fun `a sign-in page ends the run at first, and is waited for once the aggregator was heard`() =
        runTest {
            fake.instead = { stranger("<html>", 200, "Content-Type" to "text/html").build() }
            assertFailsWith<NotTheAggregatorException> { run() }
            var pages = 3
            fake.instead = { request ->
                val heard = request.target != "/v1/federation" || pages < 3
                if (heard && pages-- > 0) stranger("<html>", 200, "Content-Type" to "text/html").build() else null
            }
            assertEquals(1, run().rounds)
            assertTrue(told<Event.Offline>().isNotEmpty())
        }

    @Test
    fun `an address that is only in part the aggregator's ends the run`() =
        runTest {
            fake.instead = { if (it.target == "/v1/check-in") stranger("", 404).build() else null }
            assertFailsWith<NotTheAggregatorException> { run() }
            assertEquals(1, told<Event.Offline>().size)
        }

    @Test
    fun `a cancelled device stops within a step, and goes on later from its checkpoint`() =
        runTest {
            val stopped =
                async(Dispatchers.Default) {
                    device(
                        Dispatchers.Default,
                        onEvent = { if (it is Event.Stepped && it.step == 5L) coroutineContext.cancel() },
                    ) { found, _ -> found.run() }
                }
            assertFailsWith<CancellationException> { stopped.await() }
            assertEquals(5L, told<Event.Stepped>().last().step)
            assertTrue(folder.resolve("device/personal/checkpoint").exists())
            assertTrue(fake.declined.isEmpty() && fake.updates.isEmpty())
            events.clear()
            assertEquals(1, run().rounds)
            assertEquals(6L, told<Event.Stepped>().first().step)
        }

    private companion object {
        const val COUNT = 25
    }
}
