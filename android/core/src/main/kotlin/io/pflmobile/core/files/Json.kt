package io.pflmobile.core.files

import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.math.BigInteger
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.charset.Charset
import java.nio.charset.CodingErrorAction

/** Bytes of a file of settings, notes or JSON, unless the reader says more. */
internal const val MOST_BYTES: Int = 64 shl 20

/** Lists and objects inside each other; every parser that may read the same JSON takes as many. */
internal const val MOST_DEPTH: Int = 100

/** Numbers, strings, lists and so on in one piece of JSON. */
internal const val MOST_VALUES: Int = 2_000_000

/**
 * The value of JSON text, as RFC 8259 has it. Two equal keys in one object are refused, since parsers differ in which of them they
 * take; so are numbers that no float64 holds. Integers become `Long` or `BigInteger`, other numbers `Double`.
 *
 * @param values numbers, strings, lists and so on in it, at most
 * @param finite refuse NaN and infinity, which Python writes and JSON does not have
 * @throws IllegalArgumentException it is no such JSON, or larger or deeper than allowed
 */
internal fun parseJson(
    text: String,
    values: Int = MOST_VALUES,
    finite: Boolean = true,
): JsonElement {
    require(text.length <= MOST_BYTES) { "it is longer than $MOST_BYTES bytes" }
    // An upper bound, as strings hold commas and brackets too; before anything is built.
    require(text.count { it == ',' || it == '[' || it == '{' || it == ':' } <= values) { "it has more than $values values" }
    return JsonReader(text, finite).whole()
}

/**
 * The same of UTF-8, or of what begins with the byte order mark of UTF-8, UTF-16 or UTF-32.
 *
 * @throws IllegalArgumentException as [parseJson]; or the bytes are no text
 */
internal fun parseJson(
    bytes: ByteArray,
    values: Int = MOST_VALUES,
    finite: Boolean = true,
): JsonElement {
    require(bytes.size <= MOST_BYTES) { "it is longer than $MOST_BYTES bytes" }
    return parseJson(decoded(bytes), values, finite)
}

/**
 * Bytes as text: UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one.
 *
 * @throws IllegalArgumentException they are none of these
 */
internal fun decoded(bytes: ByteArray): String {
    val (charset, mark) =
        when {
            bytes.startsWith(0xef, 0xbb, 0xbf) -> Charsets.UTF_8 to 3

            // UTF-32 begins as UTF-16 does.
            bytes.startsWith(0xff, 0xfe, 0, 0) -> Charsets.UTF_32LE to 4

            bytes.startsWith(0, 0, 0xfe, 0xff) -> Charsets.UTF_32BE to 4

            bytes.startsWith(0xff, 0xfe) -> Charsets.UTF_16LE to 2

            bytes.startsWith(0xfe, 0xff) -> Charsets.UTF_16BE to 2

            else -> Charsets.UTF_8 to 0
        }
    return try {
        strictly(charset, ByteBuffer.wrap(bytes, mark, bytes.size - mark))
    } catch (error: CharacterCodingException) {
        throw IllegalArgumentException("it is not $charset", error)
    }
}

/** Text without a replacement for what is no text. */
@Throws(CharacterCodingException::class)
internal fun strictly(
    charset: Charset,
    bytes: ByteBuffer,
): String =
    charset
        .newDecoder()
        .onMalformedInput(CodingErrorAction.REPORT)
        .onUnmappableCharacter(CodingErrorAction.REPORT)
        .decode(bytes)
        .toString()

private fun ByteArray.startsWith(vararg start: Int): Boolean = size >= start.size && start.indices.all { this[it] == start[it].toByte() }

private class JsonReader(
    private val text: String,
    private val finite: Boolean,
) {
    private var at = 0

    fun whole(): JsonElement {
        space()
        val value = value(0)
        space()
        if (at < text.length) wrong("more after its end")
        return value
    }

    private fun value(depth: Int): JsonElement =
        when (peek()) {
            '{' -> obj(deeper(depth))
            '[' -> list(deeper(depth))
            '"' -> JsonPrimitive(string())
            't' -> word("true", JsonPrimitive(true))
            'f' -> word("false", JsonPrimitive(false))
            'n' -> word("null", JsonNull)
            'N', 'I' -> constant("NaN", Double.NaN) ?: constant("Infinity", Double.POSITIVE_INFINITY) ?: wrong("no value")
            else -> constant("-Infinity", Double.NEGATIVE_INFINITY) ?: number()
        }

    /** What Python writes for numbers that JSON does not have. */
    private fun constant(
        name: String,
        value: Double,
    ): JsonPrimitive? {
        if (!text.startsWith(name, at)) return null
        if (finite) wrong("the number $name")
        return word(name, JsonPrimitive(value))
    }

    private fun deeper(depth: Int): Int = if (depth == MOST_DEPTH) wrong("nested deeper than $MOST_DEPTH") else depth + 1

    private fun obj(depth: Int): JsonObject {
        val found = LinkedHashMap<String, JsonElement>()
        at++
        space()
        if (take('}')) return JsonObject(found)
        do {
            space()
            if (peek() != '"') wrong("no key")
            val key = string()
            space()
            if (!take(':')) wrong("no ':' after a key")
            space()
            if (found.put(key, value(depth)) != null) wrong("a key that stands twice in one object")
            space()
        } while (take(','))
        if (!take('}')) wrong("an object without end")
        return JsonObject(found)
    }

    private fun list(depth: Int): JsonArray {
        val found = ArrayList<JsonElement>()
        at++
        space()
        if (take(']')) return JsonArray(found)
        do {
            space()
            found += value(depth)
            space()
        } while (take(','))
        if (!take(']')) wrong("a list without end")
        return JsonArray(found)
    }

    private fun string(): String {
        val start = ++at
        while (true) {
            when (peek()) {
                '"' -> return text.substring(start, at++)
                '\\' -> return escaped(start)
                else -> plain()
            }
        }
    }

    private fun escaped(start: Int): String {
        val out = StringBuilder().append(text, start, at)
        while (true) {
            when (val char = peek()) {
                '"' -> {
                    at++
                    return out.toString()
                }

                '\\' -> {
                    at++
                    out.append(escape())
                }

                else -> {
                    plain()
                    out.append(char)
                }
            }
        }
    }

    private fun plain() {
        if (peek() < ' ') wrong("a control character in a string")
        at++
    }

    private fun escape(): Char {
        val kind = peek()
        at++
        val place = "\"\\/bfnrt".indexOf(kind)
        if (place >= 0) return "\"\\/\b\u000c\n\r\t"[place]
        if (kind != 'u' || at + 4 > text.length) wrong("an unknown escape")
        var code = 0
        repeat(4) {
            val digit = Character.digit(text[at], 16)
            if (digit < 0 || text[at] > 'f') wrong("an unknown escape")
            code = code * 16 + digit
            at++
        }
        return code.toChar()
    }

    private fun number(): JsonPrimitive {
        val start = at
        take('-')
        if (!take('0')) digits()
        val whole = at
        if (take('.')) digits()
        if (take('e') || take('E')) {
            if (!take('+')) take('-')
            digits()
        }
        val found = text.substring(start, at)
        if (at == whole) {
            // No field needs more digits, and what no float can hold fails far from here.
            if (found.length > MOST_DIGITS) wrong("a number that is too large")
            return JsonPrimitive(found.toLongOrNull() ?: BigInteger(found))
        }
        val value = found.toDouble()
        if (finite && value.isInfinite()) wrong("a number that is too large")
        return JsonPrimitive(value)
    }

    private fun digits() {
        val start = at
        while (at < text.length && text[at] in '0'..'9') at++
        if (at == start) wrong("no value")
    }

    private fun word(
        word: String,
        value: JsonPrimitive,
    ): JsonPrimitive {
        if (!text.startsWith(word, at)) wrong("no value")
        at += word.length
        return value
    }

    private fun space() {
        while (at < text.length && text[at] in " \t\n\r") at++
    }

    private fun peek(): Char = if (at < text.length) text[at] else wrong("no end")

    private fun take(char: Char): Boolean {
        val found = at < text.length && text[at] == char
        if (found) at++
        return found
    }

    // The text is not repeated: it may be what somebody else sent.
    private fun wrong(what: String): Nothing = throw IllegalArgumentException("it has $what (at character $at)")

    private companion object {
        const val MOST_DIGITS = 40
    }
}
