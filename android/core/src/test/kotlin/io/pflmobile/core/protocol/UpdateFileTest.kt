package io.pflmobile.core.protocol

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.errors.UpdateFileException
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.files.strictJson
import io.pflmobile.core.plan.UpdateLayout
import io.pflmobile.core.tensors.FloatTensor
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.io.path.readBytes
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

class UpdateFileTest {
    private val vectors = Vectors.read("updates.json")
    private val layout =
        UpdateLayout(
            vectors.getValue("layout").jsonArray.map { it.jsonObject }.associate { entry ->
                text(entry.getValue("name")) to entry.getValue("shape").jsonArray.map { it.jsonPrimitive.int }
            },
        )
    private val valid = vectors.getValue("valid").jsonObject
    private val values = text(valid.getValue("values")).split(' ').map { Vectors.float(it) }.toFloatArray()
    private val bytes = Vectors.folder.resolve(text(valid.getValue("file"))).readBytes()

    @Test
    fun `a valid update is read and written alike`() {
        val (head, offset) = UpdateFile.parsePrefix(bytes, layout, bytes.size.toLong())
        assertEquals(valid.getValue("payload_offset").jsonPrimitive.int, offset)
        val want = parseJson(valid.getValue("head").toString())
        assertEquals(want, parseJson(strictJson.encodeToString(UpdateHead.serializer(), head)))
        val found = FloatArray(values.size)
        ByteBuffer
            .wrap(bytes, offset, bytes.size - offset)
            .order(ByteOrder.LITTLE_ENDIAN)
            .asFloatBuffer()
            .get(found)
        assertEquals(values.map { it.toRawBits() }, found.map { it.toRawBits() })
        assertContentEquals(bytes, UpdateFile.encode(head, layout.unpack(values), layout))
        assertTrue(bytes.size <= UpdateFile.sizeLimit(layout))
    }

    @Test
    fun `other files are refused by their code`() {
        val codes = mapOf("wrong-tensors" to "UpdateTensorsError", "malformed-update" to "UpdateFileError")
        for (case in vectors.getValue("refused").jsonArray.map { it.jsonObject }) {
            val name = text(case.getValue("file"))
            val data = Vectors.folder.resolve(name).readBytes()
            val read = { UpdateFile.parsePrefix(data, layout, data.size.toLong()) }
            val refused = text(case.getValue("refused"))
            if (refused == "update-not-finite") { // its header is fine
                read()
            } else {
                assertEquals(codes.getValue(refused), assertFailsWith<UpdateFileException>(name) { read() }.code, name)
            }
        }
    }

    @Test
    fun `what is not asked for is not written`() {
        val head = UpdateFile.parsePrefix(bytes, layout, bytes.size.toLong()).first
        val tensors = layout.unpack(values)
        assertFailsWith<TensorMismatchException> { UpdateFile.encode(head, tensors - "Z", layout) }
        assertFailsWith<TensorMismatchException> { UpdateFile.encode(head, tensors + ("more" to tensors.getValue("Z")), layout) }
        val broken = tensors + ("Z" to FloatTensor(floatArrayOf(1f, Float.NaN), listOf(2)))
        assertFailsWith<NonFiniteException> { UpdateFile.encode(head, broken, layout) }
        val turned =
            UpdateLayout(
                layout.shapes.entries
                    .reversed()
                    .associate { it.key to it.value },
            )
        assertFailsWith<UpdateFileException> { UpdateFile.encode(head, tensors, turned) }
    }
}
