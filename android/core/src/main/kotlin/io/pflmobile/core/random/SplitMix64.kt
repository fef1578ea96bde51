package io.pflmobile.core.random

/**
 * The random numbers behind every shuffle, the same in every language: outputs of SplitMix64 (Steele, Lea and Flood 2014, "Fast
 * splittable pseudorandom number generators"). Output number i depends on the seed and i alone. Seeds and outputs are the bits of
 * unsigned 64-bit numbers.
 */
public object SplitMix64 {
    private const val GOLDEN = -0x61c8864680b583ebL // 0x9E3779B97F4A7C15
    private const val MIX1 = -0x40a7b892e31b1a47L // 0xBF58476D1CE4E5B9
    private const val MIX2 = -0x6b2fb644ecceee15L // 0x94D049BB133111EB
    private const val UNIT = 1.0 / (1L shl 53)

    /** SplitMix64's output function: a bijection of 64-bit numbers. */
    public fun mix(bits: Long): Long {
        var z = (bits xor (bits ushr 30)) * MIX1
        z = (z xor (z ushr 27)) * MIX2
        return z xor (z ushr 31)
    }

    /** Output number [index], from 0, of the generator started at [seed]. */
    public fun output(
        seed: Long,
        index: Long,
    ): Long = mix(seed + (index + 1) * GOLDEN)

    /** A seed of its own for each sequence of [keys], for instance (phase, epoch). */
    public fun derive(
        seed: Long,
        vararg keys: Long,
    ): Long = keys.fold(seed, ::output)

    /** A random order of 0 until [n]: the indexes sorted by their outputs, which all differ. */
    public fun permutation(
        seed: Long,
        n: Int,
    ): IntArray {
        // Signed comparison after the top bit is flipped is unsigned comparison.
        val keys = LongArray(n) { output(seed, it.toLong()) xor Long.MIN_VALUE }
        val sorted = keys.sortedArray()
        val order = IntArray(n)
        for (i in keys.indices) order[sorted.binarySearch(keys[i])] = i // each is there once, so nothing is boxed to be compared
        return order
    }

    /** [count] numbers in [0, 1): the upper 53 bits of each output / 2^53. */
    public fun uniform(
        seed: Long,
        count: Int,
    ): DoubleArray = DoubleArray(count) { (output(seed, it.toLong()) ushr 11) * UNIT }
}
