package io.pflmobile.core.privacy

import kotlin.math.PI
import kotlin.math.exp
import kotlin.math.expm1
import kotlin.math.sqrt

/** Tails of the normal distribution, which the JVM has no functions for; relative errors are below 1e-14. */
internal object NormalTail {
    /** P(N(0, 1) > [x]). */
    fun above(x: Double): Double {
        val z = x / SQRT2
        return if (z < 0) 1 - 0.5 * complement(-z) else 0.5 * complement(z)
    }

    /** P(N(0, 1) > [x]) over the density at x, for x >= 0; of large x a lower bound, exact to 1e-9. */
    fun mills(x: Double): Double {
        if (x < FAR) return sqrt(PI / 2) * scaledComplement(x / SQRT2)
        val y = 1 / (x * x)
        return (1 - y * (1 - 3 * y * (1 - 5 * y))) / x
    }

    /** erfc(z) for z >= 0. */
    private fun complement(z: Double): Double = scaledComplement(z) * exp(-z * z)

    /** exp(z^2) erfc(z) for z >= 0. */
    private fun scaledComplement(z: Double): Double = if (z < NEAR) exp(z * z) * (1 - series(z)) else trapezoids(z)

    /** erf(z), by its series times exp(-z^2). */
    private fun series(z: Double): Double {
        var term = z
        var sum = z
        var k = 1
        while (term > sum * 1e-18) {
            term *= 2 * z * z / (2 * k + 1)
            sum += term
            k++
        }
        return 2 / sqrt(PI) * exp(-z * z) * sum
    }

    /**
     * By the trapezoidal rule on `z / pi * integral of exp(-t^2) / (z^2 + t^2)`, whose error with steps of h is about exp(-(pi / h)^2),
     * less the residue of the pole where that lies inside (Chiarella and Reichel 1968).
     */
    private fun trapezoids(z: Double): Double {
        val square = z * z
        var sum = 1 / (2 * square)
        for (k in 1..TERMS) {
            val t = k * STEP
            sum += exp(-t * t) / (square + t * t)
        }
        val whole = 2 * STEP * z / PI * sum
        val pole = if (z < PI / STEP) 2 * exp(square) / expm1(2 * PI * z / STEP) else 0.0
        return whole - pole
    }

    private const val NEAR = 0.5
    private const val FAR = 25.0
    private const val STEP = 0.5
    private const val TERMS = 13
    private val SQRT2 = sqrt(2.0)
}
