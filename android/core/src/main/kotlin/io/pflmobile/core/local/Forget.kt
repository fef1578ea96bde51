/*
 * Takes words out of a personal state: their slots, their entries of the n-gram memory, and whatever holds either.
 *
 * What cannot be taken out is what gradients made of a word: values of LoRA and other trained tensors have no place that is this word's
 * alone. `shippedAgain` gives them their shipped values again, to be trained anew without the word.
 */
package io.pflmobile.core.local

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.bundle.TensorUpdate
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.state.PersonalState
import io.pflmobile.core.state.PersonalStateStore
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.text.PieceRules
import io.pflmobile.core.text.SubwordTokenizer
import io.pflmobile.core.text.TextEncoder
import io.pflmobile.core.text.Tokenizer

/**
 * What forgetting did to the state that serves.
 *
 * @property words as the keyboard cuts and folds them
 * @property slots slots that were freed
 * @property entries entries of n-gram memories that were emptied
 * @property versions numbers of the saved versions, all of which were rewritten
 * @property trained whether values that gradients trained on the words are still there
 */
public class Forgotten internal constructor(
    public val words: Set<String>,
    public val slots: Int,
    public val entries: Int,
    public val versions: List<Int>,
    public val trained: Boolean,
)

/**
 * Forget words in every saved version, and never learn them again.
 *
 * The words go on the store's block list first, so a process killed on the way leaves nothing that learns them; repeating the call
 * finishes. Then a checkpoint is removed, and every version is rewritten in its place. Versions that are damaged, and cannot be looked
 * into, are removed.
 *
 * @param given words as the user writes them
 * @param encoder of the bundle, without words
 * @param table the bundle's device tensors
 * @param initial their shipped values
 * @param retrain also give every tensor that gradients train its shipped value and drop copies of them
 * @throws ConfigException see [wordsToForget]
 * @throws io.pflmobile.core.errors.StateException the state is of another model, or no version can be used; nothing changes
 * @throws io.pflmobile.core.errors.StorageFullException the disk is full; call again once there is space
 */
public fun forget(
    store: PersonalStateStore,
    given: List<String>,
    encoder: TextEncoder,
    table: List<DeviceTensor>,
    initial: Map<String, Tensor>,
    retrain: Boolean = false,
): Forgotten {
    val words = wordsToForget(given, encoder.tokenizer.rules)
    val ids = wordIds(encoder)
    val serving = store.load().state
    store.block(words)
    val (slots, entries) = if (serving == null) 0 to 0 else countForgotten(serving, words, ids, table)
    val versions =
        store.rewrite { state ->
            val cleaned = forgetWords(state, words, ids, table, initial)
            if (retrain) shippedAgain(cleaned, table, initial) else cleaned
        }
    return Forgotten(words, slots, entries, versions, trained = versions.isNotEmpty() && !retrain)
}

/**
 * The words as the keyboard knows them: `Kestrel_77!` is `kestrel` and `77`; symbols beside words stay.
 *
 * @param rules by which the keyboard cuts
 * @throws ConfigException there is no word, or one has a space in it: several words are to be given one by one, as each is forgotten
 *   wherever it stands
 */
public fun wordsToForget(
    given: List<String>,
    rules: PieceRules = PieceRules.NEWEST,
): Set<String> {
    val found = LinkedHashSet<String>()
    for (text in given) {
        if (text.trim().any { it.isWhitespace() }) {
            throw ConfigException("'$text' is several words", mend = "give them one by one; each is forgotten wherever it stands")
        }
        val pieces = rules.cut(text)
        if (pieces.isEmpty()) throw ConfigException("'$text' is no word", mend = "give a word as the keyboard shows it")
        found += pieces.filterNot(rules::isSymbol).ifEmpty { pieces }
    }
    if (found.isEmpty()) throw ConfigException("no word was given", mend = "give at least one")
    return found
}

/**
 * Which ids stand for words.
 *
 * @property vocabulary ids of the base words and specials; the slots' ids follow
 * @property base ids of the base vocabulary that stand for any of some words
 */
internal class WordIds(
    val vocabulary: Long,
    val base: (Set<String>) -> Set<Long>,
)

/** Of subwords every one that spells a word, though it may be in other words too: rather too much than too little. */
internal fun wordIds(encoder: TextEncoder): WordIds =
    WordIds(encoder.vocabulary.toLong()) { words ->
        val tokenizer = encoder.tokenizer
        val found =
            if (tokenizer is SubwordTokenizer) {
                tokenizer.spellings(words)
            } else {
                words.map(tokenizer::id).filterNot {
                    isSpecial(it, tokenizer)
                }
            }
        (found - encoder.unknown).mapTo(HashSet()) { it.toLong() }
    }

private fun isSpecial(
    id: Int,
    tokenizer: Tokenizer,
): Boolean = tokenizer.specials.let { id in setOf(it.pad, it.bos, it.eos, it.unk) }

/** Whether a word, or a part of it between apostrophes (`greta's`), is one of [forgotten]. */
internal fun isForgotten(
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
    return ids.base(words) + slots
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
