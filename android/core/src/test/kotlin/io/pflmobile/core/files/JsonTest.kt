package io.pflmobile.core.files

import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class JsonTest {
    @Test
    fun `values are what they say`() {
        val found = parseJson(" {\"a\": [1, -0, 2.5, 1e3, true, null], \"\\u00e9\\n\": \"\\ud83d\\ude00\"} ").jsonObject
        assertEquals(listOf("a", "é\n"), found.keys.toList())
        assertEquals(listOf("1", "0", "2.5", "1000.0", "true", "null"), found.getValue("a").jsonArray.map { it.toString() })
        assertEquals(JsonPrimitive("😀"), found["é\n"])
    }

    @ParameterizedTest
    @ValueSource(
        strings = [
            "", "{", "[1,]", "{\"a\":1,}", "{\"a\" 1}", "{a:1}", "[1 2]", "01", "1.", ".5", "-", "+1", "1e", "tru", "True", "nul", "'a'",
            "\"a", "\"\u0001\"", "\"\\x\"", "\"\\u12g4\"", "\"\\u１２３４\"", "{\"a\":1,\"a\":2}", "{\"a\":1,\"\\u0061\":2}", "NaN", "Infinity",
            "-Infinity", "1e999", "12345678901234567890123456789012345678901", "1 1", "\u00a01", "[1]\u0000", "//a\n1",
        ],
    )
    fun `what is no JSON is refused`(text: String) {
        assertFailsWith<IllegalArgumentException> { parseJson(text) }
    }

    @Test
    fun `what Python writes for other numbers is read where it is allowed`() {
        val found = parseJson("[NaN, Infinity, -Infinity, 1e999]", finite = false).jsonArray
        assertEquals(listOf("NaN", "Infinity", "-Infinity", "Infinity"), found.map { it.toString() })
    }

    @Test
    fun `depth and size have bounds`() {
        fun nested(depth: Int) = "[".repeat(depth) + "]".repeat(depth)
        parseJson(nested(MOST_DEPTH))
        assertFailsWith<IllegalArgumentException> { parseJson(nested(MOST_DEPTH + 1)) }
        assertFailsWith<IllegalArgumentException> { parseJson(nested(100_000)) }
        assertFailsWith<IllegalArgumentException> { parseJson("[1,2,3,4]", values = 3) }
    }

    @Test
    fun `text may begin with a mark of its encoding`() {
        val text = "[\"ü\"]"
        val want = parseJson(text)
        assertEquals(want, parseJson(text.toByteArray()))
        for (charset in listOf(Charsets.UTF_8, Charsets.UTF_16LE, Charsets.UTF_16BE, Charsets.UTF_32LE, Charsets.UTF_32BE)) {
            assertEquals(want, parseJson("\ufeff$text".toByteArray(charset)), charset.name())
        }
        assertFailsWith<IllegalArgumentException> { parseJson(byteArrayOf('"'.code.toByte(), -1, '"'.code.toByte())) }
        // A half of a surrogate pair in UTF-8.
        assertFailsWith<IllegalArgumentException> { parseJson(byteArrayOf(34, 0xed.toByte(), 0xa0.toByte(), 0x80.toByte(), 34)) }
    }
}
