package io.pflmobile.core.files

import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.math.BigInteger
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.charset.CodingErrorAction

/** Lists and objects inside each other; every parser that may read the same JSON takes as many. */
internal const val MOST_DEPTH: Int = 100

/** Numbers, strings, lists and so on in one piece of JSON. */
internal const val MOST_VALUES: Int = 2_000_000

/**
 * The value of JSON text, as RFC 8259 has it. Two equal keys in one object are refused, since parsers differ in which of them they
 * take; so are numbers that no float64 holds. Integers become `Long` or `BigInteger`, other numbers `Double`.
 *
 * @throws IllegalArgumentException it is no such JSON, or larger or deeper than allowed
 */
internal fun parseJson(text: String): JsonElement = JsonReader(text).whole()

/**
 * The same of UTF-8.
 *
 * @throws IllegalArgumentException as [parseJson]; or the bytes are not UTF-8
 */
internal fun parseJson(bytes: ByteArray): JsonElement {
    val decoder = Charsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT)
    val text =
        try {
            decoder.onUnmappableCharacter(CodingErrorAction.REPORT).decode(ByteBuffer.wrap(bytes)).toString()
        } catch (error: CharacterCodingException) {
            throw IllegalArgumentException("it is not UTF-8", error)
        }
    return parseJson(text)
}

private class JsonReader(
    private val text: String,
) {
    private var at = 0
    private var values = 0

    fun whole(): JsonElement {
        space()
        val value = value(0)
        space()
        if (at < text.length) wrong("more after its end")
        return value
    }

    private fun value(depth: Int): JsonElement {
        if (++values > MOST_VALUES) wrong("more than $MOST_VALUES values")
        return when (peek()) {
            '{' -> obj(deeper(depth))
            '[' -> list(deeper(depth))
            '"' -> JsonPrimitive(string())
            't' -> word("true", JsonPrimitive(true))
            'f' -> word("false", JsonPrimitive(false))
            'n' -> word("null", JsonNull)
            else -> number()
        }
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
        if (value.isInfinite()) wrong("a number that is too large")
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
