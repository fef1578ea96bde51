package io.pflmobile.core.privacy

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.SecureRandom
import kotlin.math.PI
import kotlin.math.ln
import kotlin.math.sqrt

/** A source of standard Gaussian values. */
internal fun interface Noise {
    /** Independent N(0, 1) values. */
    fun normal(size: Int): DoubleArray
}

/**
 * N(0, 1) values that nobody can predict or repeat: their bits are those of the platform's secure generator.
 *
 * Floating-point numbers have gaps, and which values a textbook sampler can give depends on what they are added to (Mironov 2012; Jin et
 * al. 2022). So each value is the sum of four independent Gaussians over 2, of eight uniform numbers with 53 random bits each (Holohan
 * and Braghin 2021). This is a defence, not a proof: the guarantees elsewhere are those of real numbers.
 */
internal class SecureNoise(
    private val random: SecureRandom = SecureRandom(),
) : Noise {
    override fun normal(size: Int): DoubleArray {
        val out = DoubleArray(size)
        val bytes = ByteArray(Long.SIZE_BYTES * 2 * SUMMANDS * HALF)
        val words = LongArray(bytes.size / Long.SIZE_BYTES)
        for (start in 0 until size step 2 * HALF) {
            random.nextBytes(bytes)
            ByteBuffer
                .wrap(bytes)
                .order(ByteOrder.LITTLE_ENDIAN)
                .asLongBuffer()
                .get(words)
            val values = summedBoxMuller(words, HALF)
            values.copyInto(out, start, 0, minOf(values.size, size - start))
        }
        bytes.fill(0)
        words.fill(0)
        return out
    }

    private companion object {
        const val HALF = 1 shl 9
    }
}

/** Gaussians that are added up for one value. */
private const val SUMMANDS = 4
private const val FRACTION_BITS = 53
private const val UNIT = 1.0 / (1L shl FRACTION_BITS)
private val SINE = DoubleArray(8).also { terms -> fillSeries(terms, 1) }
private val COSINE = DoubleArray(9).also { terms -> fillSeries(terms, 0) }

/** (-1)^k / (2 k + first)! for each k. */
private fun fillSeries(
    terms: DoubleArray,
    first: Int,
) {
    for (k in terms.indices) {
        var factorial = 1.0
        for (i in 2..2 * k + first) factorial *= i
        terms[k] = (if (k % 2 == 0) 1.0 else -1.0) / factorial
    }
}

/**
 * Words of 64 random bits to N(0, 1) values.
 *
 * Box and Muller (1958): r cos(a) and r sin(a) are independent and Gaussian. The two of a pair go to different values, so that every
 * value is a sum over four independent pairs. The angle is uniform in one quadrant, and two further bits are the signs.
 *
 * @param words `[2, 4, half]`: radii, then angles
 * @return `2 * half` values
 */
internal fun summedBoxMuller(
    words: LongArray,
    half: Int,
): DoubleArray {
    val values = DoubleArray(2 * half)
    val angles = SUMMANDS * half
    for (summand in 0 until SUMMANDS) {
        for (i in 0 until half) {
            val at = summand * half + i
            val bits = words[angles + at]
            // In (0, 1], so that the logarithm is finite; r / sqrt(2).
            val radius = sqrt(-ln(((words[at] ushr Long.SIZE_BITS - FRACTION_BITS) + 1.0) * UNIT))
            // sqrt(2) times cosine and sine by the series around pi / 4, in the same time for any angle.
            val angle = (bits ushr Long.SIZE_BITS - FRACTION_BITS) * (PI / 2 * UNIT) - PI / 4
            val square = angle * angle
            val odd = polynomial(square, SINE) * angle
            val even = polynomial(square, COSINE)
            values[i] += signed((even - odd) * radius, bits and 1)
            values[half + i] += signed((even + odd) * radius, bits ushr 1 and 1)
        }
    }
    for (i in values.indices) values[i] = values[i] / sqrt(SUMMANDS.toDouble())
    return values
}

private fun signed(
    value: Double,
    bit: Long,
) = Double.fromBits(value.toRawBits() xor (bit shl Long.SIZE_BITS - 1))

private fun polynomial(
    x: Double,
    coefficients: DoubleArray,
): Double {
    var sum = coefficients.last() * x
    for (k in coefficients.size - 2 downTo 1) sum = (sum + coefficients[k]) * x
    return sum + coefficients[0]
}
