package io.pflmobile.core.privacy

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.NonFiniteException
import kotlin.math.sqrt

/** Updates shortened to an L2 norm, as they leave a device. */
internal object Clipping {
    /**
     * Clipped norms stay this share below the limit: far more than all roundings of float32 and float64 together can add, far less
     * than anybody notices.
     */
    private const val MARGIN = 1.0 / (1 shl 20)

    /**
     * L2 norm of all values together, in float64: squares of float32 overflow at 1e19 and vanish at 1e-23.
     *
     * @throws NonFiniteException a value is NaN or infinite
     */
    fun norm(flat: FloatArray): Double {
        var total = 0.0
        for (x in flat) {
            val wide = x.toDouble()
            total += wide * wide
        }
        return sqrt(total).also { checkNorm(it) }
    }

    /**
     * min(1, C / norm), rounded down so that the clipped norm is never above C = [clipNorm].
     *
     * @throws NonFiniteException the norm is NaN or infinite
     * @throws ConfigException C is not a positive number
     */
    fun factor(
        norm: Double,
        clipNorm: Double,
    ): Double {
        if (!(clipNorm.isFinite() && clipNorm > 0)) {
            throw ConfigException("the clip norm is $clipNorm", mend = "give a positive number")
        }
        checkNorm(norm)
        val padded = norm * (1.0 + MARGIN)
        return if (padded > clipNorm) clipNorm / padded else 1.0
    }

    /**
     * An update clipped to C = [clipNorm], before any noise: float64 `[P]`.
     *
     * @throws NonFiniteException a value is NaN or infinite
     */
    fun clipped(
        flat: FloatArray,
        clipNorm: Double,
    ): DoubleArray {
        val factor = factor(norm(flat), clipNorm)
        return DoubleArray(flat.size) { flat[it].toDouble() * factor }
    }

    private fun checkNorm(norm: Double) {
        if (!norm.isFinite()) {
            throw NonFiniteException(
                "the norm of the update is NaN or infinite",
                mend = "do not send it: there is no clip factor for it",
            )
        }
    }
}
