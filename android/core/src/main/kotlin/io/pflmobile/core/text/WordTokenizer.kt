package io.pflmobile.core.text

import io.pflmobile.core.errors.DataException
import io.pflmobile.core.errors.OutOfVocabularyException
import io.pflmobile.core.files.parseJson
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.intOrNull

/**
 * A vocabulary of words and symbols, over the pieces that the rules cut.
 *
 * @param words in the order of their ids; the special tokens come first
 * @property rules by which texts are cut
 */
public class WordTokenizer(
    words: List<String>,
    override val rules: PieceRules = PieceRules.NEWEST,
) : Tokenizer {
    private val words = words.toList()
    private val ids: Map<String, Int> = this.words.withIndex().associate { (id, word) -> word to id }

    init {
        if (ids.size != words.size || "" in ids || words.take(SPECIALS.size) != SPECIALS) {
            throw DataException("the words are not $SPECIALS and then each word once", "export the bundle again")
        }
    }

    override val size: Int get() = words.size

    override val specials: SpecialIds get() = IDS

    override fun words(text: String): List<String> = rules.cut(text)

    override fun id(word: String): Int = ids[word] ?: IDS.unk

    override fun word(id: Int): String =
        words.getOrNull(id)
            ?: throw OutOfVocabularyException("token id $id lies outside 0..${size - 1}", "use the tokenizer of this model")

    override fun isSymbol(piece: String): Boolean = rules.isSymbol(piece)

    /** Reads tokenizers. */
    public companion object {
        /** The special tokens, in the order of their ids. */
        public val SPECIALS: List<String> = listOf("<pad>", "<s>", "<unk>", "</s>")

        private val IDS = SpecialIds(pad = 0, bos = 1, eos = 3, unk = 2)

        /**
         * Reads a `tokenizer.json`.
         *
         * @throws DataException it is none of a word tokenizer with the piece rules of a known version
         */
        public fun fromJson(json: String): WordTokenizer {
            try {
                val file = objectOf(parseJson(json))
                val model = objectOf(file["model"])
                require(model["type"] == JsonPrimitive("WordLevel")) { "its model is not WordLevel" }
                val vocabulary = objectOf(model["vocab"]).mapValues { (_, id) -> number(id) }
                val words = arrayOfNulls<String>(vocabulary.size)
                for ((word, id) in vocabulary) {
                    require(id != null && id in words.indices && words[id] == null) { "its ids have gaps, or two words of one id" }
                    words[id] = word
                }
                val rules = requireNotNull(rulesOf(file)) { "it does not follow the piece rules" }
                return WordTokenizer(words.map { requireNotNull(it) }, rules)
            } catch (error: IllegalArgumentException) {
                throw DataException("this is no word tokenizer: ${error.message}", "export the bundle again", error)
            }
        }

        /** Of version 1 the file holds the rules, of version 2 it splits at white space. */
        private fun rulesOf(file: JsonObject): PieceRules? {
            val split = (file["pre_tokenizer"] as? JsonObject)?.get("type")
            val added = file["added_tokens"]
            return when {
                added != null && added != JsonArray(emptyList()) -> null
                split == JsonPrimitive("WhitespaceSplit") && (file["normalizer"] ?: JsonNull) == JsonNull -> PieceRules.VERSION_2
                split == JsonPrimitive("Split") && types(file["normalizer"]) == VERSION_1 -> PieceRules.VERSION_1
                else -> null
            }
        }

        private val VERSION_1 = listOf("NFKC", "Replace", "Replace", "Lowercase").map(::JsonPrimitive)

        private fun types(normalizer: JsonElement?): List<JsonElement?> =
            ((normalizer as? JsonObject)?.get("normalizers") as? JsonArray).orEmpty().map { (it as? JsonObject)?.get("type") }

        private fun number(element: JsonElement): Int? = (element as? JsonPrimitive)?.takeUnless { it.isString }?.intOrNull

        private fun objectOf(element: JsonElement?): JsonObject = requireNotNull(element as? JsonObject) { "a part of it is no object" }
    }
}
