package io.pflmobile.core.files

import io.pflmobile.core.errors.UnwritableException
import java.io.IOException
import java.nio.channels.FileChannel
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.StandardOpenOption.CREATE
import java.nio.file.StandardOpenOption.WRITE
import java.nio.file.attribute.PosixFilePermission
import java.util.concurrent.ConcurrentHashMap

private val OTHERS =
    setOf(
        PosixFilePermission.GROUP_READ,
        PosixFilePermission.GROUP_WRITE,
        PosixFilePermission.GROUP_EXECUTE,
        PosixFilePermission.OTHERS_READ,
        PosixFilePermission.OTHERS_WRITE,
        PosixFilePermission.OTHERS_EXECUTE,
    )

/**
 * Has a folder that nobody but its owner may enter; folders above it that are missing are made so too. One that is there and too open
 * is closed to others where it is surely ours: it is empty, or holds a name that only we write.
 *
 * @throws UnwritableException it cannot be made, or is no folder
 */
internal fun privateFolder(
    path: Path,
    ours: (String) -> Boolean,
) {
    diskErrors(path) {
        Files.createDirectories(path, *owner(path, "rwx------"))
        if (!isPosix(path)) return
        val permissions = Files.getPosixFilePermissions(path)
        if (permissions.none { it in OTHERS }) return
        val names = Files.newDirectoryStream(path).use { found -> found.map { it.fileName.toString() } }
        if (names.isEmpty() || names.any(ours)) Files.setPosixFilePermissions(path, permissions - OTHERS)
    }
}

/** A lock on a folder, which ends with the process: on a file in it, which stays. */
internal class FolderLock private constructor(
    private val file: Path,
    private val channel: FileChannel,
) : AutoCloseable {
    override fun close() {
        channel.use { HELD.remove(file) }
    }

    companion object {
        const val NAME = ".lock"
        private const val PAUSE_MS = 20L

        // Closing any channel of a file ends a process' lock on it, so a second must not even be opened.
        private val HELD: MutableSet<Path> = ConcurrentHashMap.newKeySet()

        /**
         * The lock; null where another, in this process or not, had it all the time.
         *
         * @param waitMs milliseconds to wait for another who has it
         * @param name of the file
         * @throws IOException the file cannot be made
         */
        @Throws(IOException::class)
        fun take(
            folder: Path,
            waitMs: Long,
            name: String = NAME,
        ): FolderLock? {
            val file = folder.toRealPath().resolve(name)
            val until = System.nanoTime() + waitMs * 1_000_000
            while (true) {
                attempt(file)?.let { return it }
                if (System.nanoTime() - until >= 0) return null
                Thread.sleep(PAUSE_MS)
            }
        }

        private fun attempt(file: Path): FolderLock? {
            if (!HELD.add(file)) return null
            var channel: FileChannel? = null
            var taken = false
            try {
                channel = FileChannel.open(file, setOf(CREATE, WRITE), *owner(file, "rw-------"))
                taken = channel.tryLock() != null
                return if (taken) FolderLock(file, channel) else null
            } finally {
                if (!taken) channel.use { HELD.remove(file) }
            }
        }
    }
}
