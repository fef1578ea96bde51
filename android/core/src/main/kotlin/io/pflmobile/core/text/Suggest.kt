/*
 * The likeliest next words, from a program that gives the likeliest next ids.
 *
 * Over words an id is a word. Over subwords one call gives the first part of a word; it is gone on from, one call for each further part,
 * until a part begins another word.
 */
package io.pflmobile.core.text

/**
 * A next word.
 *
 * @property word as the user would write it
 * @property probability that the model gives it, from 0 to 1; of a word of several parts, that they follow each other
 */
public data class Suggestion(
    val word: String,
    val probability: Double,
)

/** What `predict` gives: ids, the likeliest first, and their probabilities. */
internal class Predicted(
    val ids: LongArray,
    val probabilities: FloatArray,
)

/** A word of more subwords is cut off here. */
private const val MOST_PARTS = 8

/**
 * At most [k] different next words or symbols, the likeliest first.
 *
 * @param predict the program, with the user's tensors
 * @param encoder with the user's words in its slots
 * @param text what was typed, up to the end of a word
 */
internal fun suggest(
    predict: (TextContext) -> Predicted,
    encoder: TextEncoder,
    text: String,
    k: Int = 3,
): List<Suggestion> {
    val before = encoder.ids(text)
    val found = LinkedHashMap<String, Suggestion>()
    val first = predict(encoder.contextAfter(before))
    for ((place, id) in first.ids.withIndex()) {
        if (found.size >= k) break
        if (encoder.isSpecial(id.toInt())) continue
        val start = Suggestion("", first.probabilities[place].toDouble())
        val tokenizer = encoder.tokenizer
        val next =
            if (tokenizer is SubwordTokenizer) {
                whole(predict, encoder, tokenizer, before, id.toInt(), start.probability)
            } else {
                start.copy(word = encoder.word(id.toInt()))
            }
        if (next.word.isNotEmpty()) found.putIfAbsent(next.word, next)
    }
    return found.values.toList()
}

/** The word that begins with a subword; empty where it begins none. */
private fun whole(
    predict: (TextContext) -> Predicted,
    encoder: TextEncoder,
    tokenizer: SubwordTokenizer,
    before: List<Int>,
    first: Int,
    probability: Double,
): Suggestion {
    val parts = arrayListOf(first)
    var all = probability
    while (parts.size < MOST_PARTS) {
        val following = predict(encoder.contextAfter(before + parts))
        val best = following.ids.firstOrNull()?.toInt() ?: break
        if (encoder.isSpecial(best) || words(tokenizer.text(parts + best)) > 1) break
        parts += best
        all *= following.probabilities[0]
    }
    return Suggestion(tokenizer.text(parts).trim(), all)
}

private val SPACE = Regex("\\s+")

private fun words(text: String): Int = text.split(SPACE).count { it.isNotEmpty() }
