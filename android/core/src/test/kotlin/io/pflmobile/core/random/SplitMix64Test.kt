package io.pflmobile.core.random

import io.pflmobile.core.conformance.Vectors
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class SplitMix64Test {
    private val vectors = Vectors.read("random.json")

    @Test
    fun `outputs and permutations are Python's`() {
        for (generator in vectors.getValue("generators").jsonArray.map { it.jsonObject }) {
            val seed = Vectors.unsigned(generator.getValue("seed"))
            generator.getValue("splitmix64").jsonArray.forEachIndexed { index, want ->
                assertEquals(Vectors.unsigned(want), SplitMix64.output(seed, index.toLong()))
            }
            for (want in generator.getValue("permutations").jsonArray.map { it.jsonArray }) {
                assertEquals(want.map { it.jsonPrimitive.int }, SplitMix64.permutation(seed, want.size).toList())
            }
        }
    }

    @Test
    fun `uniform numbers fill the unit interval`() {
        val drawn = SplitMix64.uniform(7, 1000)
        assertTrue(drawn.all { it >= 0 && it < 1 })
        assertTrue(drawn.average() in 0.45..0.55)
    }
}
