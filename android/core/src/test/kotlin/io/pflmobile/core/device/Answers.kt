package io.pflmobile.core.device

import io.pflmobile.core.protocol.HEADER
import mockwebserver3.MockResponse
import mockwebserver3.MockWebServer
import mockwebserver3.SocketEffect
import okio.Buffer

/** Pauses that are soon over. */
val QUICK = Backoff(attempts = 4, firstS = 0.001, mostS = 0.01)

/** An answer of an aggregator. */
fun answer(
    body: String = "{}",
    code: Int = 200,
    vararg headers: Pair<String, String>,
): MockResponse.Builder =
    stranger(body, code, HEADER to "1", *headers).apply {
        if (headers.none { it.first == "Content-Type" }) setHeader("Content-Type", "application/json")
    }

/** The same of bytes. */
fun answer(
    body: ByteArray,
    code: Int = 200,
    vararg headers: Pair<String, String>,
): MockResponse.Builder = answer("", code, *headers).body(Buffer().write(body))

/** An answer of something else. */
fun stranger(
    body: String,
    code: Int = 200,
    vararg headers: Pair<String, String>,
): MockResponse.Builder =
    MockResponse
        .Builder()
        .code(code)
        .apply { headers.forEach { (name, value) -> setHeader(name, value) } }
        .body(body)

/** A problem of an aggregator. */
fun problem(
    code: String,
    status: Int,
    vararg headers: Pair<String, String>,
): MockResponse.Builder =
    answer(
        """{"type":"t","title":"T","status":$status,"detail":"it is $code","code":"$code","mend":"wait"}""",
        status,
        "Content-Type" to "application/problem+json",
        *headers,
    )

/** The connection ends in the middle of the answer's body. */
fun MockResponse.Builder.cut(): MockResponse.Builder = onResponseBody(SocketEffect.CloseSocket())

/** The connection ends when the request has come, without an answer. */
fun silent(): MockResponse.Builder = answer().onResponseStart(SocketEffect.CloseSocket())

fun MockWebServer.enqueue(vararg answers: MockResponse.Builder): Unit = answers.forEach { enqueue(it.build()) }

/** The address of a server. */
val MockWebServer.address: String get() = "http://127.0.0.1:$port"

fun client(
    server: MockWebServer,
    backoff: Backoff = QUICK,
): Client = Client(server.address, backoff, timeoutS = 5.0)
