package io.pflmobile.core.personal

import io.pflmobile.core.device.Attest
import io.pflmobile.core.device.Backoff
import io.pflmobile.core.device.Client
import io.pflmobile.core.device.PrivacyPolicy
import io.pflmobile.core.device.Summary
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.ServerProblemException
import okhttp3.OkHttpClient

/**
 * A federation that a personal model takes part in.
 *
 * @property server address of its aggregator, for instance `https://pfl.example.org`
 * @property policy what must protect updates; by default something must
 * @property group the device's group, where the federation has groups
 * @property token for enrolment, where one is needed
 * @property attest makes the platform's verdict, where one is needed
 * @property patienceS seconds that the aggregator may be out of reach before it is given up for now; null is for ever
 * @property allowHttp permit plain HTTP to other machines: anybody on the way can then read the credential
 * @property http of the app; give one with a `CertificatePinner` to pin the operator's key
 * @property backoff between tries of one request
 * @throws ConfigException the address is none, or plain HTTP to another machine
 */
public class Federation(
    public val server: String,
    public val policy: PrivacyPolicy = PrivacyPolicy(),
    public val group: String = "",
    public val token: String? = null,
    public val attest: Attest? = null,
    public val patienceS: Double? = 60.0,
    public val allowHttp: Boolean = false,
    public val http: OkHttpClient? = null,
    public val backoff: Backoff = Backoff(),
) {
    init {
        Client.checkAddress(server.trimEnd('/'), allowHttp)
    }

    internal fun client() = Client(server, backoff, allowHttp = allowHttp, http = http)

    /** For leaving a server that was given before. */
    internal fun clientOf(
        server: String,
        backoff: Backoff = this.backoff,
    ) = Client(server, backoff, allowHttp = allowHttp || server != this.server.trimEnd('/'), http = http)
}

/** How [PersonalModel.takePart] ended. */
public sealed interface RoundsResult {
    /**
     * Updates were accepted.
     *
     * @property summary what was done
     */
    public class TookPart internal constructor(
        public val summary: Summary,
    ) : RoundsResult {
        /** For a log: numbers, no examples. */
        override fun toString(): String = "TookPart($summary)"
    }

    /**
     * No update was made: there was no task, or none that this device can do.
     *
     * @property summary what was done; `declined` says why
     */
    public class NoRound internal constructor(
        public val summary: Summary,
    ) : RoundsResult {
        /** For a log: numbers, no examples. */
        override fun toString(): String = "NoRound($summary)"
    }

    /**
     * The federation protects updates less than the policy asks for; nothing was sent.
     *
     * @property summary what was done
     * @property why what is missing, in words
     */
    public class NotProtected internal constructor(
        public val summary: Summary,
        public val why: String,
    ) : RoundsResult {
        /** For a log: numbers, no examples. */
        override fun toString(): String = "NotProtected($why)"
    }

    /**
     * There are too few examples to learn and to measure; no task was asked for.
     *
     * @property have how many are kept; 3 are the least
     */
    public data class NotEnoughExamples(
        val have: Int,
    ) : RoundsResult

    /** The user paused learning; nobody was asked. */
    public data object Paused : RoundsResult

    /** It was stopped by pause, forget, revert, erase or leave. */
    public data object Cancelled : RoundsResult

    /**
     * The aggregator cannot be reached, or something else answers in its place: another time or network may help.
     *
     * @property error what went wrong
     * @property waiting updates that are finished and wait to be sent
     */
    public data class Unreachable(
        val error: PflException,
        val waiting: Int,
    ) : RoundsResult

    /**
     * The aggregator will not have this device.
     *
     * @property error what the aggregator said
     */
    public data class Refused(
        val error: ServerProblemException,
    ) : RoundsResult

    /**
     * It could not be done; what served before serves on.
     *
     * @property error what went wrong
     */
    public data class Failed(
        val error: PflException,
    ) : RoundsResult
}

/**
 * How [PersonalModel.leave] ended. The membership is over on this device, and nothing of it is sent any more, but where [Failed] says that
 * the device's folder cannot be used.
 */
public sealed interface LeaveResult {
    /** Every aggregator that it left forgot the device, and the device its credentials. */
    public data object Left : LeaveResult

    /** It took part in no federation. */
    public data object NotThere : LeaveResult

    /**
     * An aggregator cannot be reached and still knows the device. It is told by the next call of `leave` or `takePart`.
     *
     * @property error what went wrong
     */
    public data class Unreachable(
        val error: PflException,
    ) : LeaveResult

    /**
     * It could not be done.
     *
     * @property error what went wrong
     */
    public data class Failed(
        val error: PflException,
    ) : LeaveResult
}

/**
 * What a model gave to federations; none of it can be taken back, so it outlives erasing.
 *
 * @property server where the device is enrolled; null where it is not
 * @property rounds updates that were accepted
 * @property bytesSent of these updates
 * @property waiting finished updates or reports that wait to be sent
 * @property asked when it was last asked for a task, in seconds since 1970; null before
 * @property spent what it cost in privacy
 * @property problem why the device's folder cannot be used, where it cannot; it is not known then what was given, so [spent] is infinite
 *   and the counts say nothing
 * @property leaving servers that the device left and that were not told yet, for want of a network
 */
public data class RoundsStatus(
    val server: String?,
    val rounds: Long,
    val bytesSent: Long,
    val waiting: Int,
    val asked: Double?,
    val spent: PrivacySpent,
    val problem: PflException? = null,
    val leaving: List<String> = emptyList(),
)

/**
 * Differential privacy of the updates that were given away: each was made with noise, so that what others learn of it changes their odds by
 * the factor e^epsilon at most, but for the probability delta.
 *
 * Not in epsilon, as no noise hides it: sums on the user's own test examples in evaluation reports, numbers that a task asks for along with
 * an update (a policy with `report = false` sends neither), counts of examples and steps, and what a check-in tells.
 *
 * @property epsilon of both below together; infinite where an update was sent that nothing protected, or where the count was lost
 * @property delta likewise
 * @property own epsilon of updates under the device's own noise, by its own count; it holds against the aggregator too
 * @property promised epsilon that aggregators promise, who add the noise and are trusted to
 * @property unprotected updates that nothing protected
 */
public data class PrivacySpent(
    val epsilon: Double = 0.0,
    val delta: Double = 0.0,
    val own: Double = 0.0,
    val promised: Double = 0.0,
    val unprotected: Long = 0,
) {
    internal companion object {
        /** The count was lost. */
        val UNKNOWN = PrivacySpent(Double.POSITIVE_INFINITY, 1.0, Double.POSITIVE_INFINITY, Double.POSITIVE_INFINITY)
    }
}
