package io.pflmobile.core.local

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.NoExamplesException
import io.pflmobile.core.rows.Rows
import io.pflmobile.core.rows.counting
import io.pflmobile.core.rows.take
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor

/**
 * Metrics of values on examples, as sum and weight by metric, so that those of several devices can be added. Recalls count labels outside
 * the vocabulary as misses. The loss leaves them out, so that it is of the same labels whatever words have a slot.
 *
 * @param tensors every device tensor by name
 * @param words slot words that belong to the tensors
 * @param known the loss leaves out labels that are unknown with these slot words
 * @throws NoExamplesException nothing in the examples counts
 * @throws ConfigException texts without an encoder
 * @throws io.pflmobile.core.errors.TensorMismatchException rows that do not fit the programs
 */
internal fun metricSums(
    programs: Programs,
    tensors: TensorSet,
    examples: Examples,
    encoder: Encoder?,
    words: List<String> = emptyList(),
    known: List<String> = words,
): Map<String, Pair<Double, Double>> {
    val rows = encoded(programs, examples, encoder, words)
    val all = programs.sums(rows, tensors)
    val sums = all.totals.mapValues { it.value to all.weight }
    val loss = all.totals["loss"]
    if (examples is Examples.Arrays || encoder == null || loss == null) return sums
    val miss = encoder.unknown.toLong()
    val labels = (if (known == words) rows else encoded(programs, examples, encoder, known)).getValue("labels") as LongTensor
    val given = rows.getValue("weight") as FloatTensor
    val unknown = FloatTensor(FloatArray(given.size) { if (labels.values[it] == miss) given.values[it] else 0f }, given.shape)
    val touched = counting(unknown)
    if (touched.isEmpty()) return sums
    // The same sum without those labels, by measuring only the rows that have any.
    val only = take(rows + ("weight" to unknown), touched, 0, touched.size, touched.size)
    val part = programs.sums(only, tensors)
    val rest = all.weight - part.weight
    return if (rest > 0) sums + ("loss" to (loss - part.totals.getValue("loss") to rest)) else sums - "loss"
}

/** Rows of the examples, checked; labels outside the vocabulary keep their weight. */
private fun encoded(
    programs: Programs,
    examples: Examples,
    encoder: Encoder?,
    words: List<String>,
): Rows {
    val rows =
        when (examples) {
            is Examples.Arrays -> {
                examples.rows
            }

            is Examples.Texts -> {
                encoder?.withWords(words)?.encode(examples.texts, dropUnknown = false)
                    ?: throw ConfigException("the bundle takes arrays, not texts", mend = "give arrays by name")
            }
        }
    programs.check(rows)
    return rows
}
