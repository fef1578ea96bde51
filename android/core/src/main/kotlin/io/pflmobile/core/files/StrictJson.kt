package io.pflmobile.core.files

import kotlinx.serialization.ExperimentalSerializationApi
import kotlinx.serialization.KSerializer
import kotlinx.serialization.SerializationException
import kotlinx.serialization.descriptors.PrimitiveKind
import kotlinx.serialization.descriptors.PrimitiveSerialDescriptor
import kotlinx.serialization.descriptors.SerialDescriptor
import kotlinx.serialization.encoding.Decoder
import kotlinx.serialization.encoding.Encoder
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonDecoder
import kotlinx.serialization.json.JsonNamingStrategy
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonPrimitive

/** How the formats of pfl-mobile are written: names in snake_case, `kind` says which of several types, every default is written. */
@OptIn(ExperimentalSerializationApi::class)
internal val strictJson: Json =
    Json {
        classDiscriminator = "kind"
        namingStrategy = JsonNamingStrategy.SnakeCase
        encodeDefaults = true
        // A message would quote the JSON, and that may hold a credential.
        exceptionsWithDebugInfo = false
    }

/** An integer; unlike kotlinx's own, no string and nothing with a point or exponent. */
internal object StrictLong : KSerializer<Long> {
    override val descriptor: SerialDescriptor = PrimitiveSerialDescriptor("pfl.Long", PrimitiveKind.LONG)

    override fun deserialize(decoder: Decoder): Long =
        decoder.literal().content.toLongOrNull() ?: throw SerializationException("a whole number below 2^63 is expected")

    override fun serialize(
        encoder: Encoder,
        value: Long,
    ) = encoder.encodeLong(value)
}

/** A finite number; no string. */
internal object StrictDouble : KSerializer<Double> {
    override val descriptor: SerialDescriptor = PrimitiveSerialDescriptor("pfl.Double", PrimitiveKind.DOUBLE)

    override fun deserialize(decoder: Decoder): Double = number(decoder.literal())

    fun number(literal: JsonPrimitive): Double =
        literal.content.toDoubleOrNull()?.takeIf { it.isFinite() && !literal.isString }
            ?: throw SerializationException("a finite number is expected")

    override fun serialize(
        encoder: Encoder,
        value: Double,
    ) = encoder.encodeDouble(value)
}

/** True or false; no string. */
internal object StrictBoolean : KSerializer<Boolean> {
    override val descriptor: SerialDescriptor = PrimitiveSerialDescriptor("pfl.Boolean", PrimitiveKind.BOOLEAN)

    override fun deserialize(decoder: Decoder): Boolean =
        decoder.literal().content.toBooleanStrictOrNull() ?: throw SerializationException("true or false is expected")

    override fun serialize(
        encoder: Encoder,
        value: Boolean,
    ) = encoder.encodeBoolean(value)
}

private fun Decoder.literal(): JsonPrimitive {
    val found = (this as JsonDecoder).decodeJsonElement()
    if (found !is JsonPrimitive || found is JsonNull || found.isString) {
        throw SerializationException("a number, or true or false, is expected without quotes")
    }
    return found
}
