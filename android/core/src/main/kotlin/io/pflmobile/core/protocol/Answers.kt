package io.pflmobile.core.protocol

import io.pflmobile.core.errors.ServerProblemException

/**
 * On every answer of an aggregator, errors among them: the version of the protocol that the answer is in.
 *
 * Between a device and its aggregator there are proxies, sign-in pages of networks, and addresses with a mistake in them. All of them
 * answer with statuses and bodies of their own, and none may be taken for a word of the aggregator: a device would drop an update
 * because of a proxy's 404. So every answer of an aggregator carries this header, and only those do.
 */
internal const val HEADER = "PFL-Protocol"

/** What an answer is; [wireName] is the word of `conformance/protocol.json`. */
internal enum class Answer(
    val wireName: String,
) {
    ANSWER("answer"),
    PROBLEM("problem"),
    OTHER_PROTOCOL("other-protocol"),
    CHANGED_ON_THE_WAY("changed-on-the-way"),
    REDIRECT("redirect"),
    TOO_LARGE_ON_THE_WAY("too-large-on-the-way"),
    PROXY_REFUSES("proxy-refuses"),
    BUSY_ON_THE_WAY("busy-on-the-way"),
    NOT_THE_AGGREGATOR("not-the-aggregator"),
}

/** What a device does with an answer. */
internal enum class Then(
    val wireName: String,
) {
    /** Use its body. */
    USE("use"),

    /** Decide by the code of the problem. */
    DECIDE_BY_CODE("decide-by-code"),

    /** Ask again after a pause. */
    RETRY("retry"),

    /** The same request would not do better, and what waits to be sent stays in the queue. */
    END("end"),
}

internal data class Verdict(
    val answer: Answer,
    val then: Then,
)

/**
 * What an answer is, by its status and headers alone.
 *
 * @param header value of the header of a name in any case of letters, null where there is none
 */
internal fun judge(
    status: Int,
    header: (String) -> String?,
): Verdict {
    val protocol = header(HEADER)?.trim() ?: return ofAnother(status)
    val encoding = header("Content-Encoding")?.trim() ?: "identity"
    return when {
        protocol != "$PROTOCOL" -> Verdict(Answer.OTHER_PROTOCOL, Then.END)
        !encoding.equals("identity", ignoreCase = true) -> Verdict(Answer.CHANGED_ON_THE_WAY, Then.END)
        status in 200..299 -> Verdict(Answer.ANSWER, Then.USE)
        status >= 400 -> Verdict(Answer.PROBLEM, if (status in ServerProblemException.PASSING) Then.RETRY else Then.DECIDE_BY_CODE)
        else -> Verdict(Answer.REDIRECT, Then.END)
    }
}

/** What an answer without the header is. */
private fun ofAnother(status: Int): Verdict =
    when {
        status in 300..399 -> Verdict(Answer.REDIRECT, Then.END)

        status == 413 -> Verdict(Answer.TOO_LARGE_ON_THE_WAY, Then.END)

        status == 407 -> Verdict(Answer.PROXY_REFUSES, Then.END)

        // No such method, no such HTTP, and a network that wants a sign-in do not pass by themselves.
        status in setOf(501, 505, 511) -> Verdict(Answer.NOT_THE_AGGREGATOR, Then.END)

        status in setOf(408, 425, 429) || status >= 500 -> Verdict(Answer.BUSY_ON_THE_WAY, Then.RETRY)

        else -> Verdict(Answer.NOT_THE_AGGREGATOR, Then.END)
    }
