package io.pflmobile.core.state

import io.pflmobile.core.errors.NewerFileException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.errors.TensorFileException
import io.pflmobile.core.files.Sealed
import io.pflmobile.core.files.map
import io.pflmobile.core.files.pythonJson
import io.pflmobile.core.tensors.Tensor
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.io.IOException
import java.nio.file.Path

/** A version file that does not hold what was written. */
internal class DamagedStateException(
    message: String,
    cause: Throwable? = null,
) : StateException(message, "revert to another version", cause)

/** One version of a personal state as a file: tensors, `copy:<copy>:<tensor>` for copies, the rest in the head. */
internal class StateFile(
    val model: ModelId,
    val state: PersonalState,
    val parent: Int,
    val created: Double,
) {
    /** The bytes of the file, which are Python's for the same state. */
    fun encode(): ByteArray {
        val copies = state.copies.flatMap { (copy, values) -> values.map { (name, value) -> "$COPY$copy:$name" to value } }
        val metrics = state.metrics.filterValues { it.isFinite() }.mapValues { JsonPrimitive(it.value) }
        val head =
            mapOf(
                "schema_version" to JsonPrimitive(SCHEMA_VERSION),
                "model" to texts(listOf(model.name, model.version, model.fingerprint)),
                "parent" to JsonPrimitive(parent),
                "created" to JsonPrimitive(created),
                "words" to texts(state.words),
                "metrics" to JsonObject(metrics),
            )
        return Sealed.seal(state.tensors + copies, pythonJson(JsonObject(head)), FORMAT, finite = true)
    }

    companion object {
        private const val FORMAT = "pfl-personal-state"
        private const val SCHEMA_VERSION = 1L
        private const val COPY = "copy:"

        /**
         * Reads a file.
         *
         * @throws DamagedStateException it is not what was written
         * @throws StateException it is of a newer schema
         */
        fun read(path: Path): StateFile =
            try {
                val (tensors, head) = Sealed.unseal(map(path), FORMAT, SCHEMA_VERSION, path.toString())
                Sealed.damagedHead(path.toString()) { parts(tensors, head) }
            } catch (error: NewerFileException) {
                throw StateException(error.message, error.mend, error)
            } catch (error: TensorFileException) {
                throw DamagedStateException(error.message, error)
            } catch (error: IOException) {
                throw DamagedStateException("cannot read $path: ${error.message}", error)
            }

        private fun texts(all: List<String>) = JsonArray(all.map(::JsonPrimitive))

        private fun parts(
            tensors: Map<String, Tensor>,
            head: JsonObject,
        ): StateFile {
            val (name, version, fingerprint) = texts(head, "model").also { require(it.size == 3) { "a model has three parts" } }
            val (copied, own) = tensors.entries.partition { it.key.startsWith(COPY) }
            val copies = LinkedHashMap<String, MutableMap<String, Tensor>>()
            for ((key, value) in copied) {
                val parts = key.split(":", limit = 3)
                require(parts.size == 3) { "'$key' is the tensor of no copy" }
                copies.getOrPut(parts[1], ::LinkedHashMap)[parts[2]] = value
            }
            val metrics =
                requireNotNull(
                    head["metrics"] as? JsonObject,
                ) { "metrics are no object" }.mapValues { number(it.value).toDouble() }
            return StateFile(
                ModelId(name, version, fingerprint),
                PersonalState(own.associate { it.toPair() }, copies, texts(head, "words"), metrics),
                number(head["parent"]).toInt(),
                number(head["created"]).toDouble(),
            )
        }

        private fun number(element: JsonElement?): String {
            require(element is JsonPrimitive && !element.isString && element !is JsonNull) { "a number is missing" }
            return element.content
        }

        private fun texts(
            head: JsonObject,
            name: String,
        ): List<String> =
            requireNotNull(head[name] as? JsonArray) { "$name is no list" }.map {
                require(it is JsonPrimitive && it.isString) { "a name or word is no text" }
                it.content
            }
    }
}
