package io.pflmobile.core.text

/**
 * The words of a vocabulary by how they begin. Made once for a tokenizer, as a keyboard asks at every key.
 *
 * Upper and lower case, and the kinds of apostrophe, are one.
 */
internal class PrefixIndex(
    tokenizer: WordTokenizer,
) {
    private val sorted: List<Pair<String, Int>> =
        (WordTokenizer.SPECIALS.size until tokenizer.size)
            .filterNot { tokenizer.isSymbol(tokenizer.word(it)) }
            .map { folded(tokenizer.word(it)) to it }
            .sortedBy { it.first }

    /** Ids of the words that begin with [prefix] and are longer, in the order of the ids: the most used first. */
    fun startingWith(prefix: String): List<Int> {
        val start = folded(prefix)
        val place = sorted.binarySearchBy(start) { it.first }
        var at = if (place < 0) -place - 1 else place
        val found = ArrayList<Int>()
        while (at < sorted.size && sorted[at].first.startsWith(start)) {
            if (sorted[at].first != start) found += sorted[at].second
            at++
        }
        return found.sorted()
    }
}

/**
 * At most [k] different words that begin with [prefix] and are longer: those that the model finds likely, in that order, then the user's
 * own, then those of the vocabulary, the most used first.
 *
 * A program gives only so many next words as it was exported for, and the word that was begun may be none of them.
 *
 * @param likely what the model suggests, the likeliest first
 * @param own the user's words
 * @param vocabulary null over subwords, which are no words
 */
internal fun complete(
    likely: List<String>,
    own: List<String>,
    vocabulary: Sequence<String>?,
    prefix: String,
    k: Int,
): List<String> {
    val start = folded(prefix)
    return (likely.asSequence() + own.asSequence() + vocabulary.orEmpty())
        .filter { begins(it, start) }
        .distinct()
        .take(k)
        .toList()
}

private fun begins(
    word: String,
    start: String,
) = folded(word).let { it.startsWith(start) && it != start }

private fun folded(word: String): String = word.lowercase().replace('\u2019', '\'').replace('\u2018', '\'')
