package io.pflmobile.core.text

import io.pflmobile.core.errors.SchemaVersionException
import java.text.Normalizer

/** The versions of the rules that cut a text into pieces; a bundle says the one that its words were cut by. */
public enum class PieceRules(
    /** As a bundle says it. */
    public val version: Int,
) {
    /** For bundles that were exported with it. Emoji sequences are broken, and code points newer than the platform's are symbols. */
    VERSION_1(1) {
        override fun cut(text: String): List<String> {
            val normal = Normalizer.normalize(Points.of(text).text(), Normalizer.Form.NFKC).replace('\u2019', '\'').replace('\u2018', '\'')
            return PIECE.findAll(lower(normal)).map { it.value }.toList()
        }

        override fun isSymbol(piece: String): Boolean = !WORD_START.matchesAt(piece, 0)
    },

    /** Of what is made now. */
    VERSION_2(2) {
        override fun cut(text: String): List<String> = Pieces.cut(text)

        override fun isSymbol(piece: String): Boolean = Pieces.isSymbol(piece)
    }, ;

    /** The pieces of a text: words and symbols. */
    public abstract fun cut(text: String): List<String>

    /** Whether a piece is a symbol (or a special token) and not a word. */
    public abstract fun isSymbol(piece: String): Boolean

    /** The versions that are known. */
    public companion object {
        private const val WORD = "[\\p{L}\\p{N}][\\p{L}\\p{N}\\p{M}]*+(?:'[\\p{L}\\p{N}][\\p{L}\\p{N}\\p{M}]*+)*+"
        private val PIECE = Regex("$WORD|[^\\p{L}\\p{N}\\p{Z}\\p{Cc}]\\p{M}*+")
        private val WORD_START = Regex("[\\p{L}\\p{N}]")

        /** The newest version. */
        public val NEWEST: PieceRules get() = VERSION_2

        /**
         * The rules of a version.
         *
         * @throws SchemaVersionException it is newer than this library
         */
        public fun of(version: Int): PieceRules =
            entries.find { it.version == version } ?: throw SchemaVersionException(
                "the text is cut by version $version of the piece rules; this library knows up to ${NEWEST.version}",
                "update the app, or export the bundle with the version in use here",
            )

        /** Each code point by itself, so that a capital sigma never becomes a final one. */
        private fun lower(text: String): String {
            val points = Points.of(text)
            val found = StringBuilder(text.length)
            for (index in 0 until points.size) {
                if (points[index] == 0x130) found.append("i\u0307") else found.appendCodePoint(Character.toLowerCase(points[index]))
            }
            return found.toString()
        }
    }
}
