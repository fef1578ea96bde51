package io.pflmobile.core.plan

import io.pflmobile.core.files.StrictDouble
import io.pflmobile.core.files.StrictLong
import kotlinx.serialization.ExperimentalSerializationApi
import kotlinx.serialization.KSerializer
import kotlinx.serialization.SerializationException
import kotlinx.serialization.descriptors.SerialDescriptor
import kotlinx.serialization.encoding.Decoder
import kotlinx.serialization.encoding.Encoder
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonDecoder
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonEncoder
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.contentOrNull

/** A field of JSON that is a string, a number or an object; which of them says what it means. */
internal abstract class JsonUnion<T>(
    name: String,
) : KSerializer<T> {
    @OptIn(ExperimentalSerializationApi::class)
    override val descriptor: SerialDescriptor = SerialDescriptor("pfl.$name", JsonElement.serializer().descriptor)

    abstract fun read(
        json: Json,
        element: JsonElement,
    ): T

    abstract fun write(
        json: Json,
        value: T,
    ): JsonElement

    override fun deserialize(decoder: Decoder): T = (decoder as JsonDecoder).let { read(it.json, it.decodeJsonElement()) }

    override fun serialize(
        encoder: Encoder,
        value: T,
    ): Unit = (encoder as JsonEncoder).let { it.encodeJsonElement(write(it.json, value)) }

    protected fun name(element: JsonElement): String? = (element as? JsonPrimitive)?.takeIf { it.isString }?.contentOrNull

    protected fun wrong(expected: String): Nothing = throw SerializationException("$expected is expected")
}

/** Strength of the proximal term: a number, or the name of a set with one array per tensor. */
internal sealed interface Mu {
    data class Number(
        val value: Double,
    ) : Mu {
        override fun toString(): String = general(value)
    }

    data class Named(
        val set: String,
    ) : Mu {
        override fun toString(): String = set
    }
}

internal object MuSerializer : JsonUnion<Mu>("Mu") {
    override fun read(
        json: Json,
        element: JsonElement,
    ): Mu {
        name(element)?.let { return Mu.Named(it) }
        if (element !is JsonPrimitive || element is JsonNull) wrong("a number or the name of a set")
        return Mu.Number(StrictDouble.number(element))
    }

    override fun write(
        json: Json,
        value: Mu,
    ): JsonElement =
        when (value) {
            is Mu.Number -> JsonPrimitive(value.value)
            is Mu.Named -> JsonPrimitive(value.set)
        }
}

/** Batches whose gradients make one step: so many, or all of an epoch. */
internal sealed interface BatchesPerStep {
    data class Count(
        val value: Long,
    ) : BatchesPerStep {
        override fun toString(): String = value.toString()
    }

    data object All : BatchesPerStep {
        override fun toString(): String = "all"
    }
}

internal object BatchesPerStepSerializer : JsonUnion<BatchesPerStep>("BatchesPerStep") {
    override fun read(
        json: Json,
        element: JsonElement,
    ): BatchesPerStep =
        when (name(element)) {
            "all" -> BatchesPerStep.All
            null -> BatchesPerStep.Count(json.decodeFromJsonElement(StrictLong, element))
            else -> wrong("a number of batches or 'all'")
        }

    override fun write(
        json: Json,
        value: BatchesPerStep,
    ): JsonElement =
        when (value) {
            is BatchesPerStep.Count -> JsonPrimitive(value.value)
            BatchesPerStep.All -> JsonPrimitive("all")
        }
}

internal object EvaluateAtSerializer : JsonUnion<EvaluateAt>("EvaluateAt") {
    override fun read(
        json: Json,
        element: JsonElement,
    ): EvaluateAt =
        when {
            name(element) == "theta" -> EvaluateAt.Theta
            element is JsonObject -> json.decodeFromJsonElement(Point.serializer(), withKind(element))
            else -> wrong("'theta', a mix or a lookahead")
        }

    override fun write(
        json: Json,
        value: EvaluateAt,
    ): JsonElement =
        when (value) {
            EvaluateAt.Theta -> JsonPrimitive("theta")
            is Point -> json.encodeToJsonElement(Point.serializer(), value)
        }

    /** A point may leave out its kind, as the fields of the two differ. */
    private fun withKind(fields: JsonObject): JsonObject =
        if ("kind" in fields) fields else JsonObject(fields + ("kind" to JsonPrimitive(if ("step" in fields) "lookahead" else "mix")))
}

internal object ServeSerializer : JsonUnion<Serve>("Serve") {
    override fun read(
        json: Json,
        element: JsonElement,
    ): Serve {
        name(element)?.let { return Serve.Named(it) }
        if (element !is JsonObject) wrong("the name of a set or a mix")
        return when (val kind = element["kind"] ?: JsonPrimitive("mix")) {
            JsonPrimitive("mix") -> json.decodeFromJsonElement(ServeMix.serializer(), JsonObject(element - "kind"))
            else -> wrong("'mix', not $kind,")
        }
    }

    override fun write(
        json: Json,
        value: Serve,
    ): JsonElement =
        when (value) {
            is Serve.Named -> {
                JsonPrimitive(value.set)
            }

            is ServeMix -> {
                val fields = json.encodeToJsonElement(ServeMix.serializer(), value) as JsonObject
                JsonObject(mapOf("kind" to JsonPrimitive("mix")) + fields)
            }
        }
}
