package io.pflmobile.core.conformance

import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.Tensor
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long
import java.nio.file.Path
import kotlin.io.path.readText

/** The files of `conformance/`, which Python writes; its README says how numbers are written. */
object Vectors {
    val folder: Path = Path.of(checkNotNull(System.getProperty("conformance")) { "run the tests with Maven" })

    fun read(file: String): JsonObject = Json.parseToJsonElement(folder.resolve(file).readText()).jsonObject

    fun tensor(element: JsonElement): Tensor {
        val found = element.jsonObject
        val shape = found.getValue("shape").jsonArray.map { it.jsonPrimitive.int }
        val floats =
            found["f32"] ?: return LongTensor(
                found
                    .getValue("i64")
                    .jsonArray
                    .map { it.jsonPrimitive.long }
                    .toLongArray(),
                shape,
            )
        return FloatTensor(words(floats.jsonPrimitive.content).map { float(it) }.toFloatArray(), shape)
    }

    fun float(hex: String): Float = Float.fromBits(hex.toUInt(16).toInt())

    fun double(hex: String): Double = Double.fromBits(hex.toULong(16).toLong())

    fun unsigned(element: JsonElement): Long =
        element.jsonPrimitive.content
            .toULong()
            .toLong()

    private fun words(text: String) = text.split(' ').filter { it.isNotEmpty() }
}

/** The content of a JSON string or number. */
fun text(element: JsonElement): String = element.jsonPrimitive.content
