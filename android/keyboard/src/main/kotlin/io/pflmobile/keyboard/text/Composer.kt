package io.pflmobile.keyboard.text

import java.lang.Character.UnicodeScript

/**
 * What the model is asked.
 *
 * @property context what stands before the word
 * @property prefix what is typed of the word; empty for the next word
 */
internal data class Request(
    val context: String,
    val prefix: String,
)

/**
 * A change of the text at the cursor.
 *
 * @property delete UTF-16 units to remove before the cursor
 * @property insert what comes in their place
 */
internal data class Edit(
    val delete: Int,
    val insert: String,
)

/** Words and spaces around the cursor. Everything follows from the text before it: the keyboard keeps nothing of its own. */
internal object Composer {
    /** UTF-16 units before the cursor that are looked at. */
    const val LOOK: Int = 256

    private const val APOSTROPHES = "'\u2019\u2018"

    /** They cling to the word before them. */
    private const val CLINGING = ".,!?;:)]}\u2026%"
    private const val SENTENCE_END = ".!?\u2026\u3002\uFF01\uFF1F\n"

    /** Scripts that are written without spaces between words. */
    private val UNSPACED =
        setOf(
            UnicodeScript.HAN,
            UnicodeScript.HIRAGANA,
            UnicodeScript.KATAKANA,
            UnicodeScript.THAI,
            UnicodeScript.LAO,
            UnicodeScript.KHMER,
            UnicodeScript.MYANMAR,
        )

    /** What to ask the model where [before] stands before the cursor. */
    fun request(before: String): Request {
        val word = lastWord(before)
        return Request(before.dropLast(word.length), word)
    }

    /** The word that the cursor stands behind; empty behind a space, a symbol, or a script without spaces. */
    fun lastWord(before: String): String {
        var start = before.length
        while (start > 0) {
            val point = before.codePointBefore(start)
            if (!isWord(point) &&
                !(isApostrophe(point) && start < before.length && start > 1 && isWord(before.codePointBefore(start - 1)))
            ) {
                break
            }
            start -= Character.charCount(point)
        }
        return before.substring(start)
    }

    /** Whether the words of the model complete [prefix]; in the order in which they are likely. */
    fun completions(
        words: List<String>,
        prefix: String,
        count: Int,
    ): List<String> {
        val start = plain(prefix)
        return words
            .asSequence()
            .filter(::isOffered)
            .filter { start.isEmpty() || (plain(it).startsWith(start) && plain(it) != start) }
            .distinct()
            .take(count)
            .toList()
    }

    /** How a word is shown and typed: with the capitals of what is typed of it, or one at the start of a sentence. */
    fun spelled(
        word: String,
        prefix: String,
        capital: Boolean,
    ): String {
        val letters = prefix.filter(Char::isLetter)
        return when {
            letters.length > 1 && letters.all(Char::isUpperCase) -> word.uppercase()
            letters.firstOrNull()?.isUpperCase() == true || (prefix.isEmpty() && capital) -> capitalized(word)
            word == "i" || word.startsWith("i'") -> capitalized(word)
            else -> word
        }
    }

    /** What choosing a suggestion does. */
    fun choose(
        before: String,
        word: String,
    ): Edit {
        val typed = lastWord(before)
        val gap = if (typed.isEmpty() && needsGap(before, word)) " " else ""
        return Edit(typed.length, gap + word + if (isUnspaced(word.codePointBefore(word.length))) "" else " ")
    }

    /**
     * What typing a character does.
     *
     * @param ownSpace whether the space before the cursor came with a suggestion, and not from the user
     */
    fun type(
        before: String,
        text: String,
        ownSpace: Boolean,
    ): Edit =
        if (ownSpace && before.endsWith(' ') && text.length == 1 && text[0] in CLINGING) {
            Edit(1, text + if (text[0] in ".,!?;:\u2026") " " else "")
        } else {
            Edit(0, text)
        }

    /** What the space bar does: the second space behind a word ends the sentence. */
    fun space(before: String): Edit {
        val ends = before.length > 1 && before.endsWith(' ') && before[before.length - 2].isLetterOrDigit()
        return if (ends) Edit(1, ". ") else Edit(0, " ")
    }

    /** Whether a text ends with the end of a sentence. */
    fun endsSentence(text: String): Boolean {
        val end = text.trimEnd(' ')
        return end.isNotEmpty() && end.last() in SENTENCE_END
    }

    /** Whether a code point belongs to a word, of a script that puts spaces between words. */
    fun isWord(point: Int): Boolean = (Character.isLetterOrDigit(point) || isMark(point)) && !isUnspaced(point)

    private fun isOffered(word: String): Boolean =
        word.isNotEmpty() && !word.startsWith('<') && (word.codePoints().anyMatch { Character.isLetter(it) || isPicture(it) })

    /** A symbol beyond punctuation: emoji, and what came later than this platform's table. */
    private fun isPicture(point: Int): Boolean =
        when (Character.getType(point).toByte()) {
            Character.OTHER_SYMBOL, Character.UNASSIGNED -> true
            else -> false
        }

    private fun isMark(point: Int): Boolean =
        when (Character.getType(point).toByte()) {
            Character.NON_SPACING_MARK, Character.COMBINING_SPACING_MARK, Character.ENCLOSING_MARK -> point != 0xFE0F && point != 0x20E3
            else -> point == 0x200C // keeps the letters of a Persian word apart
        }

    private fun isUnspaced(point: Int): Boolean = UnicodeScript.of(point) in UNSPACED

    private fun isApostrophe(point: Int): Boolean = point < 0x10000 && point.toChar() in APOSTROPHES

    /** Whether the word would run into what stands before it. */
    private fun needsGap(
        before: String,
        word: String,
    ): Boolean {
        if (before.isEmpty() || isUnspaced(word.codePointAt(0))) return false
        val last = before.codePointBefore(before.length)
        return !Character.isWhitespace(last) && !isUnspaced(last) && last.toChar() !in "([{\u00BF\u00A1@#/-\"$APOSTROPHES"
    }

    private fun capitalized(word: String): String {
        if (word.isEmpty()) return word
        val end = word.offsetByCodePoints(0, 1)
        return word.substring(0, end).uppercase() + word.substring(end)
    }

    private fun plain(word: String): String = word.lowercase().replace('\u2019', '\'').replace('\u2018', '\'')
}
