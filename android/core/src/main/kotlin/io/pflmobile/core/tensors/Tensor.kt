package io.pflmobile.core.tensors

/** What an element of a tensor is; [wireName] is the name in manifests, [safetensorsName] the one in safetensors files. */
public enum class DType(
    public val wireName: String,
    public val safetensorsName: String,
    /** Bytes of an element. */
    public val bytes: Int,
) {
    FLOAT32("float32", "F32", 4),
    INT64("int64", "I64", 8),
}

/** Named values in memory, in C order; [shape] is empty for a scalar. A tensor owns its array: nothing else writes to it. */
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

/** A tensor of float32. */
public class FloatTensor(
    public val values: FloatArray,
    shape: List<Int>,
) : Tensor(DType.FLOAT32, shape, values.size) {
    override val size: Int get() = values.size

    /** A tensor with values of its own. */
    public fun copy(): FloatTensor = FloatTensor(values.copyOf(), shape)
}

/** A tensor of int64. */
public class LongTensor(
    public val values: LongArray,
    shape: List<Int>,
) : Tensor(DType.INT64, shape, values.size) {
    override val size: Int get() = values.size
}
