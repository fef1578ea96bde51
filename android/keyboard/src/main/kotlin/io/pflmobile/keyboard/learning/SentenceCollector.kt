package io.pflmobile.keyboard.learning

import io.pflmobile.keyboard.text.Composer

/**
 * Collects what is typed, and only that: not what the app had in the field, what was pasted, or what another person wrote. A sentence is
 * handed on when it ends, when the cursor goes elsewhere, or when the field is left.
 *
 * @param learn takes a sentence
 */
internal class SentenceCollector(
    private val learn: (String) -> Unit,
) {
    private val typed = StringBuilder()

    /** Whether the first word is the rest of one that stood there. */
    private var insideWord = false

    /** What is collected of the present sentence. */
    val text: String get() = typed.toString()

    /** @param before what stood before the cursor */
    fun typed(
        before: String,
        text: String,
    ) {
        if (typed.isEmpty()) insideWord = before.isNotEmpty() && Composer.isWord(before.codePointBefore(before.length))
        typed.append(text)
        if (typed.length > LONGEST) close()
        // the end counts once something follows it: "3.5" and "e.g." go on
        val over = text.isNotEmpty() && (text.last().isWhitespace() || text.last() in WIDE_END)
        if (over && Composer.endsSentence(typed.toString())) close()
    }

    /** Units before the cursor were deleted. */
    fun deleted(units: Int) {
        typed.setLength(maxOf(typed.length - units, 0))
    }

    /** What stands before the cursor changed; if that was not by typing, the sentence ends here. */
    fun moved(
        before: String,
        after: String,
    ) {
        if (typed.isNotEmpty() && !before.endsWith(typed.toString().takeLast(Composer.LOOK))) close(after)
    }

    /** The field is left. */
    fun close(after: String = "") {
        var sentence = typed.toString()
        typed.setLength(0)
        if (insideWord) sentence = sentence.dropWhile { !it.isWhitespace() }
        if (after.isNotEmpty() && Composer.isWord(after.codePointAt(0))) sentence = sentence.dropLastWhile { !it.isWhitespace() }
        insideWord = false
        if (sentence.isNotBlank()) learn(sentence.trim())
    }

    /** Forgets what is collected: it may not be learned. */
    fun drop() {
        typed.setLength(0)
        insideWord = false
    }

    private companion object {
        const val LONGEST = 2000

        /** No space follows them. */
        const val WIDE_END = "\u3002\uFF01\uFF1F"
    }
}
