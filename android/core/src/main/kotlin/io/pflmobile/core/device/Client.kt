package io.pflmobile.core.device

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.ProtocolException
import io.pflmobile.core.errors.ServerProblemException
import io.pflmobile.core.errors.UnreachableException
import io.pflmobile.core.protocol.Answer
import io.pflmobile.core.protocol.Bodies
import io.pflmobile.core.protocol.Challenge
import io.pflmobile.core.protocol.CheckIn
import io.pflmobile.core.protocol.CheckedIn
import io.pflmobile.core.protocol.Decline
import io.pflmobile.core.protocol.Enrolled
import io.pflmobile.core.protocol.Enrolment
import io.pflmobile.core.protocol.EvaluationReport
import io.pflmobile.core.protocol.FederationInfo
import io.pflmobile.core.protocol.LatestVersion
import io.pflmobile.core.protocol.judge
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.delay
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import kotlinx.serialization.KSerializer
import okhttp3.Call
import okhttp3.ConnectionPool
import okhttp3.HttpUrl
import okhttp3.HttpUrl.Companion.toHttpUrlOrNull
import okhttp3.MediaType.Companion.toMediaType
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.RequestBody
import okhttp3.RequestBody.Companion.toRequestBody
import okhttp3.Response
import java.io.ByteArrayOutputStream
import java.io.IOException
import java.net.Proxy
import java.util.concurrent.TimeUnit
import java.util.concurrent.atomic.AtomicBoolean
import java.util.concurrent.atomic.AtomicLong
import kotlin.random.Random

/** No JSON answer is as large as this. */
internal const val MOST_ANSWER_BYTES: Int = 16 shl 20

/** Bytes of bodies, those of failed tries included. */
internal class Traffic {
    val up = AtomicLong()
    val down = AtomicLong()
}

/**
 * The aggregator over HTTP (`server/PROTOCOL.md`, version 1), as one device speaks it. Every call is tried again while the reason for its
 * failure may pass; all of them may be repeated without harm. Redirects are not followed, as what a device sends is for the aggregator
 * alone. A cancelled coroutine ends its request at once.
 *
 * @param server address, for instance `https://pfl.example.org`
 * @param backoff between tries
 * @param timeoutS seconds for connecting, and between two pieces of an answer
 * @param allowHttp permit plain HTTP to other machines: anybody on the way can then read the credential
 * @param http of the app, whose connections are shared; give one with a `CertificatePinner` to pin the operator's key
 * @throws ConfigException the address is none, or plain HTTP to another machine
 */
public class Client(
    server: String,
    internal val backoff: Backoff = Backoff(),
    timeoutS: Double = 60.0,
    allowHttp: Boolean = false,
    http: OkHttpClient? = null,
) : AutoCloseable {
    /** The address, without a slash at its end. */
    public val server: String = server.trimEnd('/')

    /** Sent along once there is one; set after the enrolment. */
    internal var credential: String? = null

    /**
     * Whether an answer of the aggregator has come. From then on the address is known to be right, and what else answers there is of the
     * network that the device is in.
     */
    @Volatile
    internal var reached: Boolean = false
        private set

    internal val traffic = Traffic()

    private val own = http == null
    private val random = Random.Default
    private val http: OkHttpClient

    init {
        val url = checkAddress(this.server, allowHttp)
        this.http =
            (http ?: OkHttpClient.Builder().connectionPool(ConnectionPool(1, IDLE_S, TimeUnit.SECONDS)).build())
                .newBuilder()
                .followRedirects(false)
                .followSslRedirects(false)
                // Every failure is seen and counted here.
                .retryOnConnectionFailure(false)
                .cache(null)
                .connectTimeout(millis(minOf(timeoutS, MOST_CONNECT_S)), TimeUnit.MILLISECONDS)
                .readTimeout(millis(timeoutS), TimeUnit.MILLISECONDS)
                .writeTimeout(millis(timeoutS), TimeUnit.MILLISECONDS)
                .apply { if (url.host in LOOPBACK) proxy(Proxy.NO_PROXY) } // none can know this machine's own addresses
                .build()
    }

    /** Closes the connections that are the client's own. */
    override fun close() {
        if (own) {
            http.connectionPool.evictAll()
            http.dispatcher.executorService.shutdown()
        }
    }

    // -- the protocol

    /** What the federation trains, how to enrol, what protects updates. */
    internal suspend fun federation(): FederationInfo = ask(FederationInfo.serializer(), "GET", "/v1/federation")

    /** What an attestation must be bound to. */
    internal suspend fun challenge(): Challenge = ask(Challenge.serializer(), "POST", "/v1/challenges")

    /**
     * Become a device; the credential in the answer is told once. A lost answer leaves a device behind that nobody has the credential
     * of; it does no harm.
     */
    internal suspend fun enrol(enrolment: Enrolment): Enrolled =
        ask(Enrolled.serializer(), "POST", "/v1/devices", Bodies.encode(Enrolment.serializer(), enrolment))

    /** Ask for a task; asking again gives the same one. */
    internal suspend fun checkIn(facts: CheckIn): CheckedIn =
        ask(CheckedIn.serializer(), "POST", "/v1/check-in", Bodies.encode(CheckIn.serializer(), facts))

    /** Say that no update will come. */
    internal suspend fun decline(
        task: String,
        decline: Decline,
    ): Unit = call("POST", "/v1/tasks/$task/decline", Bodies.encode(Decline.serializer(), decline)) {}

    /** Send sums of metrics; counted once. */
    internal suspend fun report(
        task: String,
        report: EvaluationReport,
    ): Unit = call("POST", "/v1/tasks/$task/evaluation", Bodies.encode(EvaluationReport.serializer(), report)) {}

    /** The version that is served now. */
    internal suspend fun latest(): LatestVersion = ask(LatestVersion.serializer(), "GET", "/v1/versions/latest")

    /** Take part no more: the aggregator forgets the credential. */
    internal suspend fun leave(): Unit = call("DELETE", "/v1/devices/me", null) {}

    // -- requests

    /**
     * Do something until it works.
     *
     * @param progress grows when something was gained; failures are counted from the last gain on
     * @param action throws [UnreachableException] or a passing [ServerProblemException] to be called again after a pause
     * @throws UnreachableException the last failure
     * @throws ServerProblemException the same
     */
    internal suspend fun <T> retrying(
        progress: () -> Long = { 0 },
        action: suspend () -> T,
    ): T {
        var failures = 0
        var best = progress()
        while (true) {
            try {
                return action()
            } catch (error: PflException) {
                if (!passing(error)) throw error
                val now = progress()
                failures = if (now > best) 1 else failures + 1
                best = maxOf(best, now)
                if (failures >= backoff.attempts) throw error
                delay(millis(backoff.pause(failures, toldS(error), random.nextDouble())))
            }
        }
    }

    /** Seconds to wait after so many failures in a row, and at least as long as an answer asks for. */
    internal fun pause(
        failures: Int,
        toldS: Double?,
    ): Double = backoff.pause(failures, toldS, random.nextDouble())

    /**
     * One request, whose answer [use] reads; no further try.
     *
     * @throws UnreachableException no connection, or it broke or timed out, also while the answer is read; or what lies between says that
     *   it has none
     * @throws io.pflmobile.core.errors.NotTheAggregatorException something else answers
     * @throws io.pflmobile.core.errors.TooLargeOnTheWayException something between refuses a body of this size
     * @throws ServerProblemException the aggregator refuses
     * @throws ProtocolException a path to another place, or an answer of another protocol
     * @throws ConfigException the app may not use the network
     */
    internal suspend fun <T> exchange(
        method: String,
        path: String,
        headers: Map<String, String> = emptyMap(),
        body: RequestBody? = null,
        use: (Response) -> T,
    ): T {
        val url = (server + path).takeIf { path.startsWith("/") && !path.startsWith("//") }?.toHttpUrlOrNull()
        if (url == null) {
            throw ProtocolException("the aggregator names the address '${path.take(100)}'", mend = "it must be one of its own paths")
        }
        val request =
            Request
                .Builder()
                .url(url)
                .method(method, body ?: if (method == "POST") EMPTY else null)
                .header("User-Agent", "pfl-mobile")
                .header("Accept-Encoding", "identity")
                .apply {
                    headers.forEach { (name, value) -> header(name, value) }
                    credential?.let { header("Authorization", "Bearer $it") }
                }.build()
        val call = http.newCall(request)
        return cancelling(call) {
            try {
                call.execute().use { response ->
                    check(response, path, maxOf(body?.contentLength() ?: 0, 0))
                    use(response)
                }
            } catch (error: IOException) {
                throw if (call.isCanceled()) error else (error as? OwnFileException)?.error ?: found(error)
            } catch (error: SecurityException) {
                throw ConfigException(
                    "the system does not let the app use the network: ${error.message}",
                    "add <uses-permission android:name=\"android.permission.INTERNET\" /> to the app's manifest",
                    error,
                )
            }
        }
    }

    /** Refuses an answer that is none of the aggregator, or a problem. */
    private fun check(
        response: Response,
        path: String,
        sent: Long,
    ) {
        val verdict = judge(response.code) { response.header(it) }
        when (verdict.answer) {
            Answer.ANSWER -> {
                reached = true
            }

            Answer.PROBLEM -> {
                reached = true
                throw problem(response, read(response))
            }

            else -> {
                // Servers of TLS answer plain HTTP with a page that has this status.
                val plain = if (response.code == BAD_REQUEST) plain() else null
                throw plain ?: answerFault(verdict.answer, server, path, response.code, { response.header(it) }, sent)
            }
        }
    }

    private fun found(error: IOException): PflException = (if (mayBeNoHttp(error)) plain() else null) ?: connectionFault(error, server)

    /** What a port speaks in place of plain HTTP; null where it was HTTP before, or may be. */
    private fun plain(): PflException? = if (server.startsWith("http:") && !reached) plainFault(server) else null

    /** The body of an answer piece by piece, counted; [take] gets an array and how many bytes of it are new. */
    internal fun pieces(
        response: Response,
        take: (ByteArray, Int) -> Unit,
    ) {
        val buffer = ByteArray(PIECE)
        val stream = response.body.byteStream()
        while (true) {
            val count = stream.read(buffer)
            if (count < 0) return
            traffic.down.addAndGet(count.toLong())
            take(buffer, count)
        }
    }

    /**
     * The whole body of an answer that is no tensors.
     *
     * @throws ProtocolException it is larger than any such body
     */
    internal fun read(response: Response): ByteArray {
        val body = ByteArrayOutputStream()
        pieces(response) { piece, count ->
            body.write(piece, 0, count)
            if (body.size() > MOST_ANSWER_BYTES) {
                throw ProtocolException(
                    "an answer of $server has more than $MOST_ANSWER_BYTES bytes",
                    mend = "check the server's address",
                )
            }
        }
        return body.toByteArray()
    }

    /** Send a JSON body and use that of the answer; tried again while that may help. */
    private suspend fun <T> call(
        method: String,
        path: String,
        content: ByteArray?,
        use: (ByteArray) -> T,
    ): T =
        retrying {
            traffic.up.addAndGet((content?.size ?: 0).toLong())
            exchange(method, path, emptyMap(), content?.toRequestBody(JSON)) { use(read(it)) }
        }

    private suspend fun <T> ask(
        form: KSerializer<T>,
        method: String,
        path: String,
        content: ByteArray? = null,
    ): T = call(method, path, content) { parse(form, it, "$method $path") }

    internal companion object {
        private const val PIECE = 1 shl 16
        private const val MOST_CONNECT_S = 15.0

        /** Seconds that a connection waits for another use: aggregators close theirs after 5, and one that is just closed is a fault. */
        private const val IDLE_S = 2L
        private const val BAD_REQUEST = 400
        private val LOOPBACK = setOf("localhost", "127.0.0.1", "::1")
        private val JSON = "application/json".toMediaType()
        private val EMPTY = ByteArray(0).toRequestBody()

        fun passing(error: PflException): Boolean = error is UnreachableException || (error is ServerProblemException && error.passing)

        private fun toldS(error: PflException): Double? =
            (error as? UnreachableException)?.retryAfterS ?: (error as? ServerProblemException)?.retryAfterS

        /** Refuse what is no safe address. */
        fun checkAddress(
            server: String,
            allowHttp: Boolean,
        ): HttpUrl {
            val odd = server.any { it.isWhitespace() || it.isISOControl() || it == '\\' }
            val url = server.takeIf { !odd && (it.startsWith("https://") || it.startsWith("http://")) }?.toHttpUrlOrNull()
            if (url != null && (url.username.isNotEmpty() || url.password.isNotEmpty())) {
                throw ConfigException(
                    "the server's address holds a user or password",
                    mend = "leave it out: devices have credentials",
                )
            }
            if (url == null || url.query != null || url.fragment != null) {
                throw ConfigException("'$server' is not the address of a server", mend = "give one like https://pfl.example.org")
            }
            if (!url.isHttps && url.host !in LOOPBACK && !allowHttp) {
                throw ConfigException(
                    "$server is plain HTTP to another machine: anybody on the way could take the credential",
                    mend = "use https://, or allow it (allowHttp) in a network that you trust",
                )
            }
            return url
        }
    }
}

private const val MILLIS = 1000

/** Seconds as whole milliseconds, at least one. */
internal fun millis(seconds: Double): Long = maxOf((seconds * MILLIS).toLong(), 1)

/** Does blocking [work] of a call on a thread for it; where the coroutine is cancelled, the call is. */
private suspend fun <T> cancelling(
    call: Call,
    work: () -> T,
): T =
    try {
        coroutineScope {
            val over = AtomicBoolean()
            val watcher =
                launch(start = CoroutineStart.UNDISPATCHED) {
                    try {
                        awaitCancellation()
                    } finally {
                        if (!over.get()) call.cancel()
                    }
                }
            withContext(Dispatchers.IO) {
                try {
                    work()
                } finally {
                    over.set(true)
                }
            }.also { watcher.cancel() }
        }
    } catch (error: IOException) {
        currentCoroutineContext().ensureActive() // broken by the cancellation
        throw error
    }

/**
 * An answer's body; fields that a later server adds are ignored.
 *
 * @throws UnreachableException it is no JSON, so a part of it was lost on the way
 * @throws ProtocolException it is not such a body
 */
internal fun <T> parse(
    form: KSerializer<T>,
    data: ByteArray,
    what: String,
): T =
    try {
        Bodies.answer(form, data, what)
    } catch (error: IllegalArgumentException) {
        throw UnreachableException(
            "the answer to $what did not arrive whole: its ${data.size} bytes are no JSON",
            mend = "try again; if it stays so, something between changes the bytes",
            error,
        )
    }

private const val MOST_TEXT = 1000

/** The error that an answer is; one without a problem's JSON (to HEAD, or cut off) is named by its status. */
private fun problem(
    response: Response,
    body: ByteArray,
): ServerProblemException {
    val found = Bodies.fields(body)

    fun text(
        name: String,
        default: String,
    ) = found[name]?.take(MOST_TEXT)?.ifEmpty { null } ?: default
    return ServerProblemException(
        text("code", "http-${response.code}"),
        response.code,
        "the aggregator refuses: ${text("detail", text("title", "status ${response.code}"))}",
        mend = text("mend", "see the aggregator's log"),
        retryAfterS = retryAfter(response.header("Retry-After")),
    )
}
