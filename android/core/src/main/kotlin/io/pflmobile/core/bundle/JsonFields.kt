package io.pflmobile.core.bundle

import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive

/** Something in a JSON document that its schema does not allow. */
internal class FieldFault(
    where: String,
    what: String,
) : Exception("${where.ifEmpty { "as a whole" }}: $what")

/**
 * The fields of a JSON object, each taken once; a field that nobody took is an error. Types are strict: no text for a number, no
 * fraction for a whole number.
 */
internal class JsonFields(
    element: JsonElement,
    private val where: String,
) {
    private val all: JsonObject = element as? JsonObject ?: fault(where, "it is no object")
    private val taken = HashSet<String>()

    private fun at(name: String) = if (where.isEmpty()) name else "$where.$name"

    /** The field, or null where there is none or JSON's null. */
    private fun <T> take(
        name: String,
        read: (JsonElement, String) -> T,
    ): T? {
        taken += name
        return all[name]?.takeUnless { it is JsonNull }?.let { read(it, at(name)) }
    }

    /** A field that must be there, and not null. */
    fun <T : Any> required(
        name: String,
        read: (JsonElement, String) -> T,
    ): T = take(name, read) ?: fault(at(name), "it is missing")

    /** A field that may be left out, but not be null. */
    fun <T : Any> or(
        name: String,
        default: T,
        read: (JsonElement, String) -> T,
    ): T = if (name in all) required(name, read) else default.also { taken += name }

    /** A field that may be left out or null. */
    fun <T : Any> nullable(
        name: String,
        read: (JsonElement, String) -> T,
    ): T? = take(name, read)

    /** To be called after the last field. */
    fun done() {
        val unknown = all.keys.firstOrNull { it !in taken } ?: return
        fault(at(unknown), "no such field is known")
    }

    companion object {
        fun fault(
            where: String,
            what: String,
        ): Nothing = throw FieldFault(where, what)

        fun text(
            element: JsonElement,
            where: String,
        ): String = (element as? JsonPrimitive)?.takeIf { it.isString }?.content ?: fault(where, "it is no text")

        /** A name: 1 to 200 characters (code points), no control characters. */
        fun name(
            element: JsonElement,
            where: String,
        ): String = checkName(text(element, where), where)

        fun checkName(
            name: String,
            where: String,
        ): String {
            if (name.codePointCount(0, name.length) !in 1..200) fault(where, "it has not 1 to 200 characters")
            if (name.any { it < ' ' || it == '\u007f' }) fault(where, "it has a control character")
            return name
        }

        /** A whole number from [least] to 2^53, which every language holds exactly. */
        fun whole(least: Long): (JsonElement, String) -> Long =
            { element, where ->
                val number = (element as? JsonPrimitive)?.takeUnless { it.isString }?.content?.toBigIntegerOrNull()
                if (number == null) fault(where, "it is no whole number")
                if (number !in least.toBigInteger()..(1L shl 53).toBigInteger()) fault(where, "it is not from $least to 2^53")
                number.toLong()
            }

        val count = whole(0)
        val positive = whole(1)

        fun number(
            element: JsonElement,
            where: String,
        ): Double =
            (element as? JsonPrimitive)
                ?.takeUnless { it.isString || it.content == "true" || it.content == "false" || it is JsonNull }
                ?.content
                ?.toDouble()
                ?: fault(where, "it is no number")

        fun boolean(
            element: JsonElement,
            where: String,
        ): Boolean =
            when ((element as? JsonPrimitive)?.takeUnless { it.isString }?.content) {
                "true" -> true
                "false" -> false
                else -> fault(where, "it is neither true nor false")
            }

        fun obj(
            element: JsonElement,
            where: String,
        ): JsonObject = element as? JsonObject ?: fault(where, "it is no object")

        fun <T> list(read: (JsonElement, String) -> T): (JsonElement, String) -> List<T> =
            { element, where ->
                if (element !is JsonArray) fault(where, "it is no list")
                element.mapIndexed { index, item -> read(item, "$where.$index") }
            }

        fun <T> map(
            key: (String, String) -> String,
            read: (JsonElement, String) -> T,
        ): (JsonElement, String) -> Map<String, T> =
            { element, where -> obj(element, where).entries.associate { (name, item) -> key(name, where) to read(item, "$where.$name") } }
    }
}
