package io.pflmobile.core.bundle

import io.pflmobile.core.bundle.JsonFields.Companion.fault
import io.pflmobile.core.errors.InvalidManifestException
import io.pflmobile.core.errors.SchemaVersionException
import io.pflmobile.core.files.parseJson
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive

/**
 * JSON documents of bundles that say their kind and schema: the manifest, schedules.
 *
 * @property what the document, as messages name it
 * @property kind what its field `kind` says
 * @property newest schema that this version reads
 * @property values of numbers, texts, lists and so on that it may have
 */
internal class Documents(
    private val what: String,
    private val kind: String,
    private val newest: Int,
    private val values: Int,
) {
    /**
     * What [read] makes of a document.
     *
     * @throws SchemaVersionException it is of a newer schema; nothing else of it is looked at
     * @throws InvalidManifestException it is not JSON, or breaks the schema; the first fault is named
     */
    fun <T> parse(
        data: ByteArray,
        read: (JsonObject) -> T,
    ): T {
        val raw =
            try {
                parseJson(data, values)
            } catch (error: IllegalArgumentException) {
                throw InvalidManifestException("$what is not valid JSON: ${error.message}", OBTAIN_AGAIN, error)
            }
        val version = ((raw as? JsonObject)?.get("schema_version") as? JsonPrimitive)?.takeUnless { it.isString }
        val number = version?.content?.toBigIntegerOrNull()
        if (number != null && number > newest.toBigInteger()) {
            throw SchemaVersionException(
                "$what has schema version $number; this version reads up to $newest",
                "update the app, or export the bundle with the version in use here",
            )
        }
        val said = (raw as? JsonObject)?.get("kind") as? JsonPrimitive
        if (number == null || said?.isString != true || said.content != kind) {
            throw InvalidManifestException(
                "$what is of another kind: it needs an integer schema_version and kind '$kind'",
                OBTAIN_AGAIN,
            )
        }
        try {
            if (data[0] != '{'.code.toByte() && data[0] !in SPACE) fault("", "it is not plain UTF-8")
            if (!whole(raw)) fault("", "it has a half of a surrogate pair")
            return read(raw)
        } catch (error: FieldFault) {
            throw InvalidManifestException("$what is not valid:\n  ${error.message}", OBTAIN_AGAIN, error)
        }
    }

    private companion object {
        private val SPACE = " \t\r\n".map { it.code.toByte() }

        /** Whether all its text can be written in UTF-8. */
        fun whole(element: JsonElement): Boolean =
            when (element) {
                is JsonNull -> true
                is JsonPrimitive -> whole(element.content)
                is JsonArray -> element.all(::whole)
                is JsonObject -> element.all { (key, value) -> whole(key) && whole(value) }
            }

        fun whole(text: String): Boolean = text.none(Char::isSurrogate) || Charsets.UTF_8.newEncoder().canEncode(text)
    }
}
