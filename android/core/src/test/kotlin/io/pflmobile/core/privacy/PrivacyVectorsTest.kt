package io.pflmobile.core.privacy

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.text
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.double
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlin.math.abs
import kotlin.math.sqrt
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class PrivacyVectorsTest {
    private val vectors = Vectors.read("privacy.json")

    private fun JsonObject.number(name: String) = getValue(name).jsonPrimitive.double

    private fun cases(element: JsonElement) = element.jsonArray.map { it.jsonObject }

    private fun close(
        want: JsonElement,
        found: Double,
        share: Double,
        what: String,
    ) {
        val wanted = want.jsonPrimitive.double
        assertTrue(found == wanted || abs(found - wanted) <= share * abs(wanted), "$what: $found instead of $wanted")
    }

    @Test
    fun `random bits become the values that Python makes of them`() {
        for (case in cases(vectors.getValue("noise"))) {
            val words =
                case
                    .getValue("words")
                    .jsonArray
                    .map { text(it).toULong(16).toLong() }
                    .toLongArray()
            val found = summedBoxMuller(words, case.getValue("half").jsonPrimitive.int)
            val wanted = case.getValue("values").jsonArray
            assertEquals(wanted.size, found.size)
            wanted.zip(found.toList()).forEach { (want, value) -> close(want, value, 1e-9, "$case") }
        }
    }

    @Test
    fun `an update is clipped, and the noise is relative to the bound`() {
        for (case in cases(vectors.getValue("updates"))) {
            val ramp = Noise { size -> DoubleArray(size) { it * 0.5 * if (it % 2 == 0) -1 else 1 } }
            val found = LocalNoise.privateUpdate(floats(case, "flat"), case.number("clip_norm"), case.number("noise_multiplier"), ramp)
            assertEquals(floats(case, "sent").toList(), found.toList().map { it + 0f }, "$case")
        }
    }

    private fun floats(
        case: JsonObject,
        name: String,
    ) = text(case.getValue(name)).split(' ').map { Vectors.float(it) + 0f }.toFloatArray()

    @Test
    fun `epsilon is that of Python`() {
        val epsilon = vectors.getValue("epsilon").jsonObject
        for (case in cases(epsilon.getValue("release"))) {
            close(case.getValue("epsilon"), LocalNoise.releaseEpsilon(case.number("mu"), case.number("delta")), CLOSE, "$case")
        }
        for (case in cases(epsilon.getValue("sampled"))) {
            val found = LocalNoise.sampledEpsilon(case.number("mu"), case.number("rate"), case.number("delta"))
            close(case.getValue("epsilon"), found, CLOSE, "$case")
        }
        for (case in cases(epsilon.getValue("local"))) {
            close(case.getValue("epsilon"), LocalNoise.localEpsilon(case.number("inverse_squares"), case.number("delta")), CLOSE, "$case")
        }
    }

    @Test
    fun `nothing sent costs nothing, and noise that is none everything`() {
        assertEquals(0.0, LocalNoise.localEpsilon(0.0, 1e-6))
        assertEquals(Double.POSITIVE_INFINITY, LocalNoise.releaseEpsilon(Double.POSITIVE_INFINITY, 1e-6))
    }

    @Test
    fun `secure noise is standard, and never the same`() {
        val values = SecureNoise().normal(SIZE)
        val mean = values.average()
        val deviation = sqrt(values.sumOf { (it - mean) * (it - mean) } / SIZE)
        // Six standard errors: one run in 10^9 fails.
        assertTrue(abs(mean) < 6 / sqrt(SIZE.toDouble()), "$mean")
        assertTrue(abs(deviation - 1) < 6 / sqrt(2.0 * SIZE), "$deviation")
        assertEquals(SIZE, values.toSet().size)
        assertEquals(5, SecureNoise().normal(5).size)
        assertEquals(0, SecureNoise().normal(0).size)
        assertTrue(SecureNoise().normal(5).toList() != SecureNoise().normal(5).toList())
    }

    private companion object {
        const val CLOSE = 1e-8
        const val SIZE = 40_000
    }
}
