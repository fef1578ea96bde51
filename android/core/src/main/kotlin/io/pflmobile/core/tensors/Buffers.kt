package io.pflmobile.core.tensors

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** Puts the elements at the position of [target], in its byte order for float32 and int64. */
internal fun Tensor.putInto(target: ByteBuffer) {
    val start = target.position()
    when (this) {
        is FloatTensor -> target.asFloatBuffer().put(values)
        is LongTensor -> target.asLongBuffer().put(values)
        is RawTensor -> target.duplicate().put(bytes)
    }
    target.position(start + size * dtype.bytes)
}

/** The elements as little-endian bytes. */
internal fun Tensor.littleEndian(): ByteArray {
    val buffer = ByteBuffer.allocate(size * dtype.bytes).order(ByteOrder.LITTLE_ENDIAN)
    putInto(buffer)
    return buffer.array()
}

/** A tensor with a copy of all that is left in [source], whose byte order is that of float32 and int64 in it. */
internal fun tensorOf(
    dtype: DType,
    shape: List<Int>,
    source: ByteBuffer,
): Tensor =
    when (dtype) {
        DType.FLOAT32 -> FloatTensor(FloatArray(source.remaining() / 4).also { source.asFloatBuffer().get(it) }, shape)
        DType.INT64 -> LongTensor(LongArray(source.remaining() / 8).also { source.asLongBuffer().get(it) }, shape)
        else -> RawTensor(dtype, ByteArray(source.remaining()).also { source.duplicate().get(it) }, shape)
    }

/** A tensor with values of its own. */
internal fun Tensor.copied(): Tensor =
    when (this) {
        is FloatTensor -> copy()
        is LongTensor -> LongTensor(values.copyOf(), shape)
        is RawTensor -> RawTensor(dtype, bytes.copyOf(), shape)
    }

/** Whether two tensors have the same dtype, shape and bits. */
internal fun Tensor.sameBits(other: Tensor): Boolean =
    dtype == other.dtype && shape == other.shape && littleEndian().contentEquals(other.littleEndian())

/** How many float values are NaN or infinite; 0 for other types. */
internal fun Tensor.countNotFinite(): Int =
    when (this) {
        is FloatTensor -> {
            values.count { !it.isFinite() }
        }

        is LongTensor -> {
            0
        }

        is RawTensor -> {
            val from = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
            when (dtype) {
                DType.FLOAT64 -> (0 until size).count { !from.getDouble(8 * it).isFinite() }
                DType.FLOAT16 -> (0 until size).count { from.getShort(2 * it).toInt() and 0x7c00 == 0x7c00 }
                else -> 0
            }
        }
    }

/** The elements as numbers; false and true as 0 and 1. */
internal fun Tensor.toDoubles(): DoubleArray =
    when (this) {
        is FloatTensor -> DoubleArray(size) { values[it].toDouble() }
        is LongTensor -> DoubleArray(size) { values[it].toDouble() }
        is RawTensor -> ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).let { from -> DoubleArray(size) { number(from, it) } }
    }

private fun RawTensor.number(
    from: ByteBuffer,
    at: Int,
): Double =
    when (dtype) {
        DType.FLOAT64 -> from.getDouble(8 * at)
        DType.FLOAT16 -> half(from.getShort(2 * at).toInt())
        DType.INT32 -> from.getInt(4 * at).toDouble()
        DType.INT16 -> from.getShort(2 * at).toDouble()
        DType.INT8 -> from.get(at).toDouble()
        else -> (from.get(at).toInt() and 0xff).toDouble()
    }

/** The number whose bits in IEEE 754 binary16 these are. */
private fun half(bits: Int): Double {
    val sign = if (bits and 0x8000 != 0) -1.0 else 1.0
    val exponent = bits shr 10 and 0x1f
    val mantissa = bits and 0x3ff
    return when (exponent) {
        0 -> sign * mantissa * Math.scalb(1.0, -24)
        0x1f -> if (mantissa == 0) sign * Double.POSITIVE_INFINITY else Double.NaN
        else -> sign * (mantissa + 0x400) * Math.scalb(1.0, exponent - 25)
    }
}
