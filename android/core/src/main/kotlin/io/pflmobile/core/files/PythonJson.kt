package io.pflmobile.core.files

import io.pflmobile.core.tensors.NameOrder
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.math.BigDecimal
import java.math.MathContext
import java.math.RoundingMode

/**
 * JSON as Python's `json.dumps(value, sort_keys=True)` writes it, so that the same state has the same bytes in every language. Numbers
 * of [JsonPrimitive] that were made from a `Double` are floats, others integers.
 */
internal fun pythonJson(value: JsonElement): String = StringBuilder().also { write(value, it) }.toString()

/** A JSON string; of characters beyond ASCII as escapes if [ascii]. */
internal fun jsonString(
    text: String,
    ascii: Boolean,
): String {
    val out = StringBuilder(text.length + 2).append('"')
    for (char in text) {
        when (char) {
            '"' -> out.append("\\\"")
            '\\' -> out.append("\\\\")
            '\n' -> out.append("\\n")
            '\r' -> out.append("\\r")
            '\t' -> out.append("\\t")
            '\b' -> out.append("\\b")
            '\u000c' -> out.append("\\f")
            else -> if (char < ' ' || (ascii && char > '~')) out.append(escape(char)) else out.append(char)
        }
    }
    return out.append('"').toString()
}

private fun escape(char: Char) = "\\u" + char.code.toString(16).padStart(4, '0')

private fun write(
    value: JsonElement,
    out: StringBuilder,
) {
    when (value) {
        is JsonNull -> {
            out.append("null")
        }

        is JsonPrimitive -> {
            out.append(if (value.isString) jsonString(value.content, ascii = true) else literal(value.content))
        }

        is JsonArray -> {
            all(value, '[', ']', out) { write(it, out) }
        }

        is JsonObject -> {
            all(value.entries.sortedWith(compareBy(NameOrder) { it.key }), '{', '}', out) {
                out.append(jsonString(it.key, ascii = true)).append(": ")
                write(it.value, out)
            }
        }
    }
}

private fun <T> all(
    items: Collection<T>,
    open: Char,
    close: Char,
    out: StringBuilder,
    one: (T) -> Unit,
) {
    out.append(open)
    items.forEachIndexed { index, item ->
        if (index > 0) out.append(", ")
        one(item)
    }
    out.append(close)
}

private fun literal(content: String): String {
    val float = content.any { it == '.' || it == 'E' } || content.endsWith("Infinity") || content == "NaN"
    return if (float) pythonFloat(content.toDouble()) else content
}

/** The shortest digits that give the number again, laid out as Python's `repr` does. */
internal fun pythonFloat(value: Double): String {
    if (value.isNaN() || value.isInfinite()) return value.toString()
    val sign = if (value < 0 || 1 / value < 0) "-" else ""
    if (value == 0.0) return "${sign}0.0"
    // Double.toString is the shortest from JDK 19 on only.
    val exact = BigDecimal(value).abs()
    val short =
        (1..17)
            .firstNotNullOf { digits ->
                exact.round(MathContext(digits, RoundingMode.HALF_EVEN)).takeIf { it.toDouble() == kotlin.math.abs(value) }
            }.stripTrailingZeros()
    val digits = short.unscaledValue().toString()
    val exponent = digits.length - 1 - short.scale()
    if (exponent in -4..15) return sign + short.toPlainString().let { if ('.' in it) it else "$it.0" }
    val mantissa = digits.first() + if (digits.length > 1) "." + digits.drop(1) else ""
    return "$sign${mantissa}e${if (exponent < 0) "-" else "+"}${kotlin.math.abs(exponent).toString().padStart(2, '0')}"
}
