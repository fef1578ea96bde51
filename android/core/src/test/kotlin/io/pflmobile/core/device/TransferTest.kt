package io.pflmobile.core.device

import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.errors.ProtocolException
import io.pflmobile.core.errors.ServerProblemException
import io.pflmobile.core.errors.TooLargeOnTheWayException
import io.pflmobile.core.errors.UnreachableException
import io.pflmobile.core.files.hex
import io.pflmobile.core.protocol.Download
import io.pflmobile.core.protocol.UploadStatus
import kotlinx.coroutines.test.runTest
import mockwebserver3.Dispatcher
import mockwebserver3.MockResponse
import mockwebserver3.MockWebServer
import mockwebserver3.RecordedRequest
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Path
import java.security.MessageDigest
import java.util.concurrent.TimeUnit
import kotlin.io.path.createDirectory
import kotlin.io.path.exists
import kotlin.io.path.readBytes
import kotlin.io.path.writeBytes
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNull
import kotlin.test.assertTrue

class TransferTest {
    @TempDir
    lateinit var folder: Path

    private val server = MockWebServer()
    private lateinit var client: Client
    private val data = ByteArray(300_000) { (it * 7 + it / 256).toByte() }
    private val digest = hex(MessageDigest.getInstance("SHA-256").digest(data))
    private val what = Download(digest, data.size.toLong(), "/v1/sets/$digest")
    private val task = "0123456789abcdef".repeat(2)
    private val url = "/v1/tasks/$task/update"
    private val to get() = folder.resolve(digest)
    private val part get() = folder.resolve("$digest.part")

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

    private fun asked(): RecordedRequest = server.takeRequest(5, TimeUnit.SECONDS)!!

    private fun rest(from: Int) =
        answer(data.copyOfRange(from, data.size), 206, "Content-Range" to "bytes $from-${data.size - 1}/${data.size}")

    private fun check() {
        assertContentEquals(data, to.readBytes())
        assertTrue(!part.exists())
    }

    @Test
    fun `a set is downloaded`() =
        runTest {
            told(answer(data))
            download(client, what, to)
            check()
            assertNull(asked().headers["Range"])
            assertEquals(data.size.toLong(), client.traffic.down.get())
        }

    @Test
    fun `a download goes on where the connection broke`() =
        runTest {
            // What arrives of the half that is sent is not known before.
            server.dispatcher =
                object : Dispatcher() {
                    private var broken = false

                    override fun dispatch(request: RecordedRequest): MockResponse {
                        val range = request.headers["Range"]
                        if (range == null && !broken) return answer(data).cut().build().also { broken = true }
                        if (range == null) return answer(data).build()
                        assertEquals("\"$digest\"", request.headers["If-Range"])
                        return rest(range.removePrefix("bytes=").removeSuffix("-").toInt()).build()
                    }
                }
            download(client, what, to)
            check()
            assertEquals(2, server.requestCount)
        }

    @Test
    fun `what a killed process left is gone on with`() =
        runTest {
            part.writeBytes(data.copyOf(1234))
            told(rest(1234))
            download(client, what, to)
            check()
            assertEquals("bytes=1234-", asked().headers["Range"])
        }

    @Test
    fun `a file that has arrived whole is not asked for again`() =
        runTest {
            part.writeBytes(data)
            download(client, what, to)
            check()
            assertEquals(0, server.requestCount)
        }

    @Test
    fun `wrong bytes are thrown away, and all is asked for again`() =
        runTest {
            part.writeBytes(ByteArray(1234))
            told(rest(1234), answer(data))
            download(client, what, to)
            check()
            part.writeBytes(data + 1)
            told(answer(data))
            download(client, what, to)
            check()
        }

    @Test
    fun `a server without ranges sends all, and that is taken`() =
        runTest {
            part.writeBytes(ByteArray(1234))
            told(answer(data))
            download(client, what, to)
            check()
        }

    @Test
    fun `other ranges and more bytes than told are refused`() =
        runTest {
            part.writeBytes(data.copyOf(1234))
            told(answer(data.copyOfRange(1000, data.size), 206, "Content-Range" to "bytes 1000-299999/300000"))
            assertFailsWith<ProtocolException> { download(client, what, to) }
            told(answer(data + 1))
            part.writeBytes(ByteArray(0))
            assertFailsWith<ProtocolException> { download(client, what, to) }
            assertTrue(!to.exists())
        }

    @Test
    fun `bytes that are always wrong are given up`() =
        runTest {
            repeat(QUICK.attempts) { told(answer(ByteArray(data.size))) }
            assertFailsWith<UnreachableException> { download(client, what, to) }
            assertTrue(!to.exists() && !part.exists())
        }

    @Test
    fun `nothing is downloaded as nothing`() =
        runTest {
            val none = Download(hex(MessageDigest.getInstance("SHA-256").digest(ByteArray(0))), 0, "/v1/sets/x")
            download(client, none, folder.resolve("none"))
            assertEquals(0, folder.resolve("none").readBytes().size)
        }

    // -- uploads

    private fun file() = folder.resolve("update").also { it.writeBytes(data) }

    private fun accepted() = answer("""{"status":"accepted","task":"$task","received":${data.size},"duplicate":false}""")

    private fun has(
        bytes: Int,
        complete: Boolean = false,
    ) = answer("", 200, "Upload-Offset" to "$bytes", "Upload-Complete" to if (complete) "?1" else "?0")

    private fun assertSent(
        from: Int,
        request: RecordedRequest,
    ) {
        assertEquals("PUT", request.method)
        assertEquals("key", request.headers["Idempotency-Key"])
        assertEquals("$from", request.headers["Upload-Offset"])
        assertEquals("${data.size}", request.headers["Upload-Length"])
        assertEquals("application/vnd.safetensors", request.headers["Content-Type"])
        assertContentEquals(data.copyOfRange(from, data.size), request.body!!.toByteArray())
    }

    @Test
    fun `an update is sent whole, and nothing is asked before`() =
        runTest {
            told(accepted())
            val found = upload(client, url, file(), "key")
            assertEquals(UploadStatus.ACCEPTED to false, found.status to found.duplicate)
            assertSent(0, asked())
            assertEquals(data.size.toLong(), client.traffic.up.get())
        }

    @Test
    fun `an upload goes on where the connection broke`() =
        runTest {
            // The aggregator was heard, else the client would look at what else the port speaks.
            told(answer("""{"challenge":"c","expires":1}"""), silent(), has(100_000), accepted())
            client.challenge()
            upload(client, url, file(), "key")
            val (asking, sending) = List(server.requestCount) { asked() }.takeLast(2)
            assertEquals("HEAD $url", "${asking.method} ${asking.target}")
            assertSent(100_000, sending)
        }

    @Test
    fun `a lost answer is not a second update`() =
        runTest {
            told(accepted().cut(), has(data.size, complete = true))
            assertTrue(upload(client, url, file(), "key").duplicate)
            assertEquals(2, server.requestCount)
        }

    @Test
    fun `a process that was started again asks first`() =
        runTest {
            told(has(299_999), accepted())
            upload(client, url, file(), "key", resume = true)
            assertEquals("HEAD", asked().method)
            assertSent(299_999, asked())
        }

    @Test
    fun `another part there, or only a part there, is asked for`() =
        runTest {
            told(problem("offset-mismatch", 409), has(10))
            told(answer("""{"status":"partial","task":"$task","received":20,"duplicate":false}""", 202), has(20), accepted())
            upload(client, url, file(), "key")
            val requests = List(5) { asked() }
            assertEquals(listOf("PUT", "HEAD", "PUT", "HEAD", "PUT"), requests.map { it.method })
            assertSent(20, requests.last())
        }

    @Test
    fun `a task that is over says why when the update is sent`() =
        runTest {
            told(answer("", 404), problem("task-expired", 404))
            assertEquals("task-expired", assertFailsWith<ServerProblemException> { upload(client, url, file(), "key", true) }.code)
        }

    @Test
    fun `more there than there is, is refused`() =
        runTest {
            for (offset in listOf("300001", "-1", "x")) {
                told(answer("", 200, "Upload-Offset" to offset))
                assertFailsWith<ProtocolException>(offset) { upload(client, url, file(), "key", true) }
            }
        }

    @Test
    fun `a file that cannot be read is not taken for the network`() =
        runTest {
            val file = folder.resolve("update").createDirectory() // opens, and cannot be read
            file.resolve("x").writeBytes(ByteArray(10))
            val error = assertFailsWith<DeviceFolderException> { upload(client, url, file, "key") }
            assertTrue("cannot be read" in error.message, error.message)
            assertTrue(!client.reached)
        }

    @Test
    fun `a proxy that lets no such body pass is told its size`() =
        runTest {
            told(stranger("", 413))
            val error = assertFailsWith<TooLargeOnTheWayException> { upload(client, url, file(), "key") }
            assertTrue("300000 bytes" in error.message, error.message)
        }
}
