package io.pflmobile.core.device

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.files.pythonFloat
import io.pflmobile.core.privacy.Clipping
import io.pflmobile.core.privacy.Limits
import io.pflmobile.core.privacy.LocalNoise
import io.pflmobile.core.privacy.Noise
import io.pflmobile.core.privacy.SecureNoise
import io.pflmobile.core.protocol.TaskPrivacy
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.math.BigDecimal
import java.math.MathContext
import java.math.RoundingMode
import kotlin.math.abs

/**
 * What must protect an update before it leaves the device. Fail closed: without protection nothing is sent.
 *
 * @property require false sends updates also where nothing protects them; only the device's user can say so
 * @property onlyLocal true trusts no aggregator: nothing that was trained or measured leaves the device but updates under its own noise,
 *   no evaluation reports either, whatever mechanism the task names; counts of examples and steps do leave
 * @property minNoise with [onlyLocal], the smallest noise multiplier (relative to the clip norm) of that noise
 * @property maxEpsilon largest epsilon. Where the aggregator adds the noise, and is trusted to, that which the task names for the time
 *   when the update is in a model; else that which the device computes from its own noise and its own count of updates under it.
 *   What was given before is added: under the own noise, and to other memberships against a promise. Neither evaluation reports nor the
 *   numbers that go along with an update are in any epsilon, nor what was sent with `require = false`
 * @property maxDelta largest delta of the aggregator's guarantee, and that at which the device computes the epsilon of its own noise,
 *   where the task's statement does not make it smaller
 * @property report whether sums that no noise hides may be sent: evaluation reports on the user's own test examples, and the numbers that
 *   a task asks for along with its update; false refuses such a task
 * @throws ConfigException a number is out of range, or some settings contradict each other
 */
public class PrivacyPolicy(
    public val require: Boolean = true,
    public val onlyLocal: Boolean = false,
    public val minNoise: Double = 0.0,
    public val maxEpsilon: Double = Limits.DEVICE_EPSILON,
    public val maxDelta: Double = Limits.DEVICE_DELTA,
    public val report: Boolean = true,
) {
    init {
        refuse(!(maxEpsilon > 0 && maxEpsilon <= Limits.MOST_EPSILON), "the largest epsilon is ${general(maxEpsilon)}") {
            "give one above 0 and up to ${general(
                Limits.MOST_EPSILON,
            )}; with more nothing is protected, and there is require = false for " +
                "that"
        }
        refuse(maxDelta !in Limits.LEAST_DELTA..Limits.MOST_DELTA, "the largest delta is ${general(maxDelta)}") {
            "give one from ${general(Limits.LEAST_DELTA)} to ${general(Limits.MOST_DELTA)}, well below 1 / number of devices"
        }
        refuse(!(minNoise >= 0 && minNoise.isFinite()), "the smallest noise is ${general(minNoise)}") { "give 0 or more" }
        refuse(onlyLocal && !require, "updates cannot need this device's own noise and be sent without any") { "decide for one" }
        refuse(minNoise > 0 && !onlyLocal, "a smallest noise is about this device's own, which is not asked for") {
            "ask for it too (onlyLocal)"
        }
    }

    /**
     * Why an update must not be sent; null when it may.
     *
     * @param privacy of its task, as the aggregator gave it
     * @param reports names of the numbers that go along
     * @param sent what left this device under its own noise so far
     * @param counted whether this update is in [sent] already
     * @param spent what other memberships promised, where that is counted: all is one budget then
     * @param device this membership's
     */
    internal fun refusal(
        privacy: TaskPrivacy,
        reports: Collection<String>,
        sent: SentNoise,
        counted: Boolean = false,
        spent: Spent? = null,
        device: String? = null,
    ): String? {
        val own = own(privacy)
        val local = privacy.localNoiseMultiplier
        val more = if (counted || privacy.clipNorm == null || !(local > 0)) emptyList() else listOf(local)
        return when {
            !report && reports.isNotEmpty() -> {
                "the numbers ${reports.joinToString()} are asked for, which no noise protects, and reports are not allowed here"
            }

            !require -> {
                null
            }

            !own -> {
                unprotected(privacy) ?: untold(privacy) ?: contradiction(privacy) ?: spent?.let {
                    above(it.promisedElsewhere(device) + sent.epsilon(delta(privacy), more) + (privacy.epsilonAfter ?: 0.0))
                }
            }

            else -> {
                unprotected(privacy) ?: if (reports.isNotEmpty()) {
                    "the numbers ${reports.joinToString()} are asked for, which no noise protects from the aggregator"
                } else {
                    above(sent.epsilon(delta(privacy), more) + (spent?.promised?.first ?: 0.0))
                }
            }
        }
    }

    /** Why no noise hides the update; null where some may. */
    private fun unprotected(privacy: TaskPrivacy): String? {
        val own = own(privacy)
        val local = privacy.localNoiseMultiplier
        return when {
            !privacy.guarantees -> {
                "nothing protects the updates (mechanism 'none')"
            }

            privacy.clipNorm == null || privacy.clipNorm !in Limits.CLIP_NORMS -> {
                "updates are not clipped (clip norm ${privacy.clipNorm?.let(::pythonFloat) ?: "None"}), so noise could not hide one"
            }

            !(local.isFinite() && privacy.noiseMultiplier.isFinite()) -> {
                "noise of ${privacy.noiseMultiplier} and $local clip norms is none"
            }

            own && !(local > 0) -> {
                "this device adds no noise of its own (mechanism '${mechanism(privacy)}')"
            }

            !(local > 0 || privacy.noiseMultiplier > 0) -> {
                "the mechanism '${mechanism(privacy)}' adds no noise"
            }

            local < minNoise -> {
                "this device's own noise is ${general(local, 4)}, the least that is accepted here is ${general(minNoise, 4)}"
            }

            else -> {
                null
            }
        }
    }

    /** Whether the evaluation report may be sent: not to an aggregator that is not trusted with updates either. */
    internal fun mayReport(privacy: TaskPrivacy): Boolean = report && !(require && own(privacy))

    /** Whether only the device's own noise counts. */
    private fun own(privacy: TaskPrivacy) = onlyLocal || !privacy.trustsAggregator

    private fun above(epsilon: Double): String? =
        if (epsilon <= maxEpsilon) {
            null
        } else {
            "epsilon is ${general(epsilon, 4)}, the most that is accepted here is ${general(maxEpsilon, 4)}"
        }

    /** What the aggregator's guarantee lacks, by its own words; null where it is enough. */
    private fun untold(privacy: TaskPrivacy): String? {
        val told = privacy.statement
        val delta = number(told["delta"])
        return when {
            told["private"] != JsonPrimitive(true) -> {
                "the aggregator's statement does not say that anything is private"
            }

            delta == null || !(delta > 0) -> {
                "the aggregator's statement names no delta (${said(told["delta"])})"
            }

            delta > maxDelta * (1 + ROUNDING) -> {
                "delta is ${general(delta)}, the most that is accepted here is ${general(maxDelta)}"
            }

            privacy.epsilonAfter == null || privacy.epsilonAfter.isNaN() -> {
                "the task names no epsilon for after its round"
            }

            else -> {
                above(privacy.epsilonAfter)
            }
        }
    }

    /**
     * What in a guarantee that is enough by its own words cannot be true; null where nothing shows it.
     *
     * The sampling is believed, as it happens where a device does not see it. But no sampling makes noise hide an update that hides
     * nothing from those who know that it is there, and no number of rounds costs less than one.
     */
    private fun contradiction(privacy: TaskPrivacy): String? {
        val told = privacy.statement
        val after = privacy.epsilonAfter ?: 0.0
        val noise = privacy.noiseMultiplier
        val delta = maxOf(number(told["delta"]) ?: 0.0, Limits.LEAST_DELTA)
        val known = if (noise > LEAST_NOISE) LocalNoise.releaseEpsilon(1 / noise, delta) else Double.POSITIVE_INFINITY
        val claimed = told["noise_multiplier"] ?: JsonPrimitive(noise)
        val said = number(claimed)
        val before = number(told["epsilon"])
        return when {
            known > Limits.MOST_EPSILON -> {
                "the noise is too small: to those who know that it is in the round this update alone costs epsilon " +
                    "${general(known, 4)}, the most that is private is ${general(Limits.MOST_EPSILON)}"
            }

            said == null || abs(said - noise) > ROUNDING * noise -> {
                "the statement is of a noise multiplier of ${said(claimed)}, the task's is ${general(noise)}"
            }

            before == null || !(before >= 0 && before <= after * (1 + ROUNDING)) -> {
                "the statement names epsilon ${said(told["epsilon"])} before the round, and the task ${general(after)} after it"
            }

            else -> {
                oneRound(privacy, after, noise, delta)
            }
        }
    }

    /** What is wrong with the sampling, or with an epsilon below that of one round under it. */
    private fun oneRound(
        privacy: TaskPrivacy,
        after: Double,
        noise: Double,
        delta: Double,
    ): String? {
        val sampling = privacy.statement["sampling"].takeIf { it != JsonNull }
        val given = privacy.statement["sampling_rate"].takeIf { it != JsonNull }
        val rate =
            when (sampling) {
                JsonPrimitive("none") -> {
                    1.0
                }

                JsonPrimitive("poisson"), JsonPrimitive("fixed") -> {
                    number(given)?.takeIf { it > 0 && it <= 1 } ?: return "the statement names no sampling rate (${said(given)})"
                }

                else -> {
                    if (sampling == null && given == null) return null // an aggregator that does not tell
                    return "the statement names a sampling that is not known here (${said(sampling)})"
                }
            }
        val least = LocalNoise.sampledEpsilon(1 / noise, rate, delta)
        if (after >= least * (1 - ROUNDING)) return null
        return "the task names epsilon ${general(after, 4)} for after its round, but one round with a noise multiplier of " +
            "${general(noise)} and the sampling ${said(sampling)} costs ${general(least, 4)}"
    }

    /** The statement's where it is stricter. */
    private fun delta(privacy: TaskPrivacy): Double {
        val told = number(privacy.statement["delta"])
        return if (told != null && told > 0 && told < maxDelta) maxOf(told, Limits.LEAST_DELTA) else maxDelta
    }

    internal companion object {
        /** Whether an aggregator's guarantee can be true, however little it is. */
        fun believes(privacy: TaskPrivacy): Boolean =
            privacy.trustsAggregator && WIDEST.run { unprotected(privacy) ?: untold(privacy) ?: contradiction(privacy) } == null

        private val WIDEST by lazy { PrivacyPolicy(maxEpsilon = Limits.MOST_EPSILON, maxDelta = Limits.MOST_DELTA) }

        /** Share by which numbers of a statement may differ from those computed here: they are rounded, and computed otherwise. */
        private const val ROUNDING = 1e-3
        private const val LEAST_NOISE = 1e-100

        private fun refuse(
            bad: Boolean,
            message: String,
            mend: () -> String,
        ) {
            if (bad) throw ConfigException(message, mend())
        }

        private fun mechanism(privacy: TaskPrivacy) = privacy.mechanism.name.lowercase()
    }
}

/**
 * An update as it may leave the device.
 *
 * @property flat float32 `[P]`
 * @property norm L2 norm before clipping
 * @property clipped whether clipping shortened it
 */
internal class Protected(
    val flat: FloatArray,
    val norm: Double,
    val clipped: Boolean,
)

/**
 * Clips a whole update, all tensors together, and adds the device's own noise where the task asks for it.
 *
 * @param flat the change, float32 `[P]`
 * @param noise null for the secure source
 * @throws NonFiniteException a value is NaN or infinite
 */
internal fun protect(
    flat: FloatArray,
    privacy: TaskPrivacy,
    noise: Noise? = null,
): Protected {
    val norm = Clipping.norm(flat)
    val clipNorm = privacy.clipNorm ?: return Protected(flat, norm, clipped = false)
    val sent = LocalNoise.privateUpdate(flat, clipNorm, privacy.localNoiseMultiplier, noise ?: SecureNoise())
    return Protected(sent, norm, Clipping.factor(norm, clipNorm) < 1)
}

/** Delta of the aggregator's guarantee; null where its statement names none. */
internal fun statedDelta(privacy: TaskPrivacy): Double? = number(privacy.statement["delta"])?.takeIf { it > 0 }

/** A finite number of a statement; null for anything else. */
private fun number(element: JsonElement?): Double? =
    (element as? JsonPrimitive)
        ?.takeIf { !it.isString }
        ?.content
        ?.toDoubleOrNull()
        ?.takeIf { it.isFinite() }

/** What an aggregator said, in words as Python has them. */
private fun said(element: JsonElement?): String =
    when (element) {
        null, JsonNull -> {
            "None"
        }

        is JsonPrimitive -> {
            when {
                element.isString -> "'${element.content.take(MOST_SAID)}'"
                element.content == "true" -> "True"
                element.content == "false" -> "False"
                element.content.toBigIntegerOrNull() != null -> element.content
                else -> pythonFloat(element.content.toDouble())
            }
        }

        is JsonArray -> {
            element.joinToString(", ", "[", "]", transform = ::said)
        }

        is JsonObject -> {
            element.entries.joinToString(", ", "{", "}") { "'${it.key}': ${said(it.value)}" }
        }
    }

private const val MOST_SAID = 100

/** A number with so many significant digits, as C's `%g`. */
internal fun general(
    value: Double,
    digits: Int = 6,
): String {
    if (value.isInfinite()) return if (value > 0) "inf" else "-inf"
    if (value.isNaN()) return "nan"
    if (value == 0.0) return "0"
    val rounded = BigDecimal(value).round(MathContext(digits, RoundingMode.HALF_EVEN)).stripTrailingZeros()
    val exponent = rounded.precision() - 1 - rounded.scale()
    if (exponent in -4 until digits) return rounded.toPlainString()
    val mantissa = rounded.movePointLeft(exponent).stripTrailingZeros().toPlainString()
    return "${mantissa}e${if (exponent < 0) "-" else "+"}${abs(exponent).toString().padStart(2, '0')}"
}
