package io.pflmobile.core.text

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.OutOfVocabularyException
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor

/**
 * Rows of texts for next-word prediction.
 *
 * @property tokens `int64[rows, length]`
 * @property labels `int64[rows, length]`, the token after each
 * @property weight `float32[rows, length]`, 1 where a label counts
 */
public class TextRows(
    public val tokens: LongTensor,
    public val labels: LongTensor,
    public val weight: FloatTensor,
)

/**
 * What `predict` takes.
 *
 * @property tokens `int64[1, length]`
 * @property position `int64[1]`, the place of the last token
 */
public class TextContext(
    public val tokens: LongTensor,
    public val position: LongTensor,
)

/**
 * Turns texts into rows of fixed length, and ids back into words.
 *
 * A message `w1 .. wn` becomes tokens `<s> w1 .. wn` with labels `w1 .. wn </s>`; the end never counts, as a keyboard has no key for it.
 *
 * @property tokenizer its size is at most [vocabulary]; over subwords there are no slots
 * @property length tokens in a row
 * @property vocabulary size of the model's base vocabulary; ids of slots start here
 * @property slots vocabulary slots behind it
 * @property words the user's own words, in the order of their slots
 * @property blocked words that the user wants forgotten. They get no slot, and one of the base vocabulary reads as the unknown word;
 *   over subwords, a text with one of them gives no rows
 * @throws ConfigException the sizes do not fit each other
 */
public class TextEncoder(
    public val tokenizer: Tokenizer,
    public val length: Int,
    public val vocabulary: Int,
    public val slots: Int = 0,
    words: List<String> = emptyList(),
    public val blocked: BlockList? = null,
) {
    public val words: List<String> = words.toList()

    private val slotOf = this.words.withIndex().associate { (slot, word) -> word to vocabulary + slot }
    private val overWords = tokenizer is WordTokenizer
    private val unlearned: Set<Int> =
        if (blocked == null || blocked.size == 0 || !overWords) {
            emptySet()
        } else {
            (WordTokenizer.SPECIALS.size until tokenizer.size).filterTo(HashSet()) { tokenizer.word(it) in blocked }
        }

    init {
        if (length < 2 || slots < 0) throw ConfigException("length=$length, slots=$slots", "length is at least 2, slots at least 0")
        if (tokenizer.size > vocabulary) {
            throw ConfigException("the tokenizer has ${tokenizer.size} ids, the model's vocabulary $vocabulary", "export the bundle again")
        }
        if (this.words.size > slots || slotOf.size != this.words.size) {
            throw ConfigException("${this.words.size} words for $slots slots", "give each slot at most one word")
        }
        if (slots > 0 && !overWords) {
            throw ConfigException("$slots vocabulary slots over a tokenizer of subwords", "export the bundle without slots")
        }
        this.words.find { tokenizer.id(it) != unknown || it in WordTokenizer.SPECIALS }?.let {
            throw ConfigException("'$it' is in the base vocabulary", "give slots to other words only")
        }
    }

    /** Ids in all. */
    public val total: Int get() = vocabulary + slots

    /** The id of what is outside the vocabulary; -1 where a tokenizer has none. */
    public val unknown: Int get() = tokenizer.specials.unk

    /** This encoder with these words in the slots, in this order. */
    public fun withWords(words: List<String>): TextEncoder = TextEncoder(tokenizer, length, vocabulary, slots, words, blocked)

    /** This encoder for a user who wants these words forgotten. */
    public fun withBlocked(blocked: BlockList): TextEncoder = TextEncoder(tokenizer, length, vocabulary, slots, words, blocked)

    /**
     * The slot words for a user who wrote these texts.
     *
     * Words that have a slot keep it. The free slots go to other pieces outside the base vocabulary that occur at least [minCount] times:
     * most frequent first, then first seen first. Left out are pieces with a digit, pieces of more than 64 code points, and blocked ones,
     * also where a blocked word is a part between apostrophes (`greta's`).
     */
    public fun chooseWords(
        texts: Iterable<String>,
        minCount: Int = 2,
    ): List<String> {
        if (slots == 0) return emptyList()
        val counts = LinkedHashMap<String, Int>()
        for (text in texts) {
            for (word in tokenizer.words(text)) {
                if (word !in slotOf && tokenizer.id(word) == unknown) counts.merge(word, 1, Int::plus)
            }
        }
        val ranked = counts.entries.filter { it.value >= minCount && getsSlot(it.key) }.sortedByDescending { it.value }
        return (words + ranked.map { it.key }).take(slots)
    }

    private fun getsSlot(word: String): Boolean =
        blocked?.hides(word) != true && word.codePointCount(0, word.length) <= LONGEST_SLOT_WORD && !Pieces.holdsDigit(word)

    /** The id of a piece in the base vocabulary or a slot, else [unknown]; blocked ones have none. */
    public fun id(word: String): Int = (slotOf[word] ?: tokenizer.id(word)).let { if (it in unlearned) unknown else it }

    /** The ids of a text's pieces, without special tokens. */
    public fun ids(text: String): List<Int> = tokenizer.words(text).map(::id)

    /**
     * The piece of an id; a free slot, or an id without a word, reads `<unk>`.
     *
     * @throws OutOfVocabularyException the id is negative or not below [total]
     */
    public fun word(id: Int): String =
        when {
            id !in 0 until total -> {
                throw OutOfVocabularyException("token id $id lies outside 0..${total - 1}", "use the encoder of this model")
            }

            id >= vocabulary -> {
                words.getOrElse(id - vocabulary) { UNKNOWN }
            }

            else -> {
                if (id < tokenizer.size) tokenizer.word(id) else UNKNOWN
            }
        }

    /** Whether an id stands for no word: padding, start, end, the unknown word, a free slot. */
    public fun isSpecial(id: Int): Boolean =
        id >= vocabulary + words.size || id in tokenizer.size until vocabulary ||
            tokenizer.specials.let { id == it.pad || id == it.bos || id == it.eos || id == it.unk }

    /**
     * Rows of all texts, in order; a text without pieces gives none.
     *
     * A text longer than a row goes on in further rows, each of which repeats the last quarter of the row before as context with weight
     * 0: every label counts once.
     *
     * @param dropUnknown weight 0 for labels outside the vocabulary; for training. Without it they count, and are misses
     * @param wordsOnly weight 0 for labels that are symbols
     */
    public fun encode(
        texts: Iterable<String>,
        dropUnknown: Boolean = false,
        wordsOnly: Boolean = false,
    ): TextRows {
        val windows = texts.flatMap { windows(it, dropUnknown, wordsOnly) }
        val pad = tokenizer.specials.pad.toLong()
        val tokens = LongArray(windows.size * length) { pad }
        val labels = LongArray(windows.size * length) { pad }
        val weight = FloatArray(windows.size * length)
        windows.forEachIndexed { row, window ->
            for (place in 0 until window.ids.size - 1) {
                tokens[row * length + place] = window.ids[place].toLong()
                labels[row * length + place] = window.ids[place + 1].toLong()
                if (window.counts[place]) weight[row * length + place] = 1f
            }
        }
        val shape = listOf(windows.size, length)
        return TextRows(LongTensor(tokens, shape), LongTensor(labels, shape), FloatTensor(weight, shape))
    }

    /** At most [length] + 1 ids, and what counts of all but the first. */
    private class Window(
        val ids: List<Int>,
        val counts: List<Boolean>,
    )

    private fun windows(
        text: String,
        dropUnknown: Boolean,
        wordsOnly: Boolean,
    ): List<Window> {
        val pieces = tokenizer.words(text)
        if (pieces.isEmpty() || isUnlearned(text)) return emptyList()
        val ids = pieces.map(::id)
        val counts = ids.zip(pieces) { id, piece -> !(dropUnknown && id == unknown) && !(wordsOnly && tokenizer.isSymbol(piece)) } + false
        val sequence = listOf(tokenizer.specials.bos) + ids + tokenizer.specials.eos
        val overlap = length / 4
        val found = ArrayList<Window>()
        var start = 0
        var seen = 0
        while (true) {
            val end = start + length
            val counted = List(seen) { false } + counts.subList(start + seen, minOf(end, counts.size))
            found += Window(sequence.subList(start, minOf(end + 1, sequence.size)), counted)
            if (end >= ids.size) return found // only the end, which never counts, could be left
            start = end - overlap
            seen = overlap
        }
    }

    private fun isUnlearned(text: String): Boolean =
        blocked != null && blocked.size > 0 && !overWords && PieceRules.NEWEST.cut(text).any(blocked::hides)

    /** What `predict` takes to suggest the word after [text]: the last ids that fit into a row. */
    public fun context(text: String): TextContext = contextAfter(ids(text))

    /** The same after these ids. */
    public fun contextAfter(ids: List<Int>): TextContext {
        val last = (listOf(tokenizer.specials.bos) + ids).takeLast(length)
        val tokens = LongArray(length) { last.getOrElse(it) { tokenizer.specials.pad }.toLong() }
        return TextContext(LongTensor(tokens, listOf(1, length)), LongTensor(longArrayOf(last.size - 1L), listOf(1)))
    }

    private companion object {
        /** Words with more code points get no slot: they are no words, and a keyboard could not show them. */
        const val LONGEST_SLOT_WORD = 64
        val UNKNOWN = WordTokenizer.SPECIALS[2]
    }
}
