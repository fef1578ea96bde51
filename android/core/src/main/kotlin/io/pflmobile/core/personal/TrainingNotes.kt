package io.pflmobile.core.personal

import io.pflmobile.core.files.AtomicFiles
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.files.pythonJson
import io.pflmobile.core.files.readBytes
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.io.IOException
import java.nio.file.Path

/**
 * Which examples a training began with.
 *
 * @property first id of the oldest
 * @property last id of the newest
 * @property count how many
 */
internal data class Began(
    val first: Long,
    val last: Long,
    val count: Int,
)

/** Two small files: which examples the training under way began with, and how the last one ended. A damaged one counts as none. */
internal class TrainingNotes(
    folder: Path,
    private val files: AtomicFiles,
) {
    private val underWay = folder.resolve("under-way")
    private val ended = folder.resolve("last.json")

    fun begin(with: Began) =
        put(underWay, mapOf("first" to JsonPrimitive(with.first), "last" to JsonPrimitive(with.last), "count" to JsonPrimitive(with.count)))

    fun began(): Began? = read(underWay) { Began(number(it, "first").toLong(), number(it, "last").toLong(), number(it, "count").toInt()) }

    fun done() = files.delete(underWay)

    fun write(last: LastTraining) =
        put(
            ended,
            mapOf(
                "at" to JsonPrimitive(last.at),
                "adopted" to JsonPrimitive(last.adopted),
                "version" to JsonPrimitive(last.version),
                "before" to metrics(last.before),
                "after" to metrics(last.after),
                "steps" to JsonPrimitive(last.steps),
                "examples" to JsonPrimitive(last.examples),
            ),
        )

    fun last(): LastTraining? =
        read(ended) {
            LastTraining(
                number(it, "at").toDouble(),
                number(it, "adopted").toBooleanStrict(),
                number(it, "version").toInt(),
                metrics(it["before"]),
                metrics(it["after"]),
                number(it, "steps").toLong(),
                number(it, "examples").toInt(),
            )
        }

    fun erase() {
        done()
        files.delete(ended)
    }

    private fun put(
        path: Path,
        values: Map<String, JsonElement>,
    ) = files.write(path, pythonJson(JsonObject(values)).encodeToByteArray())

    private fun <T> read(
        path: Path,
        take: (JsonObject) -> T,
    ): T? =
        try {
            take(requireNotNull(parseJson(readBytes(path)) as? JsonObject))
        } catch (_: IOException) {
            null
        } catch (_: IllegalArgumentException) {
            null
        }

    private fun metrics(values: Map<String, Double>) =
        JsonObject(values.filterValues { it.isFinite() }.mapValues { JsonPrimitive(it.value) })

    private fun metrics(element: JsonElement?): Map<String, Double> =
        requireNotNull(element as? JsonObject).mapValues { (it.value as JsonPrimitive).content.toDouble() }

    private fun number(
        head: JsonObject,
        name: String,
    ): String = requireNotNull((head[name] as? JsonPrimitive)?.takeUnless { it.isString }).content
}
