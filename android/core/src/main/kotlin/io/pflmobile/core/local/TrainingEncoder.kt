package io.pflmobile.core.local

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.EncoderEntry
import io.pflmobile.core.errors.DataException
import io.pflmobile.core.rows.Rows
import io.pflmobile.core.text.BlockList
import io.pflmobile.core.text.SpecialIds
import io.pflmobile.core.text.SubwordTokenizer
import io.pflmobile.core.text.TextEncoder
import io.pflmobile.core.text.WordTokenizer

/**
 * A bundle's text encoder, as training asks for it.
 *
 * @property text the encoder
 */
public class TrainingEncoder(
    public val text: TextEncoder,
) : Encoder {
    override val words: List<String> get() = text.words
    override val unknown: Int get() = text.unknown

    override fun withWords(words: List<String>): Encoder = if (words == this.words) this else TrainingEncoder(text.withWords(words))

    override fun withBlocked(blocked: BlockList): Encoder = TrainingEncoder(text.withBlocked(blocked))

    override fun chooseWords(
        texts: List<String>,
        minCount: Long,
    ): List<String> = text.chooseWords(texts, minCount.coerceAtMost(Int.MAX_VALUE.toLong()).toInt())

    override fun encode(
        texts: List<String>,
        dropUnknown: Boolean,
    ): Rows = text.encode(texts, dropUnknown).let { mapOf("tokens" to it.tokens, "labels" to it.labels, "weight" to it.weight) }
}

/**
 * The encoder that a bundle describes; null for a bundle that takes arrays.
 *
 * @throws DataException its tokenizer cannot be read, or is not cut by the rules that the manifest says
 */
public fun textEncoder(bundle: Bundle): TextEncoder? {
    val entry = bundle.manifest.encoder as? EncoderEntry.Text ?: return null
    val json = bundle.tokenizer()?.decodeToString() ?: return null
    val subwords = entry.subwords
    val tokenizer =
        if (subwords == null) {
            WordTokenizer.fromJson(json).also { checkRules(entry.rules, it.rules.version) }
        } else {
            SubwordTokenizer.fromJson(
                json,
                SpecialIds(
                    subwords.pad.toInt(),
                    subwords.bos.toInt(),
                    subwords.eos.toInt(),
                    subwords.unk?.toInt() ?: -1,
                ),
            )
        }
    return TextEncoder(tokenizer, entry.length.toInt(), entry.vocabulary.toInt(), entry.slots.toInt())
}

private fun checkRules(
    said: Long,
    found: Int,
) {
    if (said != found.toLong()) {
        throw DataException(
            "the manifest says version $said of the piece rules, the tokenizer's file version $found",
            mend = "export the bundle again",
        )
    }
}
