package io.pflmobile.core.text

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import io.pflmobile.core.errors.DataException
import io.pflmobile.core.errors.OutOfVocabularyException
import io.pflmobile.core.files.parseJson
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.booleanOrNull
import kotlinx.serialization.json.intOrNull
import java.io.IOException

/**
 * Any Hugging Face `tokenizer.json` (BPE, WordPiece, Unigram), as a pretrained language model brings it; the same library cuts as in
 * Python. An app that opens such a bundle adds `ai.djl.huggingface:tokenizers` (on Android its natives too).
 *
 * Tokens that the file marks as special, and padding, start and end, are left out wherever they come from a text, so nobody can type them.
 * Truncation, padding and the template of the file are not used. There are no vocabulary slots over subwords.
 */
public class SubwordTokenizer private constructor(
    private val library: HuggingFaceTokenizer,
    private val ids: Map<String, Int>,
    private val leftOut: Set<Int>,
    override val specials: SpecialIds,
) : Tokenizer,
    AutoCloseable {
    private val tokens = ids.entries.associate { (token, id) -> id to token }

    override val size: Int = (tokens.keys.maxOrNull() ?: -1) + 1

    override val rules: PieceRules get() = PieceRules.NEWEST

    override fun words(text: String): List<String> {
        val found =
            try {
                library.encode(Points.of(text).text(), false, false).ids
            } catch (error: RuntimeException) {
                // the library raises no other type
                throw DataException(
                    "the tokenizer cannot cut a text: ${error.message}",
                    "give it an unknown token, or byte fallback",
                    error,
                )
            }
        return found.map { it.toInt() }.filter { it !in leftOut }.map(tokens::getValue)
    }

    override fun id(word: String): Int = ids[word] ?: specials.unk

    override fun word(id: Int): String {
        if (id !in
            0 until size
        ) {
            throw OutOfVocabularyException("token id $id lies outside 0..${size - 1}", "use the tokenizer of this model")
        }
        return tokens[id] ?: WordTokenizer.SPECIALS[2]
    }

    /** The text that subwords spell together. */
    public fun text(ids: List<Int>): String = library.decode(LongArray(ids.size) { ids[it].toLong() }, true)

    override fun isSymbol(piece: String): Boolean = rules.cut(text(listOf(id(piece)))).all(rules::isSymbol)

    /**
     * Ids of all subwords that spell one of the words at the beginning of a text or behind a space, written small, with a capital or all in
     * capitals; without those that are only a space or symbols. A subword is often part of other words too.
     */
    public fun spellings(words: Iterable<String>): Set<Int> {
        val cases = words.flatMap { listOf(it, it.lowercase().replaceFirstChar(Char::titlecase), it.uppercase()) }
        return cases.flatMap { words(it) + words(" $it") }.filterNot(::isSymbol).mapTo(HashSet(), ::id)
    }

    /** Frees the native memory of the library. */
    override fun close() {
        library.close()
    }

    /** Reads tokenizers. */
    public companion object {
        /** The library makes room for every id up to the largest; no vocabulary in use is larger. */
        private const val MOST_IDS = 1 shl 21

        /** Values in a `tokenizer.json`; the largest in use has 2.1 million. */
        private const val MOST_TOKENIZER_VALUES = 8_000_000
        private val OPTIONS = mapOf("addSpecialTokens" to "false", "truncation" to "do_not_truncate", "padding" to "false")

        /**
         * Reads a `tokenizer.json`.
         *
         * @throws DataException it is no tokenizer, or has no tokens of these ids
         */
        public fun fromJson(
            json: String,
            specials: SpecialIds,
        ): SubwordTokenizer {
            val ids = HashMap<String, Int>()
            val marked = HashSet<Int>()
            try {
                val file = requireNotNull(parseJson(json, MOST_TOKENIZER_VALUES) as? JsonObject) { "it is no object" }
                val vocabulary = requireNotNull((file["model"] as? JsonObject)?.get("vocab")) { "it has no vocabulary" }
                if (vocabulary is JsonArray) {
                    vocabulary.forEachIndexed { id, entry -> ids[text((entry as? JsonArray)?.firstOrNull())] = id }
                } else {
                    requireNotNull(vocabulary as? JsonObject) { "its vocabulary is none" }.forEach { (token, id) ->
                        ids[token] = number(id)
                    }
                }
                for (token in (file["added_tokens"].takeUnless { it is JsonNull } as? JsonArray).orEmpty()) {
                    val entry = requireNotNull(token as? JsonObject) { "an added token is no object" }
                    val id = number(entry["id"])
                    ids[text(entry["content"])] = id
                    if ((entry["special"] as? JsonPrimitive)?.booleanOrNull == true) marked += id
                }
                require(ids.values.all { it in 0 until MOST_IDS }) { "its ids do not lie from 0 to ${MOST_IDS - 1}" }
                val known = ids.values.toSet()
                val wanted = listOfNotNull(specials.pad, specials.bos, specials.eos, specials.unk.takeIf { it != -1 })
                wanted.find { it !in known }?.let { throw IllegalArgumentException("it has no token with the id $it") }
                val leftOut = marked - specials.unk + setOf(specials.pad, specials.bos, specials.eos)
                return SubwordTokenizer(HuggingFaceTokenizer.newInstance(json.byteInputStream(), OPTIONS), ids, leftOut, specials)
            } catch (error: IOException) {
                throw damaged(error)
            } catch (error: RuntimeException) {
                throw damaged(error) // the library raises no other type
            }
        }

        private fun damaged(error: Exception) =
            DataException("this is no tokenizer.json: ${error.message}", "save it with a current version of tokenizers", error)

        private fun number(element: JsonElement?): Int =
            requireNotNull((element as? JsonPrimitive)?.takeUnless { it.isString }?.intOrNull) { "an id is no number" }

        private fun text(element: JsonElement?): String =
            requireNotNull((element as? JsonPrimitive)?.takeIf { it.isString }?.content) { "a token is no text" }
    }
}
