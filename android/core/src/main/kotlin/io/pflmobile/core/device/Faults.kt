package io.pflmobile.core.device

import io.pflmobile.core.errors.CertificateException
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.DeviceException
import io.pflmobile.core.errors.NotTheAggregatorException
import io.pflmobile.core.errors.OtherProtocolException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.ProtocolException
import io.pflmobile.core.errors.RedirectedException
import io.pflmobile.core.errors.TlsException
import io.pflmobile.core.errors.TooLargeOnTheWayException
import io.pflmobile.core.errors.UnreachableException
import io.pflmobile.core.protocol.Answer
import io.pflmobile.core.protocol.HEADER
import io.pflmobile.core.protocol.PROTOCOL
import okhttp3.HttpUrl.Companion.toHttpUrl
import java.io.IOException
import java.net.ConnectException
import java.net.InetSocketAddress
import java.net.Socket
import java.net.UnknownHostException
import java.net.UnknownServiceException
import java.security.cert.CertPathValidatorException
import java.security.cert.CertificateExpiredException
import java.security.cert.CertificateNotYetValidException
import javax.net.ssl.SSLException
import javax.net.ssl.SSLHandshakeException
import javax.net.ssl.SSLPeerUnverifiedException
import javax.net.ssl.SSLSocketFactory
import java.net.ProtocolException as NoHttp
import java.security.cert.CertificateException as BadCertificate

// What stands between a device and its aggregator, as errors that say which way out there is. Answers are judged by protocol/Answers.kt;
// a connection that failed is judged by why: certificates, TLS and what speaks no HTTP end the try, all else may pass.

/** No more seconds does an answer that is not the aggregator's make a device wait. */
private const val MOST_TOLD_S = 60.0
private const val PROBE_MS = 2000
private const val MOST_WORDS = 40
private const val MOST_ADDRESS = 200
private const val SIGN_IN = "if this network has a sign-in page, sign in first"

/**
 * The error of an answer that is neither the aggregator's answer nor its problem.
 *
 * @param answer of `judge`
 * @param server the address that was asked
 * @param path that was asked for
 * @param header of the answer by name
 * @param sent bytes of the request's body
 */
internal fun answerFault(
    answer: Answer,
    server: String,
    path: String,
    status: Int,
    header: (String) -> String?,
    sent: Long,
): DeviceException {
    val what = described(status, header)
    return when (answer) {
        Answer.OTHER_PROTOCOL -> {
            otherProtocol(server, header(HEADER).orEmpty().trim())
        }

        Answer.CHANGED_ON_THE_WAY -> {
            ProtocolException(
                "an answer of $server was compressed on the way (${shown(header("Content-Encoding"))}), which the device does not ask for",
                mend = "switch compression off for the aggregator in what lies between",
            )
        }

        Answer.REDIRECT -> {
            redirected(server, path, status, header("Location").orEmpty())
        }

        Answer.TOO_LARGE_ON_THE_WAY -> {
            TooLargeOnTheWayException(
                "something between this device and $server refuses a body of $sent bytes ($what); it is not the aggregator, which would " +
                    "say so itself",
                mend = "let it pass bodies of $sent bytes (nginx: client_max_body_size), or take an address without it",
            )
        }

        Answer.PROXY_REFUSES -> {
            proxyRefuses(server, what)
        }

        Answer.BUSY_ON_THE_WAY -> {
            UnreachableException(
                "$server cannot be reached: something between answers in its place ($what)",
                mend = "wait; if it stays so, ask the operator whether the aggregator behind it runs",
                retryAfterS = retryAfter(header("Retry-After"))?.coerceAtMost(MOST_TOLD_S),
            )
        }

        Answer.ANSWER, Answer.PROBLEM, Answer.NOT_THE_AGGREGATOR -> {
            NotTheAggregatorException(
                "what answers at $server is not an aggregator of pfl-mobile ($what, without the header $HEADER)",
                mend =
                    "check the server's address and port; $SIGN_IN; an aggregator of an older version must be updated, and what lies " +
                        "between must pass the header on",
            )
        }
    }
}

/** The error of a request to [server] that got no whole answer. */
internal fun connectionFault(
    error: IOException,
    server: String,
): PflException {
    for (cause in causes(error)) {
        when {
            cause is UnknownServiceException && "CLEARTEXT" in cause.message.orEmpty() -> {
                return ConfigException(
                    "this app may not speak plain HTTP to $server",
                    mend = "use https://, or permit it in the app's network security configuration",
                    error,
                )
            }

            cause is SSLPeerUnverifiedException || cause is BadCertificate || cause is CertPathValidatorException -> {
                return certificate(error, server)
            }

            cause is UnknownHostException -> {
                return UnreachableException(
                    "$server cannot be reached: there is no address for its name",
                    mend = "check the spelling of the address, and the network",
                    error,
                )
            }

            PROXY_SAYS.any { it in cause.message.orEmpty() } -> {
                return proxyRefuses(server, cause.message.orEmpty().take(MOST_ADDRESS))
            }

            cause is NoHttp && "status line" in cause.message.orEmpty() -> {
                return noHttp(server)
            }
        }
    }
    return tls(error, server) ?: UnreachableException(
        "$server cannot be reached: ${error.message ?: error.javaClass.simpleName}",
        mend = "check the address and the network",
        error,
    )
}

/** What OkHttp says where a proxy wants a password, or answers CONNECT with a status that does not pass. */
private val PROXY_SAYS = listOf("HTTP_PROXY_AUTH", "Failed to authenticate with proxy", "response code for CONNECT: 4")

private fun proxyRefuses(
    server: String,
    what: String,
) = NotTheAggregatorException(
    "the proxy of this network refuses the way to $server ($what)",
    mend = "give its user and password to the HTTP client, or take another network",
)

/** Whether a failure is one that a port which speaks no HTTP gives. */
internal fun mayBeNoHttp(error: IOException): Boolean =
    error !is UnknownHostException && error !is ConnectException && PROXY_SAYS.none { it in error.message.orEmpty() }

/**
 * What a port that gave no answer to plain HTTP speaks instead; null where it may be HTTP after all. Asks it once more, for nothing, and
 * then for TLS.
 */
internal fun plainFault(server: String): NotTheAggregatorException? {
    val url = server.toHttpUrl()
    val first = ByteArray(5)
    val count =
        try {
            Socket().use { plain ->
                plain.connect(InetSocketAddress(url.host, url.port), PROBE_MS)
                plain.soTimeout = PROBE_MS
                plain.getOutputStream().write("HEAD / HTTP/1.1\r\nHost: ${url.host}\r\nConnection: close\r\n\r\n".encodeToByteArray())
                plain.getInputStream().read(first)
            }
        } catch (_: IOException) {
            0
        }
    val said = String(first, 0, maxOf(count, 0), Charsets.ISO_8859_1)
    if (said.isNotEmpty() && !said.startsWith("HTTP/") && !said.startsWith(ALERT)) return noHttp(server)
    return if (speaksTls(url.host, url.port)) {
        TlsException(
            "$server is plain HTTP, and the port speaks TLS",
            mend = "give the address with https://: https://${server.removePrefix("http://")}",
        )
    } else {
        null
    }
}

private const val ALERT = "\u0015\u0003"

/** Whether a port answers a TLS greeting in TLS; whose certificate it has does not matter here, as nothing is sent. */
private fun speaksTls(
    host: String,
    port: Int,
): Boolean =
    try {
        Socket().use { plain ->
            plain.connect(InetSocketAddress(host, port), PROBE_MS)
            plain.soTimeout = PROBE_MS
            val socket = SSLSocketFactory.getDefault() as SSLSocketFactory
            (socket.createSocket(plain, host, port, true) as javax.net.ssl.SSLSocket).use { it.startHandshake() }
        }
        true
    } catch (error: SSLException) {
        // An alert, or a certificate that nobody trusts here, refuses, but in TLS.
        causes(error).any { it is BadCertificate || it is CertPathValidatorException } || "alert" in error.message.orEmpty()
    } catch (_: IOException) {
        false
    }

private fun noHttp(server: String) =
    NotTheAggregatorException(
        "what answers at $server speaks no HTTP, so it is not an aggregator",
        mend = "check the server's address and port",
    )

/** The error, and those that it came from. */
private fun causes(error: Throwable): Sequence<Throwable> = generateSequence(error) { it.cause }.take(20)

private fun shown(text: String?) = "'${text.orEmpty().trim().take(MOST_WORDS).filter { it in ' '..'~' }}'"

/** The answer in a few words, of which strangers choose no more than 40 characters each. */
private fun described(
    status: Int,
    header: (String) -> String?,
): String {
    val kind = header("Content-Type").orEmpty().substringBefore(';').trim()
    val program = header("Server").orEmpty().trim()
    return listOfNotNull(
        "status $status",
        shown(kind).takeIf { kind.isNotEmpty() },
        "of ${shown(program)}".takeIf { program.isNotEmpty() },
    ).joinToString()
}

private fun otherProtocol(
    server: String,
    theirs: String,
): OtherProtocolException {
    val newer = (theirs.toLongOrNull() ?: 0) > PROTOCOL
    return OtherProtocolException(
        "$server speaks version ${shown(theirs.take(20))} of the protocol, this device version $PROTOCOL",
        mend = if (newer) "update the app on the device" else "update the aggregator",
    )
}

private fun redirected(
    server: String,
    path: String,
    status: Int,
    location: String,
): RedirectedException {
    val to = (server + path).toHttpUrl().resolve(location.trim())?.toString() ?: location
    val base = if (to.endsWith(path)) to.removeSuffix(path) else ""
    return RedirectedException(
        "$server sends its visitors to '${to.take(MOST_ADDRESS)}' (status $status); the device did not follow, as what it sends is for " +
            "the aggregator alone",
        mend =
            if (base.isNotEmpty() && base != server) {
                "if you trust it, give that address: ${base.take(MOST_ADDRESS)}"
            } else {
                "check the server's address; $SIGN_IN"
            },
    )
}

private fun certificate(
    error: IOException,
    server: String,
): CertificateException {
    val all = causes(error).toList()
    val mend =
        when {
            all.any { it is CertificateNotYetValidException } -> {
                "check this device's clock; else the operator's certificate is not valid yet"
            }

            all.any { it is CertificateExpiredException } -> {
                "the operator must renew it; check this device's clock too"
            }

            all.any { it is SSLPeerUnverifiedException } -> {
                "give the address with the name that is in the certificate; $SIGN_IN"
            }

            else -> {
                "if it is the operator's own, give an HTTP client that trusts who signed it; $SIGN_IN"
            }
        }
    val why = all.last().message ?: all.last().javaClass.simpleName
    return CertificateException("the certificate of $server is not accepted: ${why.lineSequence().first()}", mend, error)
}

private fun tls(
    error: IOException,
    server: String,
): TlsException? {
    val found = causes(error).firstOrNull { it is SSLException } ?: return null
    val said = found.message.orEmpty()
    return when {
        NO_TLS.any { it in said } -> {
            TlsException(
                "$server is HTTPS, and what answers there speaks no TLS",
                mend = "check the address and port; an aggregator without TLS has an address that begins with http://",
                error,
            )
        }

        // Of a connection that ends within the greeting nobody knows why: it may pass.
        found is SSLHandshakeException && NO_AGREEMENT.any { it in said.lowercase() } -> {
            TlsException(
                "no TLS connection to $server could be agreed on (${said.lineSequence().first()})",
                mend = "the server must offer TLS 1.2 or newer under this name, and ask for no certificate of the device",
                error,
            )
        }

        else -> {
            null
        }
    }
}

/** What the JDK and Android's Conscrypt say when the other side's first bytes are no TLS. */
private val NO_TLS = listOf("Unsupported or unrecognized SSL message", "Unable to parse TLS packet header", "WRONG_VERSION_NUMBER")

/** What they say when the two sides have no version or cipher in common; alerts of the other side besides. */
private val NO_AGREEMENT = listOf("alert", "protocol_version", "no appropriate protocol", "unsupported_protocol", "no cipher suites")
