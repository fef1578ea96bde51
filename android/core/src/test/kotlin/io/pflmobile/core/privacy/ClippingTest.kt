package io.pflmobile.core.privacy

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.NonFiniteException
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.double
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlin.io.path.readText
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class ClippingTest {
    @Test
    fun `updates are clipped to the same bits`() {
        for (case in Json.parseToJsonElement(Vectors.folder.resolve("clip.json").readText()).jsonArray.map { it.jsonObject }) {
            fun values(field: String) = text(case.getValue(field)).split(' ').map { Vectors.float(it) }
            val flat = values("values").toFloatArray()
            val clipNorm = case.getValue("clip_norm").jsonPrimitive.double
            val norm = Clipping.norm(flat)
            assertEquals(Vectors.double(text(case.getValue("norm"))), norm, absoluteTolerance = 1e-12 * norm)
            assertEquals(case.getValue("clipped").jsonPrimitive.boolean, Clipping.factor(norm, clipNorm) < 1)
            val sent = Clipping.clipped(flat, clipNorm).map { it.toFloat().toRawBits() }
            assertEquals(values("sent").map { it.toRawBits() }, sent)
        }
    }

    @Test
    fun `what has no norm is refused`() {
        assertFailsWith<NonFiniteException> { Clipping.clipped(floatArrayOf(Float.NaN), 1.0) }
        assertFailsWith<ConfigException> { Clipping.clipped(floatArrayOf(1f), 0.0) }
    }
}
