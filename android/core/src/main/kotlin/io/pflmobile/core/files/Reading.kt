package io.pflmobile.core.files

import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.nio.file.Files
import java.nio.file.LinkOption
import java.nio.file.NoSuchFileException
import java.nio.file.OpenOption
import java.nio.file.Path
import java.nio.file.StandardOpenOption.READ

/**
 * An open regular file; links are followed unless [links] is false.
 *
 * @throws NoSuchFileException it is not there
 * @throws NotRegularException it is not a regular file: opening a pipe would wait for ever
 * @throws IOException the system refuses to read it
 */
@Throws(IOException::class)
internal fun openRegular(
    path: Path,
    links: Boolean = true,
): FileChannel {
    val follow: Array<LinkOption> = if (links) emptyArray() else arrayOf(LinkOption.NOFOLLOW_LINKS)
    if (!Files.isRegularFile(path, *follow)) {
        if (!Files.exists(path, *follow)) throw NoSuchFileException(path.toString())
        throw NotRegularException(path)
    }
    return FileChannel.open(path, setOf<OpenOption>(READ, *follow))
}

/** What should be a file is a folder, a link, a pipe or the like. */
internal class NotRegularException(
    path: Path,
) : IOException("$path is not a regular file")

/**
 * The content of a regular file, mapped into memory: what is not looked at is not read, and no copy is made. The file must not be
 * changed in place meanwhile; replacing and removing it does no harm.
 *
 * @param most bytes; a larger file is not read
 * @throws IOException as [openRegular]; or it is larger
 */
@Throws(IOException::class)
internal fun map(
    path: Path,
    most: Long = Int.MAX_VALUE.toLong(),
): ByteBuffer =
    openRegular(path).use {
        val size = it.size()
        if (size > minOf(most, Int.MAX_VALUE.toLong())) throw IOException("it has more than $most bytes")
        it.map(FileChannel.MapMode.READ_ONLY, 0, size)
    }

/**
 * The content of a regular file.
 *
 * @param most bytes; a larger file is not read
 * @throws IOException as [openRegular]; or it is larger
 */
@Throws(IOException::class)
internal fun readBytes(
    path: Path,
    most: Int = MOST_BYTES,
): ByteArray =
    openRegular(path).use {
        val size = it.size()
        if (size > most) throw IOException("it has more than $most bytes")
        val data = ByteBuffer.allocate(size.toInt())
        while (data.hasRemaining()) {
            if (it.read(data) < 0) break
        }
        data.array().copyOf(data.position())
    }
