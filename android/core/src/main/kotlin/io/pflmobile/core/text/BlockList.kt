package io.pflmobile.core.text

import io.pflmobile.core.errors.StateException
import io.pflmobile.core.files.fromHex
import io.pflmobile.core.files.hex
import io.pflmobile.core.files.parseJson
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.security.SecureRandom
import javax.crypto.Mac
import javax.crypto.spec.SecretKeySpec

/**
 * Words that a user wants forgotten, as the tokenizer cuts and folds them, kept so that they are not learned again, without being
 * spelled out.
 *
 * The list must not be the place where a forgotten word is read, so it holds keyed digests: HMAC-SHA-256 of the word in UTF-8 under a
 * key of 32 random bytes that lies beside them. Whoever has the file can test a guess, and so find a word that can be guessed; nobody can
 * read a list of words out of it.
 *
 *     {"schema_version": 1, "kind": "pfl-blocked-words", "key": "<64 hex>", "words": ["<64 hex>", ...]}
 */
public class BlockList internal constructor(
    private val key: ByteArray,
    private val digests: Set<String>,
) {
    /** How many words are blocked. */
    public val size: Int get() = digests.size

    /** Whether exactly this word is blocked. */
    public operator fun contains(word: String): Boolean = digests.isNotEmpty() && digest(word) in digests

    /** Whether the word, or a part of it between apostrophes (`greta's`), is blocked. */
    public fun hides(word: String): Boolean = word in this || ('\'' in word && word.split('\'').any { it in this })

    /** This list with more words. */
    public operator fun plus(words: Iterable<String>): BlockList = BlockList(key, digests + words.map(::digest))

    /** The content of the file. */
    internal fun toJson(): ByteArray {
        val words = if (digests.isEmpty()) "[]" else digests.sorted().joinToString(",\n  ", "[\n  ", "\n ]") { "\"$it\"" }
        val head = " \"schema_version\": $SCHEMA_VERSION,\n \"kind\": \"$KIND\",\n \"key\": \"${hex(key)}\""
        return "{\n$head,\n \"words\": $words\n}\n".encodeToByteArray()
    }

    private fun digest(word: String): String {
        val mac = Mac.getInstance("HmacSHA256").also { it.init(SecretKeySpec(key, "HmacSHA256")) }
        return hex(mac.doFinal(word.encodeToByteArray()))
    }

    /** Makes and reads lists. */
    public companion object {
        private const val KIND = "pfl-blocked-words"
        private const val SCHEMA_VERSION = 1
        private val DIGEST = Regex("[0-9a-f]{64}")

        /** No words, and a key of its own. */
        public fun empty(): BlockList = BlockList(ByteArray(32).also(SecureRandom()::nextBytes), emptySet())

        /**
         * Reads the content of a file.
         *
         * @param what its name, for messages
         * @throws StateException it is damaged or newer. Without it words would be learned that must not be, so it is never taken for
         *   empty
         */
        internal fun fromJson(
            data: ByteArray,
            what: String,
        ): BlockList {
            try {
                val raw = requireNotNull(parseJson(data) as? JsonObject) { "it is no object" }
                val version = (raw["schema_version"] as? JsonPrimitive)?.takeUnless { it.isString }?.content?.toBigIntegerOrNull()
                val kind = text(raw, "kind")
                if (kind == KIND && version != null && version > SCHEMA_VERSION.toBigInteger()) {
                    throw StateException("$what has schema $version, newer than $SCHEMA_VERSION", "update the app")
                }
                val key = fromHex(text(raw, "key"))
                val words = (raw["words"] as? JsonArray)?.map { (it as? JsonPrimitive)?.takeIf { word -> word.isString }?.content }
                require(kind == KIND && version == SCHEMA_VERSION.toBigInteger() && key?.size == 32 && words != null) { OTHER }
                return BlockList(key, words.mapTo(HashSet()) { requireNotNull(it?.takeIf(DIGEST::matches)) { OTHER } })
            } catch (error: IllegalArgumentException) {
                throw StateException(
                    "the list of forgotten words $what is damaged: ${error.message}",
                    "restore it from a backup; or remove it and forget the words again, before anything is trained",
                    error,
                )
            }
        }

        private const val OTHER = "it is not a list of blocked words"

        private fun text(
            raw: JsonObject,
            name: String,
        ): String = (raw[name] as? JsonPrimitive)?.takeIf { it.isString }?.content.orEmpty()
    }
}
