package io.pflmobile.core.engines

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.GRADIENT
import io.pflmobile.core.errors.EngineMismatchException
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.tensors.toDoubles
import kotlin.math.abs

/**
 * The golden calls of a bundle on one engine.
 *
 * @property engine its name
 * @property lossRelErr largest relative error of a loss
 * @property gradMaxRelErr largest relative error of a gradient
 * @property ok whether every output of every program is within the tolerance
 * @property tolerance the largest allowed relative error
 * @property worst the output that is furthest off, as `program.output`
 * @property worstRelErr its relative error; infinite when a value is not finite
 */
public data class GoldenReport(
    val engine: String,
    val lossRelErr: Double,
    val gradMaxRelErr: Double,
    val ok: Boolean,
    val tolerance: Double,
    val worst: String,
    val worstRelErr: Double,
) {
    /**
     * Refuses to go on with an engine that disagrees.
     *
     * @throws EngineMismatchException it does
     */
    public fun require() {
        if (!ok) {
            throw EngineMismatchException(
                "engine '$engine' computes other numbers than PyTorch did at the export: output '$worst' is off by $worstRelErr " +
                    "(allowed $tolerance)",
                "do not train with this engine here; run `pfl verify` for every engine, and export again with the version of the " +
                    "runtime that the device has",
            )
        }
    }
}

/**
 * Runs the golden calls of a bundle and compares every output with what PyTorch gave. A device does so before it first trains.
 *
 * @param session the programs of [bundle] on an engine
 * @param tolerance largest allowed difference of a tensor, relative to its largest entry; what the bundle says of programs in mixed
 *   precision, unless it is given
 * @throws io.pflmobile.core.errors.EngineException the engine cannot run a program at all
 */
public fun goldenCheck(
    bundle: Bundle,
    session: Session,
    tolerance: Double =
        bundle.manifest.engines[session.name]
            ?.precision
            ?.tolerance ?: TOLERANCE,
): GoldenReport {
    val largest = ErrorKind.entries.associateWithTo(HashMap()) { 0.0 }
    var worst = ""
    var worstError = -1.0
    for ((program, case) in bundle.golden()) {
        val got = session.run(program, case.inputs)
        for (output in outputErrors(got, case.outputs, case.inputs["weight"], tolerance)) {
            largest[output.kind] = maxOf(largest.getValue(output.kind), output.error)
            if (output.error > worstError) {
                worst = "$program.${output.name}"
                worstError = output.error
            }
        }
    }
    val error = maxOf(worstError, 0.0)
    return GoldenReport(
        session.name,
        largest.getValue(ErrorKind.LOSS),
        largest.getValue(ErrorKind.GRADIENT),
        error <= tolerance,
        tolerance,
        worst,
        error,
    )
}

/**
 * Engines differ from PyTorch by the order of float32 sums, which stays below 1e-5 on the models of the test suite; a wrong gradient is
 * off by 1e-2 or more.
 */
internal const val TOLERANCE: Double = 2e-4

internal enum class ErrorKind { GRADIENT, LOSS, OTHER }

/** How far one output is from what was expected, see [relativeError]. */
internal data class OutputError(
    val name: String,
    val error: Double,
    val kind: ErrorKind,
)

private val HITS = Regex("top[0-9]+_sum")

/** Largest difference over the largest expected entry (or [floor]); infinite when a value is not finite. */
internal fun relativeError(
    got: DoubleArray,
    want: DoubleArray,
    floor: Double = 0.0,
): Double {
    if (!got.all(Double::isFinite) || !want.all(Double::isFinite)) return Double.POSITIVE_INFINITY
    val scale = maxOf(want.largest(), floor)
    val difference = largestDifference(got, want)
    return if (scale > 0) {
        difference / scale
    } else if (difference > 0) {
        Double.POSITIVE_INFINITY
    } else {
        0.0
    }
}

/**
 * The error of every output of one call of a program.
 *
 * @param weight the weights of the batch, where there are any
 * @param tolerance from which error on a count of hits is looked at again: one near-tie may fall to the other side of float32 rounding,
 *   which is no error
 */
internal fun outputErrors(
    got: Map<String, Tensor>,
    want: Map<String, Tensor>,
    weight: Tensor?,
    tolerance: Double,
): List<OutputError> {
    val largest = want.filterKeys { it.startsWith(GRADIENT) }.values.maxOfOrNull { it.toDoubles().largest() } ?: 0.0
    return want.map { (name, expected) ->
        val found = got.getValue(name).toDoubles()
        val wanted = expected.toDoubles()
        if (name == "top_ids") {
            val wrong = idsDiffer(found, wanted, want["top_probs"]?.toDoubles(), expected.shape.lastOrNull() ?: 1, tolerance)
            return@map OutputError(name, if (wrong) 1.0 else 0.0, ErrorKind.OTHER)
        }
        val gradient = name.startsWith(GRADIENT)
        // A gradient that is tiny beside the others is rounding noise of the sums.
        var error = relativeError(found, wanted, if (gradient) 1e-4 * largest else 1e-6)
        if (weight != null && HITS.matches(name) && error > tolerance && error.isFinite()) {
            val one = maxOf(weight.toDoubles().maxOrNull() ?: 0.0, 0.0)
            if (largestDifference(found, wanted) <= 1.0001 * one) error = 0.0
        }
        val kind =
            if (gradient) {
                ErrorKind.GRADIENT
            } else if (name == "loss_sum") {
                ErrorKind.LOSS
            } else {
                ErrorKind.OTHER
            }
        OutputError(name, error, kind)
    }
}

/**
 * Whether an id differs that equal probabilities do not explain. Neighbours of equal probability may change places. Who is next after
 * the last is not known: an id there may differ where there could be one as likely, and in one row.
 *
 * @param width ids of a row
 */
private fun idsDiffer(
    got: DoubleArray,
    want: DoubleArray,
    probs: DoubleArray?,
    width: Int,
    tolerance: Double,
): Boolean {
    val other = want.indices.filter { got[it] != want[it] }
    if (probs == null || probs.size != want.size) return other.isNotEmpty()
    val allowed = tolerance * maxOf(probs.maxOrNull() ?: 0.0, 0.0)

    fun near(
        at: Int,
        next: Int,
    ) = at / width == next / width && abs(probs[at] - probs[next]) <= allowed
    val wrong = other.filterNot { (it > 0 && near(it, it - 1)) || (it + 1 < want.size && near(it, it + 1)) }
    val last =
        wrong.filter {
            val row = it / width * width
            it % width == width - 1 && 1.0 - (row until row + width).sumOf { at -> probs[at] } + allowed >= probs[it]
        }
    return (if (last.size == 1) wrong - last.single() else wrong).isNotEmpty()
}

private fun DoubleArray.largest(): Double = maxOfOrNull { abs(it) } ?: 0.0

private fun largestDifference(
    got: DoubleArray,
    want: DoubleArray,
): Double = want.indices.maxOfOrNull { abs(got[it] - want[it]) } ?: 0.0
