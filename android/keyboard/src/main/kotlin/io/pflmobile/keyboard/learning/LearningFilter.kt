package io.pflmobile.keyboard.learning

import io.pflmobile.keyboard.text.Composer

/**
 * Keeps out of the examples what is no language or must not be kept: numbers, addresses of mail and web, codes, passwords pasted into a
 * message. The text is cut there, so that words which never stood side by side are not learned as neighbours.
 */
internal object LearningFilter {
    /** Examples have at least so many words: one alone teaches no order. */
    const val FEWEST: Int = 2

    private const val LONGEST = 30
    private const val LONGEST_WITHOUT_VOWEL = 6
    private const val QUOTES = "\"'\u2018\u2019\u201C\u201D\u00AB\u00BB()[]{}*.,;:!?\u2026-\u2013\u2014\u00BF\u00A1\u3002\u3001"
    private const val TECHNICAL = "@#_\\/=|<>^~\$%&+`"
    private val WHITE = Regex("\\s+")
    private val DOMAIN = Regex("[\\p{L}\\p{N}-]{2,}(\\.[\\p{L}\\p{N}-]{2,})+")
    private val NO_VOWEL = Regex("[b-df-hj-np-tv-xz]+", RegexOption.IGNORE_CASE)

    /** The parts of a text that may be learned. Words that the user wants forgotten are the model's to refuse. */
    fun parts(text: String): List<String> {
        val parts = ArrayList<String>()
        val part = ArrayList<String>()

        fun close() {
            if (part.count(::isWord) >= FEWEST) parts += part.joinToString(" ")
            part.clear()
        }
        for (token in text.trim().split(WHITE)) if (isOneOff(token)) close() else part += token
        close()
        return parts
    }

    /** Whether a token is no word of a language. */
    fun isOneOff(token: String): Boolean {
        val bare = bare(token)
        return bare.codePoints().anyMatch { Character.isDigit(it) || Character.getType(it).toByte() == Character.OTHER_NUMBER } ||
            bare.any { it in TECHNICAL } ||
            DOMAIN.matches(bare) ||
            bare.length > LONGEST ||
            isCode(bare)
    }

    /** Letters as passwords and keys have them: capitals behind small ones more than once, or many consonants and nothing else. */
    private fun isCode(bare: String): Boolean =
        bare.zipWithNext().count { (first, second) -> first.isLowerCase() && second.isUpperCase() } > 1 ||
            (bare.length > LONGEST_WITHOUT_VOWEL && NO_VOWEL.matches(bare))

    private fun bare(token: String): String = token.trim { it in QUOTES }

    private fun isWord(token: String): Boolean = token.codePoints().anyMatch { Composer.isWord(it) || Character.isLetter(it) }
}
