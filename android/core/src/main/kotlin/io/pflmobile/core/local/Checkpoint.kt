package io.pflmobile.core.local

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.TensorFileException
import io.pflmobile.core.files.AtomicFiles
import io.pflmobile.core.files.Sealed
import io.pflmobile.core.files.hex
import io.pflmobile.core.files.pythonJson
import io.pflmobile.core.files.readBytes
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.rows.Rows
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.NameOrder
import io.pflmobile.core.tensors.RawTensor
import io.pflmobile.core.tensors.Tensor
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.NoSuchFileException
import java.nio.file.Path
import java.security.MessageDigest

/**
 * Training under way, saved now and then in a file, so that a killed run goes on where it was. A checkpoint belongs to one job: plan,
 * examples, sets, model and the version it started from. Any other job discards it and says so. Going on gives bit for bit what an
 * uninterrupted run gives.
 *
 * @property path of the file; its folder must exist
 * @property model that is trained
 * @property every steps between checkpoints
 * @throws ConfigException [every] is less than 1
 */
public class Checkpoints(
    private val path: Path,
    private val model: ModelId,
    public val every: Long,
) {
    private val files = AtomicFiles()

    init {
        if (every < 1) throw ConfigException("a checkpoint every $every steps", mend = "give 1 or more")
    }

    /** Digest of everything that decides how training goes. */
    internal fun job(
        plan: Plan,
        version: Int,
        rows: Rows,
        texts: String,
        sets: Map<String, TensorSet>,
    ): String {
        val sha = MessageDigest.getInstance("SHA-256")
        val parts = listOf(plan.dump(), model.name, model.version, model.fingerprint, "$version", Sealed.digest(rows), texts)
        for (part in parts + sets.keys.sortedWith(NameOrder).map { "$it\n${Sealed.digest(sets.getValue(it))}" }) {
            sha.update(MessageDigest.getInstance("SHA-256").digest(part.encodeToByteArray()))
        }
        return hex(sha.digest())
    }

    /** Write [work] atomically. */
    internal fun save(
        work: Work,
        job: String,
    ) {
        val flat = LinkedHashMap<String, Tensor>()
        flat["losses"] = doubles(work.losses)
        work.tensors.mapKeysTo(flat) { "tensor:${it.key}" }
        work.optimizer.tensors().mapKeysTo(flat) { "optimizer:${it.key}" }
        work.start.mapKeysTo(flat) { "start:${it.key}" }
        for ((copy, values) in work.copies) values.mapKeysTo(flat) { "copy:$copy:${it.key}" }
        val head =
            mapOf(
                "job" to JsonPrimitive(job),
                "words" to JsonArray(work.words.map { JsonPrimitive(it) }),
                "reports" to JsonObject(work.reports.mapValues { JsonPrimitive(it.value) }),
                "phase" to JsonPrimitive(work.phase),
                "step" to JsonPrimitive(work.step),
                "done" to JsonPrimitive(work.done),
                "rate" to JsonPrimitive(work.rate),
            )
        files.write(path, Sealed.seal(flat, pythonJson(JsonObject(head)), form = null))
    }

    /** The saved work of this job, or why it cannot be used; neither when there is none. */
    internal fun load(job: String): Pair<Work?, String?> {
        val (known, work) =
            try {
                val (flat, head) =
                    Sealed.unseal(
                        ByteBuffer.wrap(readBytes(path, Int.MAX_VALUE)),
                        form = null,
                        schemaVersion = 0,
                        what = WHAT,
                    )
                Sealed.damagedHead(WHAT) { text(head["job"]) to work(flat, head) }
            } catch (_: NoSuchFileException) {
                return null to null
            } catch (error: IOException) {
                return null to "the checkpoint could not be read and was discarded: ${error.message}"
            } catch (error: TensorFileException) {
                return null to "the checkpoint could not be read and was discarded: ${error.message}"
            }
        if (known != job) return null to "the checkpoint was of other examples, another plan or an older state, and was discarded"
        return work to null
    }

    private fun work(
        flat: Map<String, Tensor>,
        head: JsonObject,
    ): Work {
        fun part(kind: String) = flat.filterKeys { it.startsWith("$kind:") }.mapKeys { it.key.substring(kind.length + 1) }

        fun number(field: String) =
            requireNotNull((head[field] as? JsonPrimitive)?.takeIf { !it.isString }?.content) { "$field is ${head[field]}" }
        val copies = LinkedHashMap<String, Map<String, Tensor>>()
        for ((key, value) in part("copy")) {
            val copy = key.substringBefore(':')
            copies[copy] = copies[copy].orEmpty() + (key.substringAfter(':') to value)
        }
        return Work(
            tensors = LinkedHashMap(part("tensor")),
            copies = copies,
            words = requireNotNull(head["words"] as? JsonArray) { "words is no list" }.map { text(it) },
            phase = number("phase").toInt(),
            step = number("step").toLong(),
            done = number("done").toLong(),
            optimizer = OptimizerState.of(part("optimizer")),
            start = part("start").mapValues { requireNotNull(it.value as? FloatTensor) { "start:${it.key} is no float32" } },
            losses = doubles(flat["losses"]),
            rate = number("rate").toDouble(),
            reports =
                requireNotNull(head["reports"] as? JsonObject) { "reports is no object" }
                    .mapValuesTo(LinkedHashMap()) { (it.value as JsonPrimitive).content.toDouble() },
        )
    }

    private fun text(element: JsonElement?): String =
        requireNotNull((element as? JsonPrimitive)?.takeIf { it.isString }?.content) { "$element is no string" }

    private fun doubles(values: List<Double>): Tensor {
        val bytes = ByteBuffer.allocate(Double.SIZE_BYTES * values.size).order(ByteOrder.LITTLE_ENDIAN)
        values.forEach { bytes.putDouble(it) }
        return RawTensor(DType.FLOAT64, bytes.array(), listOf(values.size))
    }

    private fun doubles(tensor: Tensor?): MutableList<Double> {
        val bytes = requireNotNull(tensor as? RawTensor) { "there are no losses" }.bytes
        val from = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
        return MutableList(bytes.size / Double.SIZE_BYTES) { from.getDouble() }
    }

    /** Remove the checkpoint if there is one. */
    internal fun discard(): Unit = files.delete(path)

    private companion object {
        const val WHAT = "the checkpoint"
    }
}
