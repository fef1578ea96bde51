package io.pflmobile.core.protocol

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.errors.UpdateFileException
import io.pflmobile.core.errors.UpdateTensorsException
import io.pflmobile.core.files.Safetensors
import io.pflmobile.core.files.jsonString
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.files.pythonFloat
import io.pflmobile.core.files.strictJson
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.plan.UpdateLayout
import io.pflmobile.core.plan.updateShapes
import io.pflmobile.core.tensors.FloatTensor
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * What a device uploads: a canonical safetensors file, so that its bytes after the header are one flat vector.
 *
 *     8 bytes             length N of the header, unsigned, little-endian; a multiple of 8
 *     N bytes             JSON, filled up with spaces:
 *                         {"__metadata__": {"format": "pfl-update", "head": "<UpdateHead as JSON>"},
 *                          "<name>": {"dtype": "F32", "shape": [...], "data_offsets": [from, to]}, ...}
 *     4 bytes a value     float32, little-endian: the tensors in the order of the task's layout, without gaps
 *
 * The layout is sorted by the bytes of the tensors' UTF-8 names. A copy's tensor is named `copy:<copy>:<tensor>`.
 */
internal object UpdateFile {
    private const val FORMAT = "pfl-update"
    private const val AGAIN = "write the update again: names, shapes, order and offsets as the task's layout says"

    /** Bytes that a header may have beside its tensors' entries. */
    private const val MOST_HEAD_BYTES = 64L shl 10

    /** Bytes of a tensor's entry beside its name and shape. */
    private const val ENTRY_BYTES = 160L

    /**
     * The layout of what a plan sends.
     *
     * @throws io.pflmobile.core.errors.ConfigException an upload pattern matches nothing, or personal tensors only
     */
    fun layoutOf(
        plan: Plan,
        table: List<DeviceTensor>,
    ): UpdateLayout = UpdateLayout.canonical(updateShapes(plan, table))

    /** The most bytes that such an update may have. */
    fun sizeLimit(layout: UpdateLayout): Long = 8 + headerLimit(layout) + 4 * layout.size

    private fun headerLimit(layout: UpdateLayout): Long =
        // A byte of a name takes six in JSON where it is escaped; a size takes up to 20 digits and a comma.
        MOST_HEAD_BYTES + layout.shapes.entries.sumOf { (name, shape) -> ENTRY_BYTES + 6 * name.encodeToByteArray().size + 21 * shape.size }

    /**
     * The bytes of an update: the same for the same content, in every language.
     *
     * @param head which task it belongs to, and what was done
     * @param tensors those of the layout
     * @param layout of the task, in canonical order
     * @throws TensorMismatchException a tensor is missing, unknown, or of another shape
     * @throws NonFiniteException a value is NaN or infinite
     * @throws UpdateFileException the layout is not in canonical order, or the head is too long
     */
    fun encode(
        head: UpdateHead,
        tensors: Map<String, FloatTensor>,
        layout: UpdateLayout,
    ): ByteArray {
        if (UpdateLayout.canonical(layout.shapes) != layout) {
            throw UpdateFileException("the layout is not sorted by name", mend = "take the task's own layout")
        }
        for (name in layout.shapes.keys + tensors.keys) {
            val shape = layout.shapes[name]
            val found = tensors[name]
            if (shape == null || found?.shape != shape) {
                val asked = if (shape == null) "is not asked for" else "is to be float32$shape"
                throw TensorMismatchException(
                    "tensor '$name' of the update is ${found?.signature ?: "missing"}; it $asked",
                    mend = "send what the plan uploads",
                )
            }
        }
        Safetensors.checkFinite(tensors)
        val text = header(head, layout).encodeToByteArray()
        val length = (text.size + 7) / 8 * 8 // the values begin at a multiple of 8
        if (length > headerLimit(layout)) {
            throw UpdateFileException(
                "the header of the update has $length bytes, the most is ${headerLimit(layout)}",
                mend = "send fewer reports",
            )
        }
        val out = ByteBuffer.allocate(Math.toIntExact(8 + length + 4 * layout.size)).order(ByteOrder.LITTLE_ENDIAN)
        out.putLong(length.toLong()).put(text)
        repeat(length - text.size) { out.put(' '.code.toByte()) }
        out.asFloatBuffer().put(layout.pack(tensors))
        return out.array()
    }

    private fun header(
        head: UpdateHead,
        layout: UpdateLayout,
    ): String {
        val entries = ArrayList<String>()
        entries += "\"__metadata__\":{\"format\":\"$FORMAT\",\"head\":${jsonString(headText(head), ascii = false)}}"
        layout.forEach { name, start, shape ->
            val end = start + UpdateLayout.length(shape)
            entries += "${jsonString(name, ascii = false)}:{\"dtype\":\"F32\",\"shape\":[${shape.joinToString(",")}]," +
                "\"data_offsets\":[${4 * start},${4 * end}]}"
        }
        return entries.joinToString(",", "{", "}")
    }

    /** The head as Python's `json.dumps` lays it out. */
    private fun headText(head: UpdateHead): String {
        val reports = head.reports.entries.joinToString(", ", "{", "}") { "${jsonString(it.key, ascii = true)}: ${pythonFloat(it.value)}" }
        val counts = "\"round\": ${head.round}, \"version\": ${head.version}, \"examples\": ${head.examples}, \"steps\": ${head.steps}"
        return "{\"task\": \"${head.task}\", $counts, \"clipped\": ${head.clipped}, \"reports\": $reports}"
    }

    /**
     * Where the values begin in an update of this length; as many bytes are needed by [parsePrefix].
     *
     * @throws UpdateTensorsException no update of this layout has this length
     */
    fun payloadOffset(
        layout: UpdateLayout,
        totalLength: Long,
    ): Long {
        val offset = totalLength - 4 * layout.size
        if (offset !in 16..8 + headerLimit(layout)) {
            throw UpdateTensorsException(
                "the update has $totalLength bytes; those of the task have ${4 * layout.size} of values and a header",
                mend = AGAIN,
            )
        }
        return offset
    }

    /**
     * The head of an update, and the offset of its values in bytes; nothing of these is read. A device reads what it wrote before it
     * sends it again.
     *
     * @param data the beginning of the file, at least up to [payloadOffset]
     * @param totalLength bytes of the whole file
     * @throws UpdateTensorsException other tensors, shapes, types or offsets than the layout's, or another length
     * @throws UpdateFileException not an update file
     */
    fun parsePrefix(
        data: ByteArray,
        layout: UpdateLayout,
        totalLength: Long,
    ): Pair<UpdateHead, Int> {
        val offset = payloadOffset(layout, totalLength)
        if (data.size < offset) bad("the update ends after ${data.size} bytes, inside its header")
        val length = ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN).getLong()
        if (length != offset - 8) {
            throw UpdateTensorsException(
                "the header of the update says ${length.toULong()} bytes, where ${offset - 8} leave the layout's values",
                mend = AGAIN,
            )
        }
        if (length % 8 != 0L) bad("the header has $length bytes, not a multiple of 8")
        if (data[8] != '{'.code.toByte()) bad("the header of the update is not a JSON object")
        val header = json("header") { parseJson(data.copyOfRange(8, offset.toInt())) } as JsonObject
        checkTensors(JsonObject(header - "__metadata__"), layout)
        return head(header["__metadata__"]) to offset.toInt()
    }

    private fun checkTensors(
        header: JsonObject,
        layout: UpdateLayout,
    ) {
        for (name in header.keys) {
            if (name !in layout.shapes) throw UpdateTensorsException("the update has a tensor '$name' that is not asked for", mend = AGAIN)
        }
        layout.forEach { name, start, shape ->
            val entry = header[name] ?: throw UpdateTensorsException("the update lacks the tensor '$name'", mend = AGAIN)
            val offsets = listOf(4 * start, 4 * (start + UpdateLayout.length(shape)))
            val expected =
                mapOf(
                    "dtype" to JsonPrimitive("F32"),
                    "shape" to JsonArray(shape.map { JsonPrimitive(it) }),
                    "data_offsets" to JsonArray(offsets.map { JsonPrimitive(it) }),
                )
            if (entry !is JsonObject || entry.keys != expected.keys) bad("the entry of tensor '$name' is malformed")
            for ((key, value) in expected) {
                if (entry[key] != value) {
                    throw UpdateTensorsException("tensor '$name' of the update has another $key than $value", mend = AGAIN)
                }
            }
        }
    }

    private fun head(metadata: JsonElement?): UpdateHead {
        if (metadata !is JsonObject ||
            metadata.keys != setOf("format", "head")
        ) {
            bad("the metadata of the update is not its format and head")
        }
        val text = metadata["head"]
        if (metadata["format"] != JsonPrimitive(FORMAT) || text !is JsonPrimitive || !text.isString) {
            bad("the file is not of the format '$FORMAT'")
        }
        return json("head") { strictJson.decodeFromJsonElement(UpdateHead.serializer(), parseJson(text.content)) }
    }

    /** Not the error's own words in the message, which may repeat a part of what was sent. */
    private inline fun <T> json(
        what: String,
        read: () -> T,
    ): T =
        try {
            read()
        } catch (error: IllegalArgumentException) {
            throw UpdateFileException("the $what of the update is not what it should be", mend = AGAIN, error)
        }

    private fun bad(message: String): Nothing = throw UpdateFileException(message, mend = AGAIN)
}
