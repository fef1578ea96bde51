package io.pflmobile.core.device

import io.pflmobile.core.files.AtomicFiles
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.files.readBytes
import io.pflmobile.core.files.strictJson
import io.pflmobile.core.plan.Serve
import io.pflmobile.core.plan.ServeSerializer
import kotlinx.serialization.SerializationException
import kotlinx.serialization.builtins.MapSerializer
import kotlinx.serialization.builtins.serializer
import java.io.IOException
import java.nio.file.Path
import kotlin.io.path.exists

/**
 * What predictions use of the versions of a personal state that rounds made: a task's plan may serve a copy (Ditto) or a mix (APFL) where
 * the bundle's own plan serves something else. Versions that are not noted are served by the bundle's plan, so a file that is damaged
 * or was lost does no more than that.
 *
 * @param path of the file
 */
internal class ServeNotes(
    private val path: Path,
) {
    private val files = AtomicFiles()

    /** What is served of a version; null where no round made it. */
    @Synchronized
    fun of(version: Int): Serve? = read()[version]

    /** Notes it before the version serves; [there] are the versions that are kept beside it. */
    @Synchronized
    fun put(
        version: Int,
        serve: Serve,
        there: Collection<Int>,
    ) = write(read().filterKeys { it in there } + (version to serve))

    /** Forgets versions that are gone, whose numbers may be given anew. */
    @Synchronized
    fun keep(there: Collection<Int>) {
        val now = read()
        if (!there.containsAll(now.keys)) write(now.filterKeys { it in there })
    }

    private fun read(): Map<Int, Serve> =
        if (!path.exists()) {
            emptyMap()
        } else {
            try {
                strictJson.decodeFromJsonElement(SERVES, parseJson(readBytes(path)))
            } catch (_: IOException) {
                emptyMap()
            } catch (_: SerializationException) {
                emptyMap()
            } catch (_: IllegalArgumentException) {
                emptyMap()
            }
        }

    private fun write(all: Map<Int, Serve>) = files.write(path, (strictJson.encodeToString(SERVES, all) + "\n").encodeToByteArray())

    private companion object {
        val SERVES = MapSerializer(Int.serializer(), ServeSerializer)
    }
}
