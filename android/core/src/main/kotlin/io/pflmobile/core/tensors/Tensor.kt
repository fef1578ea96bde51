package io.pflmobile.core.tensors

/** What an element of a tensor is. */
public enum class DType(
    /** In manifests. */
    internal val wireName: String,
    /** In safetensors files. */
    internal val safetensorsName: String,
    /** Bytes of an element. */
    public val bytes: Int,
) {
    // In the order in which the safetensors library lays tensors out, the last first.
    BOOL("bool", "BOOL", 1),
    UINT8("uint8", "U8", 1),
    INT8("int8", "I8", 1),
    INT16("int16", "I16", 2),
    FLOAT16("float16", "F16", 2),
    INT32("int32", "I32", 4),
    FLOAT32("float32", "F32", 4),
    FLOAT64("float64", "F64", 8),
    INT64("int64", "I64", 8),
    ;

    internal companion object {
        private val byWireName = entries.associateBy { it.wireName }
        private val bySafetensorsName = entries.associateBy { it.safetensorsName }

        fun named(wireName: String): DType? = byWireName[wireName]

        fun ofSafetensors(name: String): DType? = bySafetensorsName[name]
    }
}

/**
 * Named values in memory, in C order. A tensor owns its array: nothing else writes to it.
 *
 * @property dtype what an element is
 * @property shape length of each axis; empty for a scalar. An `IllegalArgumentException` where the values do not fill it
 */
public sealed class Tensor(
    public val dtype: DType,
    public val shape: List<Int>,
    size: Int,
) {
    init {
        require(shape.all { it >= 0 } && shape.fold(1L) { product, length -> product * length } == size.toLong()) {
            "$size values do not fill the shape $shape"
        }
    }

    /** Number of elements. */
    public abstract val size: Int

    /** `float32[2, 3]`, as messages name it. */
    public val signature: String get() = "${dtype.wireName}$shape"
}

/**
 * A tensor of float32.
 *
 * @property values as many as the shape says
 */
public class FloatTensor(
    public val values: FloatArray,
    shape: List<Int>,
) : Tensor(DType.FLOAT32, shape, values.size) {
    override val size: Int get() = values.size

    /** A tensor with values of its own. */
    public fun copy(): FloatTensor = FloatTensor(values.copyOf(), shape)
}

/**
 * A tensor of int64.
 *
 * @property values as many as the shape says
 */
public class LongTensor(
    public val values: LongArray,
    shape: List<Int>,
) : Tensor(DType.INT64, shape, values.size) {
    override val size: Int get() = values.size
}

/**
 * A tensor of another type, which a device passes on and does not compute with.
 *
 * @property bytes of its values, little-endian
 */
public class RawTensor(
    dtype: DType,
    public val bytes: ByteArray,
    shape: List<Int>,
) : Tensor(dtype, shape, bytes.size / dtype.bytes) {
    init {
        require(dtype != DType.FLOAT32 && dtype != DType.INT64) { "${dtype.wireName} has a class of its own" }
        require(bytes.size % dtype.bytes == 0) { "${bytes.size} bytes are no whole number of ${dtype.wireName}" }
    }

    override val size: Int get() = bytes.size / dtype.bytes
}
