package io.pflmobile.core.device

import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.files.AtomicFiles
import io.pflmobile.core.files.StrictDouble
import io.pflmobile.core.files.StrictLong
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.files.readBytes
import io.pflmobile.core.files.strictJson
import io.pflmobile.core.protocol.TaskPrivacy
import kotlinx.serialization.Serializable
import java.io.IOException
import java.nio.file.NoSuchFileException
import java.nio.file.Path
import kotlin.io.path.exists

/**
 * What a device gave to federations, for a status screen: how much was sent, and what was promised for it. What the device's own noise
 * cost is counted by [SentNoise] alone.
 *
 * An update counts for the promises once it is made, as it may be sent at any time from then on; for the rounds once it is accepted.
 *
 * @param path of the file; where there is none, nothing was sent
 * @param begun whether it must be there, so that one that is missing was lost
 * @throws DeviceFolderException the file is damaged or was lost
 */
internal class Spent(
    private val path: Path,
    begun: Boolean = false,
) {
    private val files = AtomicFiles()

    @Volatile private var now = read(path, begun)

    /** Updates that were accepted. */
    val rounds: Long get() = now.rounds

    /** Bytes of these. */
    val bytes: Long get() = now.bytes

    /** When the aggregator was last asked for a task, in seconds since 1970; null before the first time. */
    val asked: Double? get() = now.asked

    /** Updates that nothing protected. */
    val unprotected: Long get() = now.unprotected

    /** Epsilon and delta that the aggregators promise for what this device gave them, added up over its memberships. */
    val promised: Pair<Double, Double> get() = now.promises.values.let { all -> all.sumOf { it.epsilon } to all.sumOf { it.delta } }

    /** Epsilon that was promised to other memberships than that of [device]. */
    fun promisedElsewhere(device: String?): Double =
        now.promises
            .filterKeys { it != device }
            .values
            .sumOf { it.epsilon }

    /** Has the file, so that a loss of it is seen. */
    @Synchronized
    fun begin() {
        if (!path.exists()) write(now)
    }

    /**
     * Counts an update. What a policy without any limit would not believe is no promise.
     *
     * @param device its id in the federation, which counts a device that left and came again as two
     */
    @Synchronized
    fun made(
        device: String,
        privacy: TaskPrivacy,
    ) {
        val own = privacy.clipNorm != null && privacy.localNoiseMultiplier > 0
        val epsilon = privacy.epsilonAfter
        val delta = statedDelta(privacy)
        val before = now.promises[device]
        when {
            PrivacyPolicy.believes(privacy) && epsilon != null && delta != null -> {
                val more = Promise(maxOf(epsilon, before?.epsilon ?: 0.0), maxOf(delta, before?.delta ?: 0.0))
                if (more != before) write(now.copy(promises = now.promises + (device to more)))
            }

            !own -> {
                write(now.copy(unprotected = now.unprotected + 1))
            }
        }
    }

    @Synchronized
    fun accepted(bytes: Long) = write(now.copy(rounds = now.rounds + 1, bytes = now.bytes + bytes))

    @Synchronized
    fun asked(at: Double) = write(now.copy(asked = at))

    private fun write(more: Content) {
        files.write(path, (strictJson.encodeToString(Content.serializer(), more) + "\n").encodeToByteArray())
        now = more
    }

    @Serializable
    private data class Promise(
        @Serializable(StrictDouble::class) val epsilon: Double,
        @Serializable(StrictDouble::class) val delta: Double,
    )

    @Serializable
    private data class Content(
        @Serializable(StrictLong::class) val schemaVersion: Long,
        @Serializable(StrictLong::class) val rounds: Long = 0,
        @Serializable(StrictLong::class) val bytes: Long = 0,
        @Serializable(StrictLong::class) val unprotected: Long = 0,
        @Serializable(StrictDouble::class) val asked: Double? = null,
        val promises: Map<String, Promise> = emptyMap(),
    )

    private companion object {
        fun read(
            path: Path,
            begun: Boolean,
        ): Content =
            try {
                strictJson.decodeFromJsonElement(Content.serializer(), parseJson(readBytes(path))).also {
                    require(it.schemaVersion == SCHEMA_VERSION) { "schema ${it.schemaVersion}, this version reads $SCHEMA_VERSION" }
                }
            } catch (error: NoSuchFileException) {
                if (begun) throw damaged(path, error)
                Content(SCHEMA_VERSION)
            } catch (error: IOException) {
                throw damaged(path, error)
            } catch (error: IllegalArgumentException) {
                throw damaged(path, error)
            }

        fun damaged(
            path: Path,
            error: Exception,
        ) = DeviceFolderException(
            "$path is damaged (${if (error is NoSuchFileException) "it is missing" else error.message}), so it is not known what was sent",
            mend = "restore it; only the user can decide to erase everything and to begin to count anew",
            error,
            damaged = error !is IOException || error is NoSuchFileException,
        )
    }
}
