package io.pflmobile.core.protocol

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.errors.ProtocolException
import io.pflmobile.core.files.parseJson
import kotlinx.serialization.KSerializer
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

class ProtocolTest {
    private val vectors = Vectors.read("protocol.json")
    private val forms: Map<String, KSerializer<*>> =
        mapOf(
            "FederationInfo" to FederationInfo.serializer(),
            "Challenge" to Challenge.serializer(),
            "Enrolment" to Enrolment.serializer(),
            "Enrolled" to Enrolled.serializer(),
            "CheckIn" to CheckIn.serializer(),
            "CheckedIn" to CheckedIn.serializer(),
            "LatestVersion" to LatestVersion.serializer(),
            "UpdateHead" to UpdateHead.serializer(),
            "UploadState" to UploadState.serializer(),
            "Decline" to Decline.serializer(),
            "EvaluationReport" to EvaluationReport.serializer(),
            "ProblemBody" to ProblemBody.serializer(),
        )

    /** The same JSON with numbers as this parser has them: Python writes 1700000600.0, Kotlin 1.7000006E9. */
    private fun plain(element: JsonElement) = parseJson(element.toString())

    private fun bodies(kind: String) = vectors.getValue(kind).jsonObject.mapValues { (_, several) -> several.jsonArray.toList() }

    private fun <T> checkBody(
        form: KSerializer<T>,
        given: JsonElement,
        name: String,
    ) {
        val body = Bodies.decode(form, given.toString().encodeToByteArray(), name)
        val written = Bodies.encode(form, body)
        assertEquals(body, Bodies.decode(form, written, name))
        val again = parseJson(written) as JsonObject
        val told = plain(given) as JsonObject
        for ((field, value) in told) {
            val found = again.getValue(field)
            if (value is JsonObject && found is JsonObject) {
                assertTrue(found.entries.containsAll(value.entries), "$name.$field: $found")
            } else {
                assertEquals(value, found, "$name.$field")
            }
        }
    }

    @Test
    fun `bodies are read and written alike`() {
        assertEquals(bodies("valid").keys, forms.keys)
        for ((name, several) in bodies("valid")) several.forEach { checkBody(forms.getValue(name), it, name) }
    }

    @Test
    fun `bad bodies are refused`() {
        for ((name, several) in bodies("refused")) {
            for (body in several) {
                assertFailsWith<ProtocolException>(
                    "$name $body",
                ) { Bodies.decode(forms.getValue(name), body.toString().encodeToByteArray(), name) }
            }
        }
        assertFailsWith<IllegalArgumentException> { Bodies.decode(Decline.serializer(), "{\"reason\"".encodeToByteArray(), "x") }
    }

    @Test
    fun `a problem may say more than is known, and what is no problem is none`() {
        val known = bodies("valid").getValue("ProblemBody").first().jsonObject
        val more = JsonObject(known + ("trace" to known.getValue("code")))
        assertEquals("round-closed", Bodies.fields(more.toString().encodeToByteArray())["code"])
        assertEquals(emptyMap(), Bodies.fields("<html>".encodeToByteArray()))
        assertEquals(emptyMap(), Bodies.fields("[]".encodeToByteArray()))
    }

    @Test
    fun `answers are judged as written`() {
        for (case in vectors.getValue("answers").jsonArray.map { it.jsonObject }) {
            val headers = case.getValue("headers").jsonObject.mapKeys { it.key.lowercase() }
            val verdict = judge(case.getValue("status").jsonPrimitive.int) { headers[it.lowercase()]?.let(::text) }
            assertEquals(text(case.getValue("is")), verdict.answer.wireName, case.toString())
            assertEquals(text(case.getValue("then")), verdict.then.wireName, case.toString())
        }
    }
}
