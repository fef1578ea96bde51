package io.pflmobile.core.device

import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.files.AtomicFiles
import io.pflmobile.core.files.StrictDouble
import io.pflmobile.core.files.StrictLong
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.files.readBytes
import io.pflmobile.core.files.strictJson
import io.pflmobile.core.privacy.LocalNoise
import kotlinx.serialization.Serializable
import java.io.IOException
import java.nio.file.NoSuchFileException
import java.nio.file.Path
import kotlin.io.path.exists

/**
 * Updates that left this device under its own noise: how many, and the sum of z^-2, which is what epsilon needs. The aggregator's figures
 * are not believed.
 *
 * An update counts once it is made, before its upload begins, and never again: one that is resumed has the same noise, one that is
 * trained anew has fresh noise and counts anew.
 *
 * @param path of the file; where there is none, nothing was sent
 * @param begun whether it must be there, so that one that is missing was lost
 * @throws DeviceFolderException the file is damaged or was lost, so it is not known what was sent
 */
internal class SentNoise(
    private val path: Path,
    begun: Boolean = false,
) {
    private val files = AtomicFiles()

    @Volatile private var count = read(path, begun)

    /** How many there were. */
    val updates: Long get() = count.updates

    /**
     * Counts an update that is about to be sent; it is on the disk when this returns.
     *
     * @param noiseMultiplier z > 0 of its noise, relative to its clip norm
     * @throws io.pflmobile.core.errors.StorageFullException it cannot be counted, so it must not be sent
     * @throws io.pflmobile.core.errors.UnwritableException the same
     */
    @Synchronized
    fun add(noiseMultiplier: Double): Unit = write(count.plus(noiseMultiplier))

    /** Has the file, so that a loss of it is seen. */
    @Synchronized
    fun begin() {
        if (!path.exists()) write(count)
    }

    private fun write(more: Count) {
        files.write(path, (strictJson.encodeToString(Count.serializer(), more) + "\n").encodeToByteArray())
        count = more
    }

    /** Epsilon at [delta] of all that was sent, and of [more] updates, given by the z > 0 of each. */
    fun epsilon(
        delta: Double,
        more: List<Double> = emptyList(),
    ): Double = LocalNoise.localEpsilon(more.fold(count, Count::plus).inverseSquares, delta)

    @Serializable
    private data class Count(
        @Serializable(StrictLong::class) val schemaVersion: Long,
        @Serializable(StrictLong::class) val updates: Long,
        @Serializable(StrictDouble::class) val inverseSquares: Double,
    ) {
        // z is divided by twice: its square may underflow
        fun plus(noiseMultiplier: Double) =
            Count(SCHEMA_VERSION, updates + 1, minOf(inverseSquares + 1 / noiseMultiplier / noiseMultiplier, MOST))
    }

    private companion object {
        /** The largest sum that is kept: noise this small hides nothing anyway, and infinity is no JSON. */
        const val MOST = 1e300

        fun read(
            path: Path,
            begun: Boolean,
        ): Count {
            val found =
                try {
                    strictJson.decodeFromJsonElement(Count.serializer(), parseJson(readBytes(path)))
                } catch (error: NoSuchFileException) {
                    if (begun) throw damaged(path, "it is missing", error)
                    return Count(SCHEMA_VERSION, 0, 0.0)
                } catch (error: IOException) {
                    throw damaged(path, error.message, error)
                } catch (error: IllegalArgumentException) {
                    throw damaged(path, error.message, error)
                }
            if (found.schemaVersion != SCHEMA_VERSION) {
                throw DeviceFolderException(
                    "$path has schema ${found.schemaVersion}, this version reads $SCHEMA_VERSION",
                    mend = "update the app",
                )
            }
            if (found.updates < 0 || (found.inverseSquares > 0) != (found.updates > 0)) {
                throw damaged(path, "its numbers are out of range", null)
            }
            return found
        }

        fun damaged(
            path: Path,
            why: String?,
            cause: Throwable?,
        ) = DeviceFolderException(
            "$path is damaged ($why), so it is not known how much was sent under this device's noise",
            mend = "restore it from a backup; only the user can decide to remove it and to begin to count anew",
            cause,
            damaged = cause !is IOException || cause is NoSuchFileException,
        )
    }
}
