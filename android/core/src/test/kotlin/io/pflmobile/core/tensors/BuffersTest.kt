package io.pflmobile.core.tensors

import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.CsvSource
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class BuffersTest {
    @ParameterizedTest
    @CsvSource(
        "3c00,1.0",
        "c000,-2.0",
        "7bff,65504.0",
        "0001,5.960464477539063E-8",
        "03ff,6.097555160522461E-5",
        "8000,-0.0",
        "7c00,Infinity",
        "7e00,NaN",
    )
    fun `halves are numbers`(
        bits: String,
        want: Double,
    ) {
        val value = bits.toInt(16)
        val tensor = RawTensor(DType.FLOAT16, byteArrayOf(value.toByte(), (value shr 8).toByte()), listOf())
        assertEquals(want, tensor.toDoubles().single())
        assertEquals(if (want.isFinite()) 0 else 1, tensor.countNotFinite())
    }

    @Test
    fun `bytes are little-endian`() {
        assertContentEquals(byteArrayOf(0, 0, -128, 63), FloatTensor(floatArrayOf(1f), listOf(1)).littleEndian())
        assertContentEquals(byteArrayOf(-2, -1, -1, -1, -1, -1, -1, -1), LongTensor(longArrayOf(-2), listOf()).littleEndian())
        assertContentEquals(doubleArrayOf(255.0, 1.0), RawTensor(DType.UINT8, byteArrayOf(-1, 1), listOf(2)).toDoubles())
        assertContentEquals(doubleArrayOf(-1.0), RawTensor(DType.INT16, byteArrayOf(-1, -1), listOf(1)).toDoubles())
    }

    @Test
    fun `values that do not fill a shape are refused`() {
        assertFailsWith<IllegalArgumentException> { FloatTensor(FloatArray(3), listOf(2, 2)) }
        assertFailsWith<IllegalArgumentException> { FloatTensor(FloatArray(4), listOf(-2, -2)) }
        assertFailsWith<IllegalArgumentException> { RawTensor(DType.INT16, ByteArray(3), listOf(1)) }
        assertFailsWith<IllegalArgumentException> { RawTensor(DType.FLOAT32, ByteArray(4), listOf(1)) }
    }
}
