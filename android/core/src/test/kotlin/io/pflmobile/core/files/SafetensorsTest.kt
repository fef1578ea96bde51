package io.pflmobile.core.files

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.TensorFileException
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.RawTensor
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.tensors.sameBits
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

class SafetensorsTest {
    @Test
    fun `Python's file is written again byte for byte`() {
        for (name in listOf("state.safetensors", "updates/valid.safetensors")) {
            val data = Vectors.folder.resolve(name).readBytes()
            val file = Safetensors.read(map(Vectors.folder.resolve(name)), name)
            if (name.startsWith("state")) assertContentEquals(data, Safetensors.write(file.tensors, file.metadata))
            assertEquals(file.metadata, Safetensors.read(Safetensors.write(file.tensors, file.metadata), name).metadata)
        }
    }

    @Test
    fun `every dtype comes back`() {
        val tensors =
            DType.entries.associate { type ->
                type.wireName to
                    when (type) {
                        DType.FLOAT32 -> FloatTensor(floatArrayOf(1f, -0f, 1e-45f, 3.4e38f), listOf(2, 2))
                        DType.INT64 -> LongTensor(longArrayOf(Long.MIN_VALUE, -1), listOf(2, 1))
                        else -> RawTensor(type, ByteArray(3 * type.bytes) { (it % 2).toByte() }, listOf(3))
                    }
            } + mapOf("scalar" to FloatTensor(floatArrayOf(7f), listOf()), "empty" to FloatTensor(floatArrayOf(), listOf(0, 2)))
        val back = Safetensors.read(Safetensors.write(tensors), "it").tensors
        assertEquals(tensors.keys, back.keys)
        for ((name, tensor) in tensors) assertTrue(tensor.sameBits(back.getValue(name)), name)
    }

    @Test
    fun `damage that conformance's updates show is refused`() {
        val refused =
            Vectors
                .read(
                    "updates.json",
                ).getValue("refused")
                .jsonArray
                .map {
                    it.jsonObject
                        .getValue("file")
                        .jsonPrimitive.content
                }
        val damaged =
            refused.filter {
                try {
                    Safetensors.read(map(Vectors.folder.resolve(it)), it)
                    false
                } catch (_: TensorFileException) {
                    true
                }
            }
        val want =
            setOf(
                "a-tensor-missing",
                "a-tensor-twice",
                "another-dtype",
                "cut-short",
                "header-length-of-another-file",
                "longer-than-its-tensors",
                "nested-too-deep",
                "not-json",
                "not-utf8",
                "offsets-leave-a-gap",
                "offsets-overlap",
            )
        assertEquals(want, damaged.map { it.removePrefix("updates/").removeSuffix(".safetensors") }.toSet())
    }

    @Test
    fun `headers that do not fit their tensors are refused`() {
        val good = "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]"
        Safetensors.read(file("{\"a\":{$good}}", 1), "good")
        val bad =
            listOf(
                "[]",
                "{} x",
                "{\"a\":{$good},\"a\":{$good}}",
                "{\"a\":1}",
                "{\"a\":{$good},\"b\":{$good}}",
                "{}",
                "{\"a\":{\"dtype\":\"U9\",\"shape\":[1],\"data_offsets\":[0,1]}}",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[0,1]}}",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[-1,-1],\"data_offsets\":[0,1]}}",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775807,9223372036854775807,2],\"data_offsets\":[0,1]}}",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}",
                "{\"__metadata__\":{\"n\":1},\"a\":{$good}}",
                "{\"__metadata__\":null,\"a\":{$good}}",
            )
        for (header in bad) assertFailsWith<TensorFileException>(header) { Safetensors.read(file(header, 1), "bad") }
        assertFailsWith<TensorFileException> { Safetensors.read(ByteArray(7), "short") }
        assertFailsWith<TensorFileException> { Safetensors.read(ByteArray(8) { -1 }, "a negative length") }
    }

    @Test
    fun `NaN and infinity are refused where asked`() {
        val bad: Map<String, Tensor> = mapOf("w" to FloatTensor(floatArrayOf(1f, Float.NaN, Float.NEGATIVE_INFINITY), listOf(3)))
        Safetensors.write(bad)
        val error = assertFailsWith<NonFiniteException> { Safetensors.write(bad, finite = true) }
        assertTrue("2 of 3" in error.message)
        val half = mapOf("h" to RawTensor(DType.FLOAT16, byteArrayOf(0, 0x7c), listOf(1)))
        assertFailsWith<NonFiniteException> { Safetensors.write(half, finite = true) }
    }

    @Test
    fun `names that no encoding has are refused`() {
        val one = FloatTensor(floatArrayOf(1f), listOf(1))
        for (name in listOf("\ud800", "__metadata__")) {
            assertFailsWith<TensorFileException> { Safetensors.write(mapOf(name to one)) }
        }
    }

    private fun file(
        header: String,
        body: Int,
    ): ByteArray {
        val text = header.encodeToByteArray()
        return ByteBuffer
            .allocate(8 + text.size + body)
            .order(ByteOrder.LITTLE_ENDIAN)
            .putLong(text.size.toLong())
            .put(text)
            .array()
    }
}
