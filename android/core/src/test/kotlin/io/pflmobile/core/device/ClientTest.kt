package io.pflmobile.core.device

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.NotTheAggregatorException
import io.pflmobile.core.errors.OtherProtocolException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.ProtocolException
import io.pflmobile.core.errors.RedirectedException
import io.pflmobile.core.errors.ServerProblemException
import io.pflmobile.core.errors.TlsException
import io.pflmobile.core.errors.TooLargeOnTheWayException
import io.pflmobile.core.errors.UnreachableException
import io.pflmobile.core.protocol.BundleId
import io.pflmobile.core.protocol.CheckIn
import io.pflmobile.core.protocol.CheckInStatus
import io.pflmobile.core.protocol.Decline
import io.pflmobile.core.protocol.DeclineReason
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.ExperimentalCoroutinesApi
import kotlinx.coroutines.async
import kotlinx.coroutines.test.currentTime
import kotlinx.coroutines.test.runTest
import kotlinx.coroutines.withContext
import mockwebserver3.MockResponse
import mockwebserver3.MockWebServer
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.BeforeEach
import java.io.IOException
import java.net.InetAddress
import java.net.ServerSocket
import java.util.concurrent.TimeUnit
import kotlin.concurrent.thread
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNull
import kotlin.test.assertTrue

@OptIn(ExperimentalCoroutinesApi::class)
class ClientTest {
    private val server = MockWebServer()
    private lateinit var client: Client

    @BeforeEach
    fun start() {
        server.start()
        client = client(server)
    }

    @AfterEach
    fun end() {
        client.close()
        server.close()
    }

    private fun told(vararg answers: MockResponse.Builder) = server.enqueue(*answers)

    private fun asked() = server.takeRequest(0, TimeUnit.SECONDS)

    @Test
    fun `a check-in is asked in JSON, and what a later server adds is ignored`() =
        runTest {
            client.credential = "secret"
            told(answer("""{"status":"wait","task":null,"retry_after_s":3.5,"reason":"full","more":{"a":1}}"""))
            val found = client.checkIn(CheckIn(BundleId("k", "1", "ab".repeat(32)), 120))
            assertEquals(CheckInStatus.WAIT to 3.5, found.status to found.retryAfterS)
            val request = asked()!!
            assertEquals("POST /v1/check-in", "${request.method} ${request.target}")
            assertEquals("Bearer secret", request.headers["Authorization"])
            assertEquals("identity", request.headers["Accept-Encoding"])
            assertEquals("application/json", request.headers["Content-Type"])
            assertTrue("\"examples\":120" in request.body!!.utf8())
            assertEquals(request.bodySize, client.traffic.up.get())
        }

    @Test
    fun `nothing is sent along before there is a credential`() =
        runTest {
            told(answer("""{"challenge":"c","expires":1.5}"""))
            assertEquals("c", client.challenge().challenge)
            assertNull(asked()!!.headers["Authorization"])
        }

    @Test
    fun `an aggregator that is busy is asked again, no sooner than it says`() =
        runTest {
            told(problem("unavailable", 503, "Retry-After" to "7"), answer("""{"challenge":"c","expires":1}"""))
            client.challenge()
            assertTrue(currentTime >= 7000, "$currentTime ms")
        }

    @Test
    fun `what is between is not believed for longer than a minute`() =
        runTest {
            repeat(QUICK.attempts) { told(stranger("busy", 502, "Retry-After" to "999")) }
            val error = assertFailsWith<UnreachableException> { client.challenge() }
            assertEquals(60.0, error.retryAfterS)
            assertEquals(QUICK.attempts, server.requestCount)
            assertTrue(!client.reached)
        }

    private inline fun <reified T : PflException> ends(answer: MockResponse.Builder): T {
        val before = server.requestCount
        told(answer)
        lateinit var found: T
        runTest { found = assertFailsWith<T> { client.decline("0".repeat(32), Decline(DeclineReason.CANCELLED)) } }
        assertEquals(before + 1, server.requestCount, "it was tried again")
        return found
    }

    @Test
    fun `a sign-in page, a redirect and other strangers end the try`() {
        ends<NotTheAggregatorException>(stranger("<html>sign in</html>", 200, "Content-Type" to "text/html; charset=utf-8")).let {
            assertEquals("NotTheAggregatorError", it.code)
            assertTrue("'text/html'" in it.message, it.message)
        }
        ends<NotTheAggregatorException>(stranger("{}", 404, "Content-Type" to "application/json"))
        ends<NotTheAggregatorException>(stranger("", 407))
        ends<RedirectedException>(stranger("", 302, "Location" to "https://portal.example/?next=1")).let {
            assertTrue("https://portal.example/?next=1" in it.message, it.message)
        }
        ends<RedirectedException>(stranger("", 301, "Location" to "https://else.example/v1/tasks/${"0".repeat(32)}/decline")).let {
            assertTrue("https://else.example" in it.mend, it.mend)
        }
        ends<TooLargeOnTheWayException>(stranger("", 413)).let { assertTrue("22 bytes" in it.message, it.message) }
        ends<OtherProtocolException>(stranger("{}", 200, "PFL-Protocol" to "2")).let { assertTrue("app" in it.mend) }
        ends<ProtocolException>(answer("{}", 200, "Content-Encoding" to "gzip"))
        assertTrue(!client.reached)
    }

    @Test
    fun `a problem is told by its code, and by its status where it did not arrive whole`() {
        val error = ends<ServerProblemException>(problem("round-closed", 410))
        assertEquals(listOf("round-closed", "410", "wait"), listOf(error.code, "${error.status}", error.mend))
        assertTrue("it is round-closed" in error.message && !error.passing)
        assertEquals("http-409", ends<ServerProblemException>(answer("{\"code\":", 409)).code)
        assertTrue(client.reached)
    }

    @Test
    fun `answers that are cut off are asked for again`() =
        runTest {
            val whole = """{"challenge":"c","expires":1}"""
            told(answer(whole).cut(), answer(whole.dropLast(3)), answer(whole))
            assertEquals("c", client.challenge().challenge)
            assertEquals(3, server.requestCount)
        }

    @Test
    fun `JSON of another protocol ends the try`() =
        runTest {
            told(answer("""{"challenge":7}"""))
            assertFailsWith<ProtocolException> { client.challenge() }
            assertEquals(1, server.requestCount)
        }

    @Test
    fun `no JSON is as large as that`() =
        runTest {
            told(answer(ByteArray(MOST_ANSWER_BYTES + 1) { ' '.code.toByte() }))
            assertFailsWith<ProtocolException> { client.challenge() }
        }

    @Test
    fun `progress counts failures anew`() =
        runTest {
            var calls = 0L
            assertFailsWith<UnreachableException> {
                client.retrying({ minOf(calls, 5L) }) {
                    calls++
                    throw UnreachableException("away", "wait")
                }
            }
            assertEquals(4L + QUICK.attempts, calls)
        }

    @Test
    fun `a server that is not there is unreachable`() =
        runTest {
            server.close()
            val error = assertFailsWith<UnreachableException> { client.challenge() }
            assertEquals("UnreachableError", error.code)
        }

    @Test
    fun `paths to another place are refused`() =
        runTest {
            for (path in listOf("//evil.example/x", "http://evil.example/", "", "x")) {
                assertFailsWith<ProtocolException>(path) { client.exchange("GET", path) {} }
            }
            assertEquals(0, server.requestCount)
        }

    @Test
    fun `addresses that are none, or not safe, are refused`() {
        val bad =
            listOf(
                "",
                "x",
                "ftp://a",
                "https://",
                "https://a b",
                "https://a/?x=1",
                "https://a/#x",
                "https://u:p@a",
                "http://a",
                "https://a\\b",
            )
        for (address in bad) assertFailsWith<ConfigException>(address) { Client(address).close() }
        for (address in listOf("https://a.example/", "http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1")) Client(address).close()
        Client("http://a", allowHttp = true).use { assertEquals("http://a", it.server) }
        Client("https://a.example/pfl/").use { assertEquals("https://a.example/pfl", it.server) }
    }

    /** A port that answers everybody with [words]. */
    private fun speaking(
        words: String,
        use: (Int) -> Unit,
    ) {
        val socket = ServerSocket(0, 5, InetAddress.getByName("127.0.0.1"))
        val answering =
            thread {
                while (!socket.isClosed) {
                    try {
                        socket.accept().use {
                            it.getInputStream().read()
                            it.getOutputStream().write(words.encodeToByteArray())
                        }
                    } catch (_: IOException) {
                        continue
                    }
                }
            }
        socket.use { use(it.localPort) }
        answering.join()
    }

    @Test
    fun `a port without TLS is told`() =
        speaking("HTTP/1.1 400 Bad Request\r\n\r\n") { port ->
            Client("https://127.0.0.1:$port", QUICK, timeoutS = 5.0).use { found ->
                runTest { assertFailsWith<TlsException> { found.challenge() } }
            }
        }

    @Test
    fun `a port without HTTP is told`() =
        speaking("SSH-2.0-x\r\n") { port ->
            Client("http://127.0.0.1:$port", QUICK, timeoutS = 5.0).use { found ->
                runTest { assertFailsWith<NotTheAggregatorException> { found.challenge() } }
            }
        }

    @Test
    fun `a cancelled coroutine ends its request`() =
        runTest {
            told(answer("""{"challenge":"c","expires":1}""").headersDelay(1, TimeUnit.MINUTES))
            val began = System.nanoTime()
            val asking = async(Dispatchers.Default) { client.challenge() }
            withContext(Dispatchers.IO) { server.takeRequest() }
            asking.cancel()
            assertFailsWith<CancellationException> { asking.await() }
            assertTrue(System.nanoTime() - began < 4_000_000_000, "it waited for the answer")
        }
}
