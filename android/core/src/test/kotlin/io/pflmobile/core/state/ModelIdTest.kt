package io.pflmobile.core.state

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.table
import io.pflmobile.core.conformance.tensors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.files.Sealed
import kotlinx.serialization.json.jsonObject
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNotEquals

class ModelIdTest {
    private val vectors = Vectors.read("model.json")
    private val table = table(vectors.getValue("tensors"))

    @Test
    fun `the fingerprint is Python's`() {
        assertEquals(text(vectors.getValue("fingerprint")), ModelId.of("any", "1", table).fingerprint)
        assertEquals(ModelId.of("any", "1", table), ModelId.of("any", "1", table.reversed()))
    }

    @Test
    fun `other frozen weights are another model`() {
        assertNotEquals(ModelId.of("any", "1", table), ModelId.of("any", "1", table, "00".repeat(32)))
    }

    @Test
    fun `digests of tensors are Python's`() {
        val digest = vectors.getValue("digest").jsonObject
        assertEquals(text(digest.getValue("sha256")), Sealed.digest(tensors(digest.getValue("tensors")), text(digest.getValue("text"))))
    }
}
