package io.pflmobile.core.bundle

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.files.fromHex
import io.pflmobile.core.files.hex
import io.pflmobile.core.files.parseJson
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long
import java.nio.file.Files
import java.nio.file.Path
import java.security.MessageDigest
import java.util.zip.ZipFile
import kotlin.io.path.createDirectories
import kotlin.io.path.createParentDirectories
import kotlin.io.path.createSymbolicLinkPointingTo
import kotlin.io.path.deleteExisting
import kotlin.io.path.readBytes
import kotlin.io.path.writeBytes
import kotlin.io.path.writeText

/** The steps of `conformance/bundles.json`. */
internal object Damage {
    /** Files of `conformance/bundles/small.pflb` in a folder. */
    fun unpackSmall(folder: Path) {
        ZipFile(Vectors.folder.resolve("bundles/small.pflb").toFile()).use { zip ->
            for (entry in zip.entries()) {
                folder.resolve(entry.name).createParentDirectories().writeBytes(zip.getInputStream(entry).readBytes())
            }
        }
    }

    fun apply(
        step: JsonObject,
        base: Path,
    ) {
        fun text(name: String) = step.getValue(name).jsonPrimitive.content

        fun number(name: String) = step.getValue(name).jsonPrimitive.int
        val file = text("file").let { if (it.isEmpty()) base else base.resolve(it) }

        fun change(change: (ByteArray) -> ByteArray) = file.writeBytes(change(file.readBytes()))
        when (text("op")) {
            "remove" -> {
                file.deleteExisting()
            }

            "folder" -> {
                file.createDirectories()
            }

            "link" -> {
                file.createSymbolicLinkPointingTo(Path.of(text("to")))
            }

            "write" -> {
                file.writeText(text("text"))
            }

            "cut" -> {
                change { it.copyOf(number("keep")) }
            }

            "drop" -> {
                change { it.copyOf(it.size - number("bytes")) }
            }

            "replace" -> {
                change { data -> bytes(text("hex")).copyInto(data.copyOf(), number("at")) }
            }

            "insert" -> {
                change { data -> insert(data, number("at"), bytes(text("hex"))) }
            }

            "text" -> {
                change { data ->
                    latin(
                        latin(data)
                            .also {
                                check(latin(text("old").toByteArray()) in it)
                            }.replaceFirst(latin(text("old").toByteArray()), latin(text("new").toByteArray())),
                    )
                }
            }

            "json" -> {
                change { data ->
                    edit(parseJson(data), step.getValue("path").jsonArray.toList(), step["value"]).toString().toByteArray()
                }
            }

            "list" -> {
                list(base, text("file"))
            }

            else -> {
                error("no step ${text("op")}")
            }
        }
    }

    private fun insert(
        data: ByteArray,
        at: Int,
        value: ByteArray,
    ): ByteArray {
        val place = if (at < 0) data.size else at
        return data.copyOf(place) + value + data.copyOfRange(place, data.size)
    }

    private fun bytes(text: String) = checkNotNull(fromHex(text))

    private fun latin(data: ByteArray) = String(data, Charsets.ISO_8859_1)

    private fun latin(text: String) = text.toByteArray(Charsets.ISO_8859_1)

    private fun edit(
        element: JsonElement,
        path: List<JsonElement>,
        value: JsonElement?,
    ): JsonElement {
        val key = (path.first() as JsonPrimitive).content

        fun changed(inner: JsonElement?) = if (path.size == 1) value else edit(checkNotNull(inner), path.drop(1), value)
        return when (element) {
            is JsonObject -> changed(element[key]).let { JsonObject(if (it == null) element - key else element + (key to it)) }
            is JsonArray -> JsonArray(element.mapIndexedNotNull { index, item -> if (index == key.toInt()) changed(item) else item })
            else -> error("no field $key")
        }
    }

    private fun list(
        base: Path,
        file: String,
    ) {
        val data = base.resolve(file).readBytes()
        val digest = hex(MessageDigest.getInstance("SHA-256").digest(data))
        val entry = JsonObject(mapOf("sha256" to JsonPrimitive(digest), "bytes" to JsonPrimitive(data.size)))
        val manifest = base.resolve("manifest.json")
        val listed = edit(parseJson(Files.readAllBytes(manifest)), listOf(JsonPrimitive("files"), JsonPrimitive(file)), entry).jsonObject
        val total =
            listed
                .getValue("files")
                .jsonObject.values
                .sumOf {
                    it.jsonObject
                        .getValue("bytes")
                        .jsonPrimitive.long
                }
        val whole = edit(listed, listOf(JsonPrimitive("measured"), JsonPrimitive("total_bytes")), JsonPrimitive(total))
        manifest.writeText(whole.toString())
    }
}
