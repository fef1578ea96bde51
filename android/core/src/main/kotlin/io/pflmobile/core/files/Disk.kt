package io.pflmobile.core.files

import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.nio.file.AccessDeniedException
import java.nio.file.Files
import java.nio.file.OpenOption
import java.nio.file.Path
import java.nio.file.StandardCopyOption.ATOMIC_MOVE
import java.nio.file.StandardOpenOption.CREATE_NEW
import java.nio.file.StandardOpenOption.READ
import java.nio.file.StandardOpenOption.WRITE
import java.nio.file.attribute.FileAttribute
import java.nio.file.attribute.PosixFilePermissions

/** The steps that change a disk. Tests end the process between any two of them, and fill the disk. */
internal interface Disk {
    /** A new file that only its owner may read. */
    @Throws(IOException::class)
    fun create(path: Path): FileChannel

    /** Writes all of [data]. */
    @Throws(IOException::class)
    fun write(
        channel: FileChannel,
        data: ByteBuffer,
    )

    /** Waits until what was written would outlive a loss of power. */
    @Throws(IOException::class)
    fun sync(channel: FileChannel)

    /** In one step; a file at [to] is replaced. */
    @Throws(IOException::class)
    fun rename(
        from: Path,
        to: Path,
    )

    /** Makes renames and new names inside a folder outlive a loss of power. */
    @Throws(IOException::class)
    fun syncFolder(folder: Path)

    /** Nothing where there is no such file. */
    @Throws(IOException::class)
    fun delete(path: Path)
}

/** The disk of the device. */
internal object RealDisk : Disk {
    override fun create(path: Path): FileChannel = FileChannel.open(path, setOf<OpenOption>(CREATE_NEW, WRITE), *owner(path, "rw-------"))

    override fun write(
        channel: FileChannel,
        data: ByteBuffer,
    ) {
        while (data.hasRemaining()) channel.write(data)
    }

    override fun sync(channel: FileChannel) = channel.force(true)

    override fun rename(
        from: Path,
        to: Path,
    ) {
        Files.move(from, to, ATOMIC_MOVE)
    }

    override fun syncFolder(folder: Path) {
        val channel =
            try {
                FileChannel.open(folder, READ)
            } catch (_: AccessDeniedException) {
                return // Windows opens no folders
            }
        channel.use { it.force(true) }
    }

    override fun delete(path: Path) {
        Files.deleteIfExists(path)
    }
}

/** The attribute that gives a new file or folder these permissions from the moment on that it is there. */
internal fun owner(
    path: Path,
    permissions: String,
): Array<FileAttribute<*>> =
    if (isPosix(path)) arrayOf(PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString(permissions))) else emptyArray()

internal fun isPosix(path: Path): Boolean = "posix" in path.fileSystem.supportedFileAttributeViews()
