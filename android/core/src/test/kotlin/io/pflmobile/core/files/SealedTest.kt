package io.pflmobile.core.files

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.errors.NewerFileException
import io.pflmobile.core.errors.TensorFileException
import io.pflmobile.core.tensors.FloatTensor
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import java.nio.ByteBuffer
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class SealedTest {
    private val tensors = mapOf("a" to FloatTensor(floatArrayOf(1f, 2f), listOf(2)))

    private fun unseal(
        head: String,
        form: String? = "f",
        version: Long = 1,
    ) = Sealed.unseal(ByteBuffer.wrap(Sealed.seal(tensors, head, form)), "f", version, "it").second

    @Test
    fun `digests are Python's`() {
        val case = Vectors.read("model.json").getValue("digest").jsonObject
        val named = case.getValue("tensors").jsonObject.mapValues { Vectors.tensor(it.value) }
        val text = case.getValue("text").jsonPrimitive.content
        assertEquals(case.getValue("sha256").jsonPrimitive.content, Sealed.digest(named, text))
    }

    @Test
    fun `a head comes back`() {
        assertEquals("\"x\"", unseal("{\"schema_version\": 1, \"a\": \"x\"}")["a"].toString())
        assertEquals("NaN", unseal("{\"a\": NaN}")["a"].toString())
    }

    @Test
    fun `other formats, damaged heads and newer files are told apart`() {
        assertFailsWith<TensorFileException> { unseal("{}", form = "g") }
        assertFailsWith<TensorFileException> { unseal("{}", form = null) }
        val damaged =
            listOf(
                "",
                "[]",
                "{\"schema_version\": true}",
                "{\"schema_version\": 1.0}",
                "{\"schema_version\": \"1\"}",
                "{\"schema_version\": null}",
            )
        for (head in damaged) {
            assertEquals("TensorFileError", assertFailsWith<TensorFileException>(head) { unseal(head) }.code)
        }
        assertFailsWith<NewerFileException> { unseal("{\"schema_version\": 2}") }
        assertFailsWith<NewerFileException> { unseal("{\"schema_version\": 123456789012345678901234567890}") }
    }

    @Test
    fun `every changed byte is noticed`() {
        val data = Sealed.seal(tensors, "{\"schema_version\": 1}", "f")
        for (at in data.indices) {
            val changed = data.copyOf().also { it[at] = (it[at] + 1).toByte() }
            assertFailsWith<TensorFileException>("byte $at") { Sealed.unseal(ByteBuffer.wrap(changed), "f", 1, "it") }
        }
    }
}
