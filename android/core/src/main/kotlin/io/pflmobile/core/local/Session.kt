package io.pflmobile.core.local

import io.pflmobile.core.engines.Session
import io.pflmobile.core.errors.EngineException
import io.pflmobile.core.errors.NoExamplesException
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.rows.Rows
import io.pflmobile.core.rows.paddedBatches
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.RawTensor
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.text.BlockList

/** Turns texts into rows. */
public interface Encoder {
    /** The user's words in slot order. */
    public val words: List<String>

    /** The id of what is not in the vocabulary. */
    public val unknown: Int

    /** This encoder with these words in the slots. */
    public fun withWords(words: List<String>): Encoder

    /** This encoder for a user who wants these words forgotten: they get no slot and read as unknown. */
    public fun withBlocked(blocked: BlockList): Encoder

    /** Slot words for a user who wrote these texts; words that have a slot keep it. */
    public fun chooseWords(
        texts: List<String>,
        minCount: Long,
    ): List<String>

    /** Rows of the texts, labels outside the vocabulary with weight 0 if [dropUnknown]. */
    public fun encode(
        texts: List<String>,
        dropUnknown: Boolean,
    ): Rows
}

/**
 * The two programs of a session, with batches cut to their inputs.
 *
 * @param tensors names of all device tensors
 * @throws EngineException the bundle lacks a program
 */
internal class Programs(
    private val session: Session,
    tensors: Set<String>,
) {
    private val inputs =
        PROGRAMS.associateWith { name ->
            session.programs[name]?.inputs ?: throw EngineException("the bundle has no program '$name'", mend = "export it again")
        }

    /** What a batch is made of, by name. */
    private val batch =
        inputs.values
            .flatten()
            .filter { it.name !in tensors }
            .associateBy { it.name }

    /** Rows of a batch. */
    val batchSize: Int =
        (batch["weight"] ?: throw EngineException("the bundle's programs take no 'weight'", mend = "export it again")).shape.first()

    /**
     * Refuse rows that do not fit the programs.
     *
     * @throws TensorMismatchException an input is missing or has another shape or dtype
     */
    fun check(rows: Rows) {
        for ((name, input) in batch) {
            val value = rows[name] ?: throw TensorMismatchException("the rows have no '$name'", mend = "give ${batch.keys.sorted()}")
            if (value.dtype != input.dtype) {
                throw TensorMismatchException(
                    "rows of '$name' are ${value.dtype.wireName}, the program takes ${input.dtype.wireName}",
                    mend = "convert them",
                )
            }
            if (value.shape.drop(1) != input.shape.drop(1)) {
                throw TensorMismatchException(
                    "rows of '$name' have shape ${value.shape.drop(1)}, the program takes ${input.shape.drop(1)}",
                    mend = "encode the examples for this bundle",
                )
            }
        }
    }

    /** Outputs of `gradients` at [point], other tensors being those of [tensors]. */
    fun gradients(
        batch: Rows,
        point: TensorSet,
        tensors: TensorSet,
    ): Map<String, Tensor> = run("gradients", batch, point, tensors)

    /**
     * Metrics over all rows: `loss` and every `<metric>_sum` output, each divided by the weight.
     *
     * @throws NoExamplesException the rows have no weight
     */
    fun evaluate(
        rows: Rows,
        tensors: TensorSet,
    ): Map<String, Double> = sums(rows, tensors).means()

    /**
     * What [evaluate] divides. Sums are added in float64 in batch order.
     *
     * @throws NoExamplesException the rows have no weight
     */
    fun sums(
        rows: Rows,
        tensors: TensorSet,
    ): Sums {
        val totals = LinkedHashMap<String, Double>()
        for (batch in paddedBatches(rows, batchSize)) {
            for ((name, value) in run("evaluate", batch, emptyMap(), tensors)) {
                if (name.endsWith(SUM)) totals.merge(name, first(value), Double::plus)
            }
        }
        val weight = totals.remove("weight$SUM") ?: 0.0
        if (!(weight > 0)) throw NoExamplesException("the held-out examples have no weight", mend = "hold out more examples")
        return Sums(totals.mapKeys { it.key.removeSuffix(SUM) }, weight)
    }

    private fun run(
        program: String,
        rows: Rows,
        point: TensorSet,
        tensors: TensorSet,
    ): Map<String, Tensor> {
        val arguments = LinkedHashMap<String, Tensor>()
        for (input in inputs.getValue(program)) {
            arguments[input.name] =
                if (input.name in batch) rows.getValue(input.name) else point[input.name] ?: tensors.getValue(input.name)
        }
        return session.run(program, arguments)
    }

    private companion object {
        val PROGRAMS = listOf("gradients", "evaluate")
        const val SUM = "_sum"
    }
}

/** Sums of metrics over labels that count, and the weight of these. */
internal class Sums(
    val totals: Map<String, Double>,
    val weight: Double,
) {
    fun means(): Map<String, Double> = totals.mapValues { it.value / weight }
}

/**
 * One number of a program's outputs.
 *
 * @throws NonFiniteException it is NaN or infinite
 */
internal fun scalar(
    outputs: Map<String, Tensor>,
    name: String,
): Double {
    val value = first(outputs[name] ?: throw EngineException("the program gives no '$name'", mend = "export the bundle again"))
    if (!value.isFinite()) {
        throw NonFiniteException(
            "$name is $value",
            mend = "lower the learning rate or set clip; the state before training is kept",
        )
    }
    return value
}

private fun first(tensor: Tensor): Double =
    when (tensor) {
        is FloatTensor -> tensor.values[0].toDouble()

        is LongTensor -> tensor.values[0].toDouble()

        is RawTensor -> throw EngineException(
            "a program gives ${tensor.signature} where a number is expected",
            mend = "export the bundle again",
        )
    }
