/*
 * Takes words out of a personal state: their slots, their entries of the n-gram memory, and whatever holds either.
 *
 * What cannot be taken out is what gradients made of a word: values of LoRA and other trained tensors have no place that is this word's
 * alone. `shippedAgain` gives them their shipped values again, to be trained anew without the word.
 */
package io.pflmobile.core.local

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.bundle.TensorUpdate
import io.pflmobile.core.state.PersonalState
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.Tensor

/**
 * Which ids stand for words.
 *
 * @property vocabulary ids of the base words and specials; the slots' ids follow
 * @property base id of a base word; null where there is none
 */
internal class WordIds(
    val vocabulary: Long,
    val base: (String) -> Long?,
)

/** Whether a word, or a part of it between apostrophes (`greta's`), is one of [forgotten]. */
private fun isForgotten(
    word: String,
    forgotten: Set<String>,
): Boolean = word in forgotten || ('\'' in word && word.split('\'').any { it in forgotten })

/** Ids that stand for a forgotten word: of the base vocabulary, and of the slots of this state. */
private fun forgottenIds(
    state: PersonalState,
    words: Set<String>,
    ids: WordIds,
): Set<Long> {
    val slots =
        state.words.indices
            .filter { isForgotten(state.words[it], words) }
            .map { ids.vocabulary + it }
    return words.mapNotNull(ids.base).toSet() + slots
}

private fun memories(
    tensors: Map<String, Tensor>,
    table: List<DeviceTensor>,
): List<List<Pair<String, LongTensor>>> =
    table
        .filter { it.update == TensorUpdate.MEMORIZE }
        .groupBy { it.module }
        .values
        .map { parts -> parts.mapNotNull { part -> (tensors[part.name] as? LongTensor)?.let { part.name to it } } }
        .filter { it.isNotEmpty() }

/** Entries of a memory that hold one of the ids anywhere, by their place. */
private fun touched(
    memory: List<Pair<String, LongTensor>>,
    ids: Set<Long>,
): Set<Int> {
    val found = HashSet<Int>()
    for ((_, tensor) in memory) {
        val width = tensor.size / maxOf(tensor.shape[0], 1)
        tensor.values.forEachIndexed { place, id -> if (id in ids) found += place / width }
    }
    return found
}

/**
 * The state without the words, as they are cut and folded. The slots behind a freed one move up, with their rows in every tensor and copy
 * and their ids in the memory; the rows that become free get shipped values. An entry of a memory that has a forgotten id in it, as the
 * word or in its context, becomes empty. Every other value stays bit for bit.
 */
internal fun forgetWords(
    state: PersonalState,
    words: Set<String>,
    ids: WordIds,
    table: List<DeviceTensor>,
    initial: Map<String, Tensor>,
): PersonalState {
    val kept = state.words.indices.filterNot { isForgotten(state.words[it], words) }
    val freed = state.words.size - kept.size
    val gone = forgottenIds(state, words, ids)
    val moved =
        kept
            .withIndex()
            .filter { (new, old) ->
                new != old
            }.associate { (new, old) -> ids.vocabulary + old to ids.vocabulary + new }
    val tensors = LinkedHashMap(state.tensors)
    val copies = state.copies.mapValues { LinkedHashMap(it.value) }
    if (gone.isNotEmpty()) {
        for (memory in memories(tensors, table)) {
            val empty = touched(memory, gone)
            for ((name, tensor) in memory) tensors[name] = cleaned(tensor, empty, moved)
        }
    }
    if (freed > 0) {
        val slotModules = table.filter { it.update == TensorUpdate.ASSIGN }.mapTo(HashSet()) { it.module }
        for (tensor in table.filter { it.module in slotModules && it.name in tensors }) {
            if (tensor.update == TensorUpdate.ASSIGN) {
                tensors[tensor.name] = active(kept.size, tensor.shape[0])
                continue
            }
            val shipped = initial.getValue(tensor.name) as FloatTensor
            for (values in copies.values + listOf(tensors)) {
                (values[tensor.name] as? FloatTensor)?.let { values[tensor.name] = movedUp(it, kept, freed, shipped) }
            }
        }
    }
    return PersonalState(tensors, copies, kept.map { state.words[it] }, state.metrics)
}

private fun cleaned(
    tensor: LongTensor,
    empty: Set<Int>,
    moved: Map<Long, Long>,
): LongTensor {
    val width = tensor.size / maxOf(tensor.shape[0], 1)
    return LongTensor(
        LongArray(tensor.size) {
            if (it / width in
                empty
            ) {
                0
            } else {
                moved[tensor.values[it]] ?: tensor.values[it]
            }
        },
        tensor.shape,
    )
}

/** Rows of the kept slots, then of those that were free before, then shipped ones for those freed now. */
private fun movedUp(
    rows: FloatTensor,
    kept: List<Int>,
    freed: Int,
    shipped: FloatTensor,
): FloatTensor {
    val count = rows.shape[0]
    val width = rows.size / maxOf(count, 1)
    val out = FloatArray(rows.size)
    val from = kept + (kept.size + freed until count)
    from.forEachIndexed { to, row -> rows.values.copyInto(out, to * width, row * width, (row + 1) * width) }
    shipped.values.copyInto(out, (count - freed) * width, (count - freed) * width, count * width)
    return FloatTensor(out, rows.shape)
}

/** The state with the shipped values of all tensors that gradients train, and without copies of them. */
internal fun shippedAgain(
    state: PersonalState,
    table: List<DeviceTensor>,
    initial: Map<String, Tensor>,
): PersonalState {
    val fresh = table.filter { it.update == TensorUpdate.GRADIENT }.associate { it.name to initial.getValue(it.name) }
    return PersonalState(state.tensors + fresh, emptyMap(), state.words, emptyMap())
}

/** How many slots of a state have one of the words, and how many entries of its memories hold one. */
internal fun countForgotten(
    state: PersonalState,
    words: Set<String>,
    ids: WordIds,
    table: List<DeviceTensor>,
): Pair<Int, Int> {
    val gone = forgottenIds(state, words, ids)
    return state.words.count { isForgotten(it, words) } to memories(state.tensors, table).sumOf { touched(it, gone).size }
}
