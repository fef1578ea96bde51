/*
 * Rows -> batches of fixed shape: programs are exported for one batch size, so the last batch is padded. Padding rows are zero
 * everywhere, so their weight is 0 and the sums of the programs do not see them.
 */
package io.pflmobile.core.rows

import io.pflmobile.core.errors.DataException
import io.pflmobile.core.errors.NoExamplesException
import io.pflmobile.core.random.SplitMix64
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.RawTensor
import io.pflmobile.core.tensors.Tensor

/** Examples as arrays by name with the same first axis, one of them `weight` (float32; 0 for what does not count). */
public typealias Rows = Map<String, Tensor>

/**
 * How many rows there are.
 *
 * @throws DataException no `weight`, lengths that differ, or a weight that is negative or not finite
 */
internal fun checkRows(
    rows: Rows,
    what: String = "rows",
): Int {
    val weight =
        rows["weight"] as? FloatTensor
            ?: throw DataException("the $what have no 'weight'", mend = "give float32 weights, 1 for an ordinary example")
    val count = weight.shape.firstOrNull() ?: 0
    for ((name, value) in rows) {
        if (value.shape.isEmpty() || value.shape[0] != count) {
            throw DataException(
                "the $what have $count weights but '$name' has shape ${value.shape}",
                mend = "give every array the same first axis",
            )
        }
    }
    if (weight.values.any { !(it >= 0 && it.isFinite()) }) {
        throw DataException("a weight of the $what is negative or not finite", mend = "use weights of 0 or more")
    }
    return count
}

/** Which rows have a positive weight in all; weights are 0 or more. */
internal fun counting(weight: FloatTensor): IntArray {
    val count = weight.shape[0]
    val width = if (count == 0) 0 else weight.size / count
    return (0 until count).filter { row -> (0 until width).any { weight.values[row * width + it] > 0 } }.toIntArray()
}

/**
 * The rows whose total weight is positive, in order; the others would only be padding.
 *
 * @throws NoExamplesException none is left
 * @throws DataException as [checkRows]
 */
internal fun weightedRows(
    rows: Rows,
    what: String = "rows",
): Rows {
    val count = checkRows(rows, what)
    val keep = counting(rows.getValue("weight") as FloatTensor)
    if (keep.isEmpty()) throw NoExamplesException("the $what hold no example with a positive weight", mend = "add examples first")
    return if (keep.size == count) rows else take(rows, keep, 0, keep.size, keep.size)
}

/** Order of the rows in one epoch: a permutation drawn from derive(seed, phase, epoch). */
internal fun epochOrder(
    count: Int,
    seed: Long,
    phase: Int,
    epoch: Long,
): IntArray = SplitMix64.permutation(SplitMix64.derive(seed, phase.toLong(), epoch), count)

/** The rows that [order] names from [from] to before [to] (at most [size]) as one batch of exactly [size], padded with zeros. */
internal fun take(
    rows: Rows,
    order: IntArray,
    from: Int,
    to: Int,
    size: Int,
): Rows =
    rows.mapValues { (_, value) ->
        val width = value.shape.drop(1).fold(1) { product, length -> product * length }
        val shape = listOf(size) + value.shape.drop(1)
        when (value) {
            is FloatTensor -> {
                val out = FloatArray(size * width)
                for (i in from until to) value.values.copyInto(out, (i - from) * width, order[i] * width, (order[i] + 1) * width)
                FloatTensor(out, shape)
            }

            is LongTensor -> {
                val out = LongArray(size * width)
                for (i in from until to) value.values.copyInto(out, (i - from) * width, order[i] * width, (order[i] + 1) * width)
                LongTensor(out, shape)
            }

            is RawTensor -> {
                val bytes = width * value.dtype.bytes
                val out = ByteArray(size * bytes)
                for (i in from until to) value.bytes.copyInto(out, (i - from) * bytes, order[i] * bytes, (order[i] + 1) * bytes)
                RawTensor(value.dtype, out, shape)
            }
        }
    }

/** All rows once, in [order] (or as they are), in batches of [size]. */
internal fun paddedBatches(
    rows: Rows,
    size: Int,
    order: IntArray? = null,
): Sequence<Rows> {
    val count = rows.getValue("weight").shape[0]
    val all = order ?: IntArray(count) { it }
    return (0 until count step size).asSequence().map { take(rows, all, it, minOf(it + size, count), size) }
}

/**
 * How many of so many examples are held out, the newest: floor(count * fraction + 0.5), at least 1 when there are 2 or more, and always
 * leaving 1 to train on.
 */
internal fun holdoutSize(
    count: Int,
    fraction: Double,
): Int = if (count < 2) 0 else (count * fraction + 0.5).toInt().coerceIn(1, count - 1)

/** The first [at] rows, and the others. */
internal fun cutRows(
    rows: Rows,
    at: Int,
): Pair<Rows, Rows> {
    val count =
        rows.values
            .firstOrNull()
            ?.shape
            ?.firstOrNull() ?: return rows to rows
    val order = IntArray(count) { it }
    return take(rows, order, 0, at, at) to take(rows, order, at, count, count - at)
}

/** Rows one after the other, with the names of the first. */
internal fun joinRows(
    first: Rows,
    then: Rows,
): Rows = stackRows(listOf(first, then))

/** Rows one after the other, all with the names and shapes of the first. */
internal fun stackRows(parts: List<Rows>): Rows =
    parts.first().mapValues { (name, first) ->
        val values = parts.map { it.getValue(name) }
        val shape = listOf(values.sumOf { it.shape[0] }) + first.shape.drop(1)
        when (first) {
            is FloatTensor -> FloatTensor(values.flatMap { (it as FloatTensor).values.asList() }.toFloatArray(), shape)
            is LongTensor -> LongTensor(values.flatMap { (it as LongTensor).values.asList() }.toLongArray(), shape)
            is RawTensor -> RawTensor(first.dtype, values.flatMap { (it as RawTensor).bytes.asList() }.toByteArray(), shape)
        }
    }
