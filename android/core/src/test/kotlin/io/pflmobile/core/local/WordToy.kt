package io.pflmobile.core.local

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.engines.Session
import io.pflmobile.core.rows.Rows
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.NameOrder
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.text.BlockList

private const val LENGTH = 3
private const val UNKNOWN = 2L
private const val FIRST = 4

/** The encoder of the word toy of `conformance/README.md`. */
class WordEncoder(
    override val words: List<String> = emptyList(),
) : Encoder {
    override val unknown: Int get() = UNKNOWN.toInt()
    private val known = listOf("see", "you", "home")

    override fun withWords(words: List<String>): Encoder = WordEncoder(words)

    override fun withBlocked(blocked: BlockList): Encoder = this

    override fun chooseWords(
        texts: List<String>,
        minCount: Long,
    ): List<String> {
        val counts = texts.flatMap { it.split(' ') }.groupingBy { it }.eachCount()
        val new = counts.filter { (word, count) -> count >= minCount && word !in known && word !in words }
        val order = compareByDescending<String> { new.getValue(it) }.then(NameOrder)
        return (words + new.keys.sortedWith(order)).take(2)
    }

    override fun encode(
        texts: List<String>,
        dropUnknown: Boolean,
    ): Rows {
        val ids = (known + words).withIndex().associate { (place, word) -> word to FIRST + place.toLong() }
        val rows = texts.map { text -> (listOf(1L) + text.split(' ').map { ids[it] ?: UNKNOWN } + 3L).take(LENGTH + 1) }
        val shape = listOf(texts.size, LENGTH)

        fun padded(row: List<Long>) = row + List(LENGTH - row.size) { 0L }
        val labels = rows.flatMap { padded(it.drop(1)) }
        val weight = labels.map { if (it > 0 && !(dropUnknown && it == UNKNOWN)) 1f else 0f }
        return mapOf(
            "tokens" to LongTensor(rows.flatMap { padded(it.dropLast(1)) }.toLongArray(), shape),
            "labels" to LongTensor(labels.toLongArray(), shape),
            "weight" to FloatTensor(weight.toFloatArray(), shape),
        )
    }
}

/** The word toy of `conformance/README.md`. */
class WordToy(
    table: List<DeviceTensor>,
) : Session {
    override val name = "word toy"
    private val batch = listOf("tokens" to DType.INT64, "labels" to DType.INT64, "weight" to DType.FLOAT32)
    private val all =
        batch.map { (name, dtype) -> TensorSpec(name, listOf(4, LENGTH), dtype) } + table.map { TensorSpec(it.name, it.shape, it.dtype) }
    override val programs = listOf("gradients", "evaluate").associateWith { ProgramSpec(it, all, emptyList()) }

    override fun close() = Unit

    override fun run(
        program: String,
        inputs: Map<String, Tensor>,
    ): Map<String, Tensor> {
        fun floats(name: String) = (inputs.getValue(name) as FloatTensor).values

        fun longs(name: String) = (inputs.getValue(name) as LongTensor).values
        val e = floats("e")
        val memory = longs("memory.next").withIndex().map { (entry, next) -> next to longs("memory.context")[2 * entry] }.toSet()
        var loss = 0f
        var weightSum = 0f
        var top1 = 0f
        val grad = FloatArray(e.size)
        floats("weight").forEachIndexed { place, w ->
            val label = longs("labels")[place]
            val at = label.toInt()
            var d = e[at] - 1f
            if (label to longs("tokens")[place] in memory) d = 0.5f * d
            val t = w * d
            grad[at] += t
            loss += 0.5f * (t * d)
            weightSum += w
            if (label != UNKNOWN && e[at] > 0) top1 += w
        }
        val sums = mapOf("loss_sum" to loss, "weight_sum" to weightSum, "top1_sum" to top1)
        val out = sums.mapValues { FloatTensor(floatArrayOf(it.value), listOf(1)) }
        return if (program == "evaluate") out else out + ("grad.e" to FloatTensor(grad, listOf(grad.size)))
    }
}
