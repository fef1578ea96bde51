package io.pflmobile.keyboard.text

/** What a reader takes for one character: a letter with its marks, a flag, a family of emoji. */
internal object Graphemes {
    /** Extended grapheme clusters (Unicode Annex 29). The regular expressions of the JDK and of Android both know them. */
    private val CLUSTER = Regex("\\X")

    /** How many UTF-16 units the last one takes; 0 of an empty text. */
    fun lastLength(text: String): Int =
        CLUSTER
            .findAll(text)
            .lastOrNull()
            ?.value
            ?.length ?: 0
}
