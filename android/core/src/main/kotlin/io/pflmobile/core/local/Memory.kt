package io.pflmobile.core.local

import io.pflmobile.core.errors.DataException
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor

/**
 * The n-gram memory, which the host writes without gradients.
 *
 * @property next int64, `capacity` long: the label of each entry; 0 is empty
 * @property context int64 [capacity, context]: the token at the position first, then the ones before it; 0 where the sequence had not
 *   begun
 * @property count entries written in all
 */
internal class Memory(
    val next: LongTensor,
    val context: LongTensor,
    val count: Long,
)

/**
 * Write one entry for each label position with a positive weight, rows in order, left to right, into an empty memory. Entry number j
 * goes to place j mod capacity, so the newest `capacity` entries stay.
 *
 * @param tokens int64 [rows, T]
 * @param labels int64 [rows, T], the token after each position
 * @param weight float32 [rows, T]
 * @param context tokens of context kept with each entry (order - 1)
 * @throws DataException the shapes differ
 */
internal fun memorize(
    tokens: LongTensor,
    labels: LongTensor,
    weight: FloatTensor,
    capacity: Int,
    context: Int,
): Memory {
    if (tokens.shape != labels.shape || tokens.shape != weight.shape || tokens.shape.size != 2) {
        throw DataException(
            "tokens ${tokens.shape}, labels ${labels.shape} and weight ${weight.shape} differ",
            mend = "the memory needs rows of tokens [rows, T] with a label and a weight at every position",
        )
    }
    val length = tokens.shape[1]
    val next = LongArray(capacity)
    val before = LongArray(capacity * context)
    val entries = weight.values.count { it > 0 }
    var number = 0
    for (place in weight.values.indices) {
        if (!(weight.values[place] > 0)) continue
        val entry = number++
        if (entry < entries - capacity) continue // it would only be overwritten
        val at = entry % capacity
        next[at] = labels.values[place]
        val position = place % length
        for (back in 0 until context) before[at * context + back] = if (back <= position) tokens.values[place - back] else 0
    }
    return Memory(LongTensor(next, listOf(capacity)), LongTensor(before, listOf(capacity, context)), entries.toLong())
}

/** float32 [size]: 1 for the first [assigned] slots, 0 for the free ones behind them. */
internal fun active(
    assigned: Int,
    size: Int,
): FloatTensor = FloatTensor(FloatArray(size) { if (it < assigned) 1f else 0f }, listOf(size))
