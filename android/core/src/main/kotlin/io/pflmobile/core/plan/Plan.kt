@file:UseSerializers(StrictLong::class, StrictDouble::class, StrictBoolean::class)

package io.pflmobile.core.plan

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.files.StrictBoolean
import io.pflmobile.core.files.StrictDouble
import io.pflmobile.core.files.StrictLong
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.files.strictJson
import io.pflmobile.core.tensors.NameOrder
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.SerializationException
import kotlinx.serialization.UseSerializers
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.longOrNull

/** What a copy holds on a device that does not have it yet: the values of [of] for the group's tensors. */
@Serializable
internal data class CopyStart(
    val of: String = "zero",
    val group: List<String> = listOf("*"),
) {
    init {
        checkName("of", of)
        checkPatterns("group", group)
    }
}

/**
 * Whether the trained state replaces the old one.
 *
 * @property metric `loss` or a metric of the evaluate program
 * @property minExamples with fewer held-out examples nothing is trained
 * @property tolerance how much worse the metric may become, exclusive; 0 asks for a real improvement
 * @property appeal the shipped model is good enough when its metric reaches this; then nothing is trained. Null never stops
 */
@Serializable
public class Guard internal constructor(
    public val metric: String = "loss",
    public val minExamples: Long = 1,
    public val tolerance: Double = 0.0,
    public val appeal: Double? = null,
) {
    init {
        checkName("metric", metric)
        checkWhole("min_examples", minExamples)
        checkNotNegative("tolerance", tolerance)
    }

    /** Whether a smaller value of the metric is an improvement. */
    public val lowerIsBetter: Boolean get() = metric in LOWER_IS_BETTER

    internal companion object {
        /** Metrics that are better when smaller; every other name is better when larger. */
        internal val LOWER_IS_BETTER = setOf("loss", "mae", "mse", "rmse", "error", "perplexity")
    }
}

/** What predictions use and the guard measures. */
internal sealed interface Serve {
    data class Named(
        val set: String,
    ) : Serve
}

/** alpha * one + (1 - alpha) * other, between two named sets. */
@Serializable
internal data class ServeMix(
    val one: String = "theta",
    val other: String,
    val alpha: Double,
) : Serve {
    init {
        checkName("one", one)
        checkName("other", other)
        checkNotNegative("alpha", alpha, most = 1.0)
    }
}

@Serializable
internal enum class Start {
    @SerialName("current")
    CURRENT,

    @SerialName("initial")
    INITIAL,
}

/**
 * What a device does locally, as data: ordered phases, then the guard, then what to send. One update rule serves every algorithm; a
 * phase only names its terms. Sets of values that a phase can name:
 *
 * * `initial`: the values shipped in the bundle;
 * * `global`: the latest values from the aggregator (the shipped ones when there are none yet);
 * * `theta`: the device's own tensors as they are now;
 * * `start`: what this phase trains, as it was when the phase began;
 * * `zero`: nothing but zeros;
 * * any copy that a phase makes or that [copies] starts, and any set of arrays that the host hands in.
 *
 * @property guard when a trained state is adopted
 * @property seed of every shuffle, from 0
 * @property upload patterns of the tensors whose change is sent; personal tensors never are
 * @property uploadCopies copies whose change is sent too, of the same tensors (SCAFFOLD's control variates)
 * @property holdout part of the examples, the newest, kept for the guard
 * @property rememberHoldout after the guard has adopted, memorize the held-out examples too, as they are the newest
 */
@Serializable
public class Plan internal constructor(
    internal val schemaVersion: Long = SCHEMA_VERSION,
    internal val phases: List<Phase>,
    public val guard: Guard = Guard(),
    public val seed: Long = 0,
    public val upload: List<String> = emptyList(),
    public val uploadCopies: List<String> = emptyList(),
    internal val copies: Map<String, CopyStart> = emptyMap(),
    internal val keep: List<String>? = null,
    public val holdout: Double = 0.2,
    internal val start: Start = Start.CURRENT,
    @Serializable(with = ServeSerializer::class)
    internal val serve: Serve = Serve.Named("theta"),
    public val rememberHoldout: Boolean = false,
) {
    init {
        if (schemaVersion != SCHEMA_VERSION) invalid("schema_version: $schemaVersion is not $SCHEMA_VERSION")
        if (phases.isEmpty()) invalid("phases: at least one is needed")
        if (seed < 0) invalid("seed: $seed is less than 0")
        for ((field, names) in listOf(
            "upload" to upload,
            "upload_copies" to uploadCopies,
            "keep" to keep.orEmpty(),
            "copies" to copies.keys,
        )) {
            names.forEach { checkName(field, it) }
        }
        if (!(holdout > 0 && holdout < 1)) invalid("holdout: ${general(holdout)} is not between 0 and 1")
        (serve as? Serve.Named)?.let { checkName("serve", it.set) }
        if (unrolledCount(phases) > MOST_PHASES) invalid("repeats unroll to more than $MOST_PHASES phases")
        checkCopies()
        checkRates()
    }

    private fun checkCopies() {
        copies.keys.forEach { checkOwnName("copies", it) }
        val made = made()
        for (name in keep.orEmpty() + uploadCopies) {
            if (name !in made) invalid("no phase makes a copy '$name'; the plan makes ${made.sorted()}")
        }
        for (name in servedNames()) {
            if (keep != null && name in made && name !in keep) invalid("serve names the copy '$name', which is not among those in keep")
        }
        if (uploadCopies.isNotEmpty() && upload.isEmpty()) invalid("upload_copies needs upload, which says of which tensors")
    }

    private fun checkRates() {
        var rate = false
        for (phase in distinctSteps()) {
            if (phase.needsRate && !rate) invalid("a ${phase.kind} phase with \"per\": \"rate\" needs a train phase before it")
            rate = rate || phase.leavesRate
        }
    }

    /** Names of all copies that there can be after the phases. */
    internal fun made(): Set<String> = copies.keys + distinctSteps().mapNotNull { it.makesCopy } - "theta"

    internal fun servedNames(): List<String> =
        when (serve) {
            is Serve.Named -> listOf(serve.set)
            is ServeMix -> listOf(serve.one, serve.other)
        }

    /** The phases in the order they run, repeats unrolled. */
    internal fun steps(): List<Step> = unrolled(phases)

    /** Each different phase once, in the order of their first runs: enough for whoever only asks about them. */
    internal fun distinctSteps(): List<Step> = distinct(phases)

    /** Names of the numbers that are sent beside the update, sorted. */
    public val reports: List<String> get() = distinctSteps().mapNotNull { it.reported }.distinct().sortedWith(NameOrder)

    /** JSON with every field, defaults too, so that no reader needs to know them. */
    public fun dump(): String = strictJson.encodeToString(serializer(), this) + "\n"

    /** Reads plans. */
    public companion object {
        private const val SCHEMA_VERSION = 1L

        /**
         * Parse plan.json.
         *
         * @throws ConfigException not JSON, an unknown or missing field, a value out of range, a newer schema
         */
        public fun load(text: String): Plan {
            val raw =
                try {
                    parseJson(text)
                } catch (error: IllegalArgumentException) {
                    throw ConfigException("the plan is not valid JSON: ${error.message}", mend = "compare it with plan.schema.json", error)
                }
            return of(raw)
        }

        /**
         * The plan that a task of the aggregator holds.
         *
         * @throws ConfigException as [load]
         */
        internal fun of(raw: JsonElement): Plan {
            val version = ((raw as? JsonObject)?.get("schema_version") as? JsonPrimitive)?.takeIf { !it.isString }?.longOrNull
            if (version != null && version > SCHEMA_VERSION) {
                throw ConfigException(
                    "the plan has schema_version $version, newer than $SCHEMA_VERSION",
                    mend = "update pfl-mobile, or export again",
                )
            }
            return try {
                strictJson.decodeFromJsonElement(serializer(), raw)
            } catch (error: SerializationException) {
                throw ConfigException("the plan is invalid: ${firstLine(error)}", mend = "compare it with plan.schema.json", error)
            }
        }

        private fun firstLine(error: Throwable): String =
            error.message
                .orEmpty()
                .lineSequence()
                .first()
    }
}
