package io.pflmobile.core.files

import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.TensorFileException
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.NameOrder
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.tensors.countNotFinite
import io.pflmobile.core.tensors.putInto
import io.pflmobile.core.tensors.tensorOf
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.charset.CharacterCodingException

/** What a safetensors file holds: named tensors, and short notes in its header. */
internal class TensorFile(
    val tensors: Map<String, Tensor>,
    val metadata: Map<String, String>,
)

/**
 * Named tensors as safetensors bytes: initial values, golden batches, updates, personal states.
 *
 * The bytes are a function of the tensors and the metadata alone, and those that Python gives for the same.
 */
internal object Safetensors {
    private const val METADATA = "__metadata__"
    private const val MOST_HEADER = 100_000_000
    private const val AGAIN = "write the file again from its source, or go back to an earlier copy"

    /**
     * The bytes of a file.
     *
     * @param finite refuse NaN and infinity
     * @throws NonFiniteException [finite], and a value is not
     * @throws TensorFileException a name that the format cannot hold, or more bytes than an array
     */
    fun write(
        tensors: Map<String, Tensor>,
        metadata: Map<String, String> = emptyMap(),
        finite: Boolean = false,
    ): ByteArray {
        if (finite) checkFinite(tensors)
        for (name in tensors.keys + metadata.keys + metadata.values) checkText(name)
        // As the library orders them, so that every tensor begins at a multiple of its width.
        val order =
            tensors.entries.sortedWith(
                compareByDescending<Map.Entry<String, Tensor>> { it.value.dtype }.thenBy(NameOrder) { it.key },
            )
        val entries = ArrayList<String>()
        if (metadata.isNotEmpty()) {
            val notes = metadata.entries.sortedWith(compareBy(NameOrder) { it.key })
            entries += "\"$METADATA\":{" + notes.joinToString(",") { "${quoted(it.key)}:${quoted(it.value)}" } + "}"
        }
        var end = 0L
        for ((name, tensor) in order) {
            val start = end
            end += tensor.size.toLong() * tensor.dtype.bytes
            val shape = tensor.shape.joinToString(",")
            entries +=
                "${quoted(name)}:{\"dtype\":\"${tensor.dtype.safetensorsName}\",\"shape\":[$shape],\"data_offsets\":[$start,$end]}"
        }
        val header = entries.joinToString(",", "{", "}").encodeToByteArray()
        val padding = -header.size and 7
        val total = 8L + header.size + padding + end
        if (total > Int.MAX_VALUE) throw TensorFileException("the tensors have $total bytes", "store fewer of them in one file")
        val out = ByteBuffer.allocate(total.toInt()).order(ByteOrder.LITTLE_ENDIAN)
        out.putLong((header.size + padding).toLong()).put(header)
        repeat(padding) { out.put(' '.code.toByte()) }
        order.forEach { it.value.putInto(out) }
        return out.array()
    }

    /**
     * The tensors and notes in [data], from its position to its limit; each tensor has values of its own.
     *
     * @param what the name that errors give the data
     * @throws TensorFileException not a safetensors file, a damaged one, or one with a dtype that is not supported
     */
    fun read(
        data: ByteBuffer,
        what: String,
    ): TensorFile {
        try {
            return parse(data.slice().order(ByteOrder.LITTLE_ENDIAN))
        } catch (error: IllegalArgumentException) {
            throw TensorFileException("$what is not a valid safetensors file: ${error.message}", AGAIN, error)
        } catch (error: CharacterCodingException) {
            throw TensorFileException("$what is not a valid safetensors file: its header is not UTF-8", AGAIN, error)
        }
    }

    /** The same of an array. */
    fun read(
        data: ByteArray,
        what: String,
    ): TensorFile = read(ByteBuffer.wrap(data), what)

    /**
     * Refuses NaN and infinity.
     *
     * @throws NonFiniteException naming the tensor and how many of its values are not finite
     */
    fun checkFinite(tensors: Map<String, Tensor>) {
        for ((name, tensor) in tensors) {
            val bad = tensor.countNotFinite()
            if (bad > 0) {
                throw NonFiniteException(
                    "tensor '$name' has $bad of ${tensor.size} values NaN or infinite",
                    "lower the learning rate or clip the gradients, and start from the last good values",
                )
            }
        }
    }

    private class Place(
        val name: String,
        val dtype: DType,
        val shape: List<Int>,
        val start: Long,
        val end: Long,
    )

    private fun parse(data: ByteBuffer): TensorFile {
        require(data.remaining() >= 8) { "it is too short for a header" }
        val length = data.getLong()
        require(length in 0..minOf(data.remaining(), MOST_HEADER).toLong()) { "its header is longer than the file" }
        val text = strictly(Charsets.UTF_8, data.slice().limit(length.toInt()) as ByteBuffer)
        data.position(8 + length.toInt())
        val body = data.slice().order(ByteOrder.LITTLE_ENDIAN)
        val header = requireNotNull(parseJson(text) as? JsonObject) { "its header is no object" }
        val places = header.filterKeys { it != METADATA }.map { (name, entry) -> place(name, entry) }
        var end = 0L
        // Every byte belongs to one tensor: nothing can hide between them.
        for (place in places.sortedWith(compareBy({ it.start }, { it.end }))) {
            require(place.start == end && place.end >= end) { "invalid offset for tensor '${place.name}'" }
            end = place.end
        }
        require(end == body.remaining().toLong()) { "its tensors have $end bytes, but ${body.remaining()} are there" }
        val tensors =
            places.associate { place ->
                val part = body.duplicate().order(ByteOrder.LITTLE_ENDIAN)
                part.limit(place.end.toInt()).position(place.start.toInt())
                place.name to tensorOf(place.dtype, place.shape, part)
            }
        return TensorFile(tensors, notes(header))
    }

    private fun place(
        name: String,
        entry: JsonElement,
    ): Place {
        val fields = requireNotNull(entry as? JsonObject) { "tensor '$name' is no object" }
        val dtype = (fields["dtype"] as? JsonPrimitive)?.takeIf { it.isString }?.content
        val shape = counts(fields["shape"])
        val offsets = counts(fields["data_offsets"])
        require(dtype != null && shape != null && offsets?.size == 2) { "tensor '$name' lacks dtype, shape or data_offsets" }
        val type = requireNotNull(DType.ofSafetensors(dtype)) { "tensor '$name' has the unknown dtype $dtype" }
        var size = type.bytes.toLong()
        for (dimension in shape) {
            require(dimension <= Int.MAX_VALUE && (size == 0L || dimension <= Long.MAX_VALUE / size)) { "tensor '$name' is too large" }
            size *= dimension
        }
        require(offsets[1] - offsets[0] == size) { "tensor '$name' of shape $shape does not fill its place" }
        return Place(name, type, shape.map { it.toInt() }, offsets[0], offsets[1])
    }

    /** Whole numbers of 0 or more; null when there are others. */
    private fun counts(element: JsonElement?): List<Long>? =
        (element as? JsonArray)?.map {
            val number = (it as? JsonPrimitive)?.takeUnless { value -> value.isString || value is JsonNull }
            number?.content?.toLongOrNull()?.takeIf { value -> value >= 0 } ?: return null
        }

    private fun notes(header: JsonObject): Map<String, String> {
        val notes = header[METADATA] ?: return emptyMap()
        require(notes is JsonObject) { "its metadata is no object" }
        return notes.mapValues { (key, value) ->
            require(value is JsonPrimitive && value.isString) { "the note '$key' is no text" }
            value.content
        }
    }

    private fun quoted(text: String) = jsonString(text, ascii = false)

    /** A half of a surrogate pair is in no encoding, and would be written as a question mark. */
    private fun checkText(text: String) {
        if (text == METADATA || !Charsets.UTF_8.newEncoder().canEncode(text)) {
            throw TensorFileException(
                "a name or note among the tensors cannot be stored",
                "use names without broken surrogates, and none of $METADATA",
            )
        }
    }
}
