package io.pflmobile.core.files

import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.errors.UnwritableException
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.nio.file.AccessDeniedException
import java.nio.file.FileAlreadyExistsException
import java.nio.file.Files
import java.nio.file.LinkOption.NOFOLLOW_LINKS
import java.nio.file.NoSuchFileException
import java.nio.file.Path
import java.nio.file.StandardOpenOption.WRITE
import java.security.SecureRandom
import java.util.concurrent.ConcurrentHashMap

/**
 * Writes files so that a crash leaves the old content or the new, never a mixture.
 *
 * Everything new is written beside its destination under a hidden temporary name, flushed to the disk, and renamed in one step. While
 * it writes, a process holds a lock on its temporary; a temporary that nobody locks belongs to a process that was killed, and the next
 * write of the same destination removes it. Files are for their owner alone.
 */
internal class AtomicFiles(
    private val disk: Disk = RealDisk,
) {
    /**
     * Puts [data] at [path]; after a crash at any moment the file holds its old bytes or the new ones.
     *
     * @throws StorageFullException the disk is full; the old file is kept
     * @throws UnwritableException the folder is missing or may not be written
     */
    fun write(
        path: Path,
        data: ByteArray,
    ) {
        diskErrors(path) {
            removeStale(path)
            val temporary = temporaryName(path)
            // Closing any channel of a file would end this process' lock on it, so others here must not open it.
            IN_USE.add(temporary)
            try {
                disk.create(temporary).use { channel ->
                    // A file system without locks: leftovers are then not told apart from what is being written.
                    ignoringIo { channel.tryLock() }
                    disk.write(channel, ByteBuffer.wrap(data))
                    disk.sync(channel)
                    disk.rename(temporary, path)
                }
            } finally {
                IN_USE.remove(temporary)
                disk.delete(temporary)
            }
            disk.syncFolder(temporary.parent)
        }
    }

    /** Removes a file, if there is one. */
    fun delete(path: Path): Unit = diskErrors(path) { disk.delete(path) }

    /** Makes removed and new names in a folder outlive a loss of power. */
    fun syncFolder(folder: Path): Unit = diskErrors(folder) { disk.syncFolder(folder) }

    /** Removes temporaries of [path], or of all files of its folder, whose writer was killed; those in use are left alone. */
    fun removeStale(
        path: Path,
        ofAll: Boolean = false,
    ) {
        val pattern = if (ofAll) ANY else Regex(Regex.escape(prefix(path)) + ENDING)
        val found =
            Files.newDirectoryStream(path.toAbsolutePath().parent).use { all ->
                all.filter { pattern.matches(it.fileName.toString()) }
            }
        for (temporary in found) {
            if (temporary in IN_USE || !Files.isRegularFile(temporary, NOFOLLOW_LINKS)) continue
            ignoringIo {
                FileChannel.open(temporary, WRITE).use { if (it.tryLock() != null) disk.delete(temporary) }
            }
        }
    }

    companion object {
        private val IN_USE: MutableSet<Path> = ConcurrentHashMap.newKeySet()
        private val random = SecureRandom()
        private const val ENDING = "[0-9a-f]{12}\\.tmp"
        private val ANY = Regex("\\..*\\.$ENDING")

        private fun prefix(path: Path) = ".${path.fileName.toString().take(180)}."

        private fun temporaryName(path: Path): Path =
            path.toAbsolutePath().resolveSibling(prefix(path) + hex(ByteArray(6).also(random::nextBytes)) + ".tmp")

        private inline fun ignoringIo(step: () -> Unit) {
            try {
                step()
            } catch (_: IOException) {
                return
            }
        }
    }
}

private val FULL = listOf("No space left", "ENOSPC", "quota exceeded", "EDQUOT", "File too large", "EFBIG")

/** Turns an [IOException] while writing [path] into an error that names it and the mend. */
internal inline fun <T> diskErrors(
    path: Path,
    step: () -> T,
): T =
    try {
        step()
    } catch (error: IOException) {
        throw diskError(path, error)
    }

// Java keeps the system's message and not its number.
internal fun diskError(
    path: Path,
    error: IOException,
): Exception =
    if (FULL.any { error.message.orEmpty().contains(it, ignoreCase = true) }) {
        StorageFullException(
            "no space left on the disk while writing $path; nothing was changed",
            "free some space, or choose a folder on another disk",
            error,
        )
    } else {
        UnwritableException(
            "cannot write $path: ${reason(path, error)}",
            "check that the folder exists and that you may write in it, or choose another",
            error,
        )
    }

/** Java's message of a path that it could not use is often that path alone. */
private fun reason(
    path: Path,
    error: IOException,
): String =
    when (error) {
        is AccessDeniedException -> "no permission for ${error.file}"
        is FileAlreadyExistsException -> "${error.file} is a file, not a folder"
        is NoSuchFileException -> "the folder of ${error.file} is missing or cannot be made"
        else -> error.message?.takeIf { it != path.toString() } ?: error.javaClass.simpleName
    }
