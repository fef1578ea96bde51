package io.pflmobile.core.privacy

import io.pflmobile.core.errors.NonFiniteException
import kotlin.math.PI
import kotlin.math.exp
import kotlin.math.expm1
import kotlin.math.ln
import kotlin.math.ln1p
import kotlin.math.sqrt

/** Noise that a device adds to its own update, so that it need not trust the aggregator, and what that guarantees. */
internal object LocalNoise {
    private const val EXACT = 1e-12

    // Beyond it exp would overflow; there log(1 + q (e^x - 1)) is x + log(q).
    private const val HUGE = 500.0

    /**
     * An update clipped to C with N(0, (z C)^2) on every value, float32 `[P]`.
     *
     * @param flat all tensors of the update together, float32 `[P]`
     * @param clipNorm C
     * @param noiseMultiplier z; 0 only clips
     * @param source [SecureNoise] on a real device
     * @throws NonFiniteException a value is NaN or infinite
     */
    fun privateUpdate(
        flat: FloatArray,
        clipNorm: Double,
        noiseMultiplier: Double,
        source: Noise,
    ): FloatArray {
        val clipped = Clipping.clipped(flat, clipNorm)
        if (noiseMultiplier != 0.0) {
            val scale = noiseMultiplier * clipNorm
            source.normal(clipped.size).forEachIndexed { i, drawn -> clipped[i] += scale * drawn }
        }
        return FloatArray(clipped.size) { clipped[it].toFloat() }
    }

    /**
     * Exact epsilon against those who receive a device's updates (Balle and Wang 2018, Theorem 8). As one device's data replaced by any
     * other moves a clipped update by 2 C, updates with z1, z2, ... are together one Gaussian release with mu = 2 (sum of z^-2)^(1/2).
     *
     * @param inverseSquares sum over the updates of z^-2; 0 where nothing was sent
     * @param delta between 0 and 1
     */
    fun localEpsilon(
        inverseSquares: Double,
        delta: Double,
    ): Double = releaseEpsilon(2 * sqrt(inverseSquares), delta)

    /**
     * Exact epsilon of one Gaussian release (Balle and Wang 2018, Theorem 8).
     *
     * @param mu how far one device moves it, in standard deviations of the noise
     * @param delta between 0 and 1
     */
    fun releaseEpsilon(
        mu: Double,
        delta: Double,
    ): Double {
        if (mu == 0.0 || mu.isInfinite()) return mu
        val rho = mu * mu / 2
        if (gaussianDelta(0.0, mu) <= delta) return 0.0
        var low = 0.0
        var high = rho + 2 * sqrt(rho * ln(1 / delta)) // by zCDP (Bun and Steinke 2016)
        while (true) {
            val middle = (low + high) / 2
            if (high - low <= EXACT * high || !(low < middle && middle < high)) return high
            if (gaussianDelta(middle, mu) <= delta) high = middle else low = middle
        }
    }

    /**
     * Exact epsilon of one release that a device is in by a secret coin, when it is then left out; no number of rounds costs less (Balle,
     * Barthe, Gaboardi 2018, Theorem 8).
     *
     * @param mu as in [releaseEpsilon]
     * @param rate q, the probability of the coin, above 0
     * @param delta between 0 and 1
     */
    fun sampledEpsilon(
        mu: Double,
        rate: Double,
        delta: Double,
    ): Double {
        if (rate >= 1) return releaseEpsilon(mu, delta)
        if (delta >= rate) return 0.0
        val whole = releaseEpsilon(mu, delta / rate)
        return if (whole < HUGE) ln1p(rate * expm1(whole)) else whole + ln(rate)
    }

    /** Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu), which decreases with epsilon. */
    private fun gaussianDelta(
        epsilon: Double,
        mu: Double,
    ): Double {
        val a = mu / 2 - epsilon / mu
        val b = mu / 2 + epsilon / mu
        val density = exp(-a * a / 2) / sqrt(2 * PI) // e^epsilon times that at b, without overflow
        return NormalTail.above(-a) - density * NormalTail.mills(b)
    }
}
