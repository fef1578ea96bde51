package io.pflmobile.core.text

/**
 * Ids of the special tokens of a tokenizer; several may be the same.
 *
 * @property pad fills rows
 * @property bos stands before a text
 * @property eos stands behind a text
 * @property unk what is outside the vocabulary; -1 where the tokenizer has no such token
 */
public data class SpecialIds(
    val pad: Int,
    val bos: Int,
    val eos: Int,
    val unk: Int = -1,
)

/** Cuts texts into parts that have ids: words, or subwords. */
public interface Tokenizer {
    /** Number of ids, special tokens included. */
    public val size: Int

    /** Ids of the special tokens. */
    public val specials: SpecialIds

    /** By which words are told apart in what the user blocks or wants forgotten. */
    public val rules: PieceRules

    /** The parts of a text, in or out of the vocabulary. */
    public fun words(text: String): List<String>

    /** The id of a part; that of the unknown token where it has none. */
    public fun id(word: String): Int

    /**
     * The part of an id.
     *
     * @throws io.pflmobile.core.errors.OutOfVocabularyException there is no such id
     */
    public fun word(id: Int): String

    /** Whether a part is a symbol (or a special token) and no word. */
    public fun isSymbol(piece: String): Boolean
}
