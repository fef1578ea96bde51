@file:UseSerializers(StrictLong::class, StrictDouble::class, StrictBoolean::class)

package io.pflmobile.core.protocol

import io.pflmobile.core.errors.ProtocolException
import io.pflmobile.core.files.StrictBoolean
import io.pflmobile.core.files.StrictDouble
import io.pflmobile.core.files.StrictLong
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.files.strictJson
import kotlinx.serialization.KSerializer
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.UseSerializers
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive

/** Version of the protocol (`server/PROTOCOL.md`), first part of every path. */
internal const val PROTOCOL: Long = 1

/** Media type of tensor files. */
internal const val SAFETENSORS = "application/vnd.safetensors"

/** Media type of problems (RFC 9457). */
internal const val PROBLEM_JSON = "application/problem+json"

private const val MOST_REPORTS = 64
private const val MOST_METRICS = 32
private const val MOST_WEIGHT = 1e9
private const val MOST_COUNT = (1L shl 53) - 1
private val HEX64 = Regex("[0-9a-f]{64}")
private val ID = Regex("[0-9a-f]{32}")

private fun checkText(
    field: String,
    value: String,
    range: IntRange = 1..200,
) = require(value.codePointCount(0, value.length) in range) { "$field: it has ${value.length} characters, not $range" }

private fun checkCount(
    field: String,
    value: Long?,
) = require(value == null || value in 0..MOST_COUNT) { "$field: $value is no count" }

private fun checkForm(
    field: String,
    value: String,
    form: Regex,
) = require(form.matches(value)) { "$field: it is not ${form.pattern}" }

/** Which model a device has: name, version and fingerprint of its bundle. */
@Serializable
internal data class BundleId(
    val name: String,
    val version: String,
    val fingerprint: String,
) {
    init {
        checkText("name", name)
        checkText("version", version)
        checkForm("fingerprint", fingerprint, HEX64)
    }
}

@Serializable
internal enum class EnrolmentKind {
    @SerialName("open")
    OPEN,

    @SerialName("token")
    TOKEN,
}

@Serializable
internal enum class FederationState {
    @SerialName("running")
    RUNNING,

    @SerialName("paused")
    PAUSED,

    @SerialName("finished")
    FINISHED,

    @SerialName("spent")
    SPENT,
}

/**
 * Answer of `GET /v1/federation`; needs no credential.
 *
 * @property attestation kinds of attestation, one of which is needed; empty for none
 * @property privacy the privacy statement
 */
@Serializable
internal data class FederationInfo(
    val protocol: Long = PROTOCOL,
    val server: String,
    val bundle: BundleId,
    val enrolment: EnrolmentKind,
    val attestation: List<String> = emptyList(),
    val privacy: JsonObject,
    val groups: List<String> = emptyList(),
    val maxUpdateBytes: Long,
    val state: FederationState,
) {
    init {
        require(protocol == PROTOCOL) { "protocol: $protocol is not $PROTOCOL" }
        checkText("server", server)
        checkCount("max_update_bytes", maxUpdateBytes)
    }
}

/** Answer of `POST /v1/challenges`: what an attestation must be bound to; [expires] is in seconds since 1970. */
@Serializable
internal data class Challenge(
    val challenge: String,
    val expires: Double,
) {
    init {
        checkText("challenge", challenge)
    }
}

/** A verdict of the platform, for instance Play Integrity. */
@Serializable
internal data class Attestation(
    val kind: String,
    val challenge: String,
    val verdict: String,
) {
    init {
        checkText("kind", kind)
        checkText("challenge", challenge)
        checkText("verdict", verdict, 1..20_000)
    }
}

/** Body of `POST /v1/devices`. */
@Serializable
internal data class Enrolment(
    val bundle: BundleId,
    val token: String? = null,
    val group: String = "",
    val attestation: Attestation? = null,
) {
    init {
        if (token != null) checkText("token", token, 0..200)
        checkText("group", group, 0..100)
    }
}

/** Answer to an enrolment; the credential is told once. */
@Serializable
internal data class Enrolled(
    val device: String,
    val credential: String,
) {
    init {
        checkForm("device", device, ID)
        checkText("credential", credential)
    }
}

/** What a device tells at check-in, so that it is asked only when it can; none of it identifies a person. */
@Serializable
internal data class Facts(
    val engine: String = "",
    val platform: String = "",
    val sdk: String = "",
    val idle: Boolean = true,
    val charging: Boolean = true,
    val unmetered: Boolean = true,
    val freeBytes: Long? = null,
) {
    init {
        for ((field, value) in listOf("engine" to engine, "platform" to platform, "sdk" to sdk)) checkText(field, value, 0..40)
        checkCount("free_bytes", freeBytes)
    }
}

/** Body of `POST /v1/check-in`; [examples] is how many training examples there are, rounded down to two digits. */
@Serializable
internal data class CheckIn(
    val bundle: BundleId,
    val examples: Long,
    val facts: Facts = Facts(),
) {
    init {
        checkCount("examples", examples)
    }
}

/** A set of values to download from [url]; its address is its content, so a device fetches each once. */
@Serializable
internal data class Download(
    val sha256: String,
    val bytes: Long,
    val url: String,
) {
    init {
        checkForm("sha256", sha256, HEX64)
        checkCount("bytes", bytes)
        checkText("url", url)
    }
}

/** One tensor of an update. */
@Serializable
internal data class TensorLayout(
    val name: String,
    val shape: List<Long>,
) {
    init {
        checkText("name", name, 1..500)
        shape.forEach { checkCount("shape", it) }
    }
}

@Serializable
internal enum class Mechanism {
    @SerialName("gaussian")
    GAUSSIAN,

    @SerialName("matrix")
    MATRIX,

    @SerialName("local")
    LOCAL,

    @SerialName("none")
    NONE,
}

/**
 * What protects the update. A device that asks for protection uploads nothing where the mechanism is none.
 *
 * @property clipNorm L2 norm that the device clips its whole update to; null is none
 * @property noiseMultiplier of the noise that the aggregator adds, relative to the clip norm
 * @property localNoiseMultiplier of the noise that the device adds itself
 * @property statement of the version that the task begins with: what was spent before its round
 * @property epsilonAfter epsilon once the update is in a model, at the statement's delta; null is no guarantee
 */
@Serializable
internal data class TaskPrivacy(
    val mechanism: Mechanism,
    val clipNorm: Double?,
    val noiseMultiplier: Double,
    val localNoiseMultiplier: Double = 0.0,
    val statement: JsonObject = JsonObject(emptyMap()),
    val epsilonAfter: Double? = null,
) {
    init {
        require(epsilonAfter == null || epsilonAfter >= 0) { "epsilon_after: $epsilonAfter is less than 0" }
    }

    /** Whether any noise is named, so that something is promised. */
    val guarantees: Boolean get() = mechanism != Mechanism.NONE

    /** False where the device's own noise is all that protects. */
    val trustsAggregator: Boolean get() = mechanism != Mechanism.LOCAL
}

/**
 * What a device is to do in a round.
 *
 * @property plan of this round, with its seed
 * @property sets values that the plan names; `global` is always among them
 * @property layout the tensors of the update, float32, in this order: sorted by the bytes of their UTF-8 names
 * @property reports names of the numbers to send along
 * @property evaluate whether an evaluation report is asked for
 * @property expires seconds since 1970; later updates are refused
 */
@Serializable
internal data class RoundTask(
    val id: String,
    val round: Long,
    val version: Long,
    val plan: JsonObject,
    val sets: Map<String, Download>,
    val layout: List<TensorLayout>,
    val reports: List<String> = emptyList(),
    val privacy: TaskPrivacy,
    val evaluate: Boolean,
    val expires: Double,
    val expiresInS: Double,
    val updateUrl: String,
) {
    init {
        checkForm("id", id, ID)
        checkCount("round", round)
        checkCount("version", version)
        checkText("update_url", updateUrl)
    }
}

@Serializable
internal enum class CheckInStatus {
    @SerialName("task")
    TASK,

    @SerialName("wait")
    WAIT,

    @SerialName("done")
    DONE,
}

/** Why there is no task now; [wireName] is the word in the answer. */
@Serializable
internal enum class WaitReason(
    val wireName: String,
) {
    @SerialName("not_selected")
    NOT_SELECTED("not_selected"),

    @SerialName("full")
    FULL("full"),

    @SerialName("between_rounds")
    BETWEEN_ROUNDS("between_rounds"),

    @SerialName("not_eligible")
    NOT_ELIGIBLE("not_eligible"),

    @SerialName("too_soon")
    TOO_SOON("too_soon"),

    @SerialName("paused")
    PAUSED("paused"),

    @SerialName("finished")
    FINISHED("finished"),

    @SerialName("spent")
    SPENT("spent"),
}

/** Answer to a check-in: a task, or when to ask again and why. */
@Serializable
internal data class CheckedIn(
    val status: CheckInStatus,
    val task: RoundTask? = null,
    val retryAfterS: Double? = null,
    val reason: WaitReason? = null,
)

/**
 * Answer of `GET /v1/versions/latest`: the model as it is served.
 *
 * @property round that made it; null for version 0 and roll-backs
 * @property sets `global`: the shared values
 * @property privacy what protects those who trained it
 * @property created seconds since 1970
 */
@Serializable
internal data class LatestVersion(
    val version: Long,
    val round: Long?,
    val sets: Map<String, Download>,
    val privacy: JsonObject,
    val created: Double,
) {
    init {
        checkCount("version", version)
        checkCount("round", round)
    }
}

/**
 * `head` in the metadata of an update file, as JSON.
 *
 * @property examples what the update was trained on
 * @property clipped whether clipping shortened it
 */
@Serializable
internal data class UpdateHead(
    val task: String,
    val round: Long,
    val version: Long,
    val examples: Long,
    val steps: Long,
    val clipped: Boolean = false,
    val reports: Map<String, Double> = emptyMap(),
) {
    init {
        checkForm("task", task, ID)
        for ((field, value) in listOf("round" to round, "version" to version, "examples" to examples, "steps" to steps)) {
            checkCount(field, value)
        }
        require(reports.size <= MOST_REPORTS && reports.values.all { it.isFinite() }) { "reports: more than $MOST_REPORTS, or not finite" }
    }
}

@Serializable
internal enum class UploadStatus {
    @SerialName("accepted")
    ACCEPTED,

    @SerialName("partial")
    PARTIAL,
}

/** Answer to an upload: accepted (also when the same was sent before), or partial with what is there. */
@Serializable
internal data class UploadState(
    val status: UploadStatus,
    val task: String,
    val received: Long,
    val duplicate: Boolean = false,
) {
    init {
        checkForm("task", task, ID)
        checkCount("received", received)
    }
}

@Serializable
internal enum class DeclineReason {
    @SerialName("no_examples")
    NO_EXAMPLES,

    @SerialName("good_enough")
    GOOD_ENOUGH,

    @SerialName("diverged")
    DIVERGED,

    @SerialName("cancelled")
    CANCELLED,

    @SerialName("privacy")
    PRIVACY,

    @SerialName("engine")
    ENGINE,

    @SerialName("storage")
    STORAGE,

    @SerialName("plan")
    PLAN,

    @SerialName("out_of_memory")
    OUT_OF_MEMORY,

    @SerialName("too_slow")
    TOO_SLOW,
}

/** Body of `POST /v1/tasks/{id}/decline`: the device will not send an update. */
@Serializable
internal data class Decline(
    val reason: DeclineReason,
)

/** A metric over held-out labels: its sum and how many there were, a whole number. */
@Serializable
internal data class MetricSum(
    val sum: Double,
    val weight: Double,
) {
    init {
        require(weight in 1.0..MOST_WEIGHT && weight % 1 == 0.0) { "weight: $weight is no whole number from 1 to $MOST_WEIGHT" }
    }
}

/**
 * Body of `POST /v1/tasks/{id}/evaluation`: sums over this device's held-out labels; added to others' at once. Both maps hold the same
 * metrics.
 *
 * @property global measured with the shared values as sent
 * @property personalized measured with what serves after training
 */
@Serializable
internal data class EvaluationReport(
    val global: Map<String, MetricSum>,
    val personalized: Map<String, MetricSum>,
    val adopted: Boolean,
) {
    init {
        require(maxOf(global.size, personalized.size) <= MOST_METRICS) { "more than $MOST_METRICS metrics" }
    }
}

/** An RFC 9457 problem. */
@Serializable
internal data class ProblemBody(
    val type: String,
    val title: String,
    val status: Long,
    val detail: String,
    val code: String,
    val mend: String,
    val instance: String? = null,
)

/** Reads and writes the bodies of the protocol. */
internal object Bodies {
    /** Newer servers may say more. */
    private val lenient = Json(strictJson) { ignoreUnknownKeys = true }

    /**
     * The body of an answer; unknown fields are refused.
     *
     * @param what was asked, for messages
     * @throws IllegalArgumentException the bytes are no JSON: they did not arrive whole
     * @throws ProtocolException it is not of this version of the protocol
     */
    fun <T> decode(
        form: KSerializer<T>,
        data: ByteArray,
        what: String,
    ): T = decode(form, parseJson(data), what)

    /** The same of JSON that is parsed already. */
    fun <T> decode(
        form: KSerializer<T>,
        body: JsonElement,
        what: String,
    ): T = decode(strictJson, form, body, what)

    /** As [decode] of bytes; fields that a later server adds are ignored. */
    fun <T> answer(
        form: KSerializer<T>,
        data: ByteArray,
        what: String,
    ): T = decode(lenient, form, parseJson(data), what)

    private fun <T> decode(
        json: Json,
        form: KSerializer<T>,
        body: JsonElement,
        what: String,
    ): T =
        try {
            json.decodeFromJsonElement(form, body)
        } catch (error: IllegalArgumentException) {
            throw ProtocolException(
                "the answer to $what is not of protocol version $PROTOCOL: ${error.message.orEmpty().lineSequence().first()}",
                mend = "check the server's address, and update the app if the server is newer",
                error,
            )
        }

    /** The texts in an object of JSON by name; none where it is no such object. */
    fun fields(data: ByteArray): Map<String, String> =
        try {
            (parseJson(data) as? JsonObject)
                .orEmpty()
                .mapNotNull { (name, value) -> (value as? JsonPrimitive)?.takeIf { it.isString }?.let { name to it.content } }
                .toMap()
        } catch (_: IllegalArgumentException) {
            emptyMap()
        }

    /** JSON with every field. */
    fun <T> encode(
        form: KSerializer<T>,
        body: T,
    ): ByteArray = strictJson.encodeToString(form, body).encodeToByteArray()
}
