package io.pflmobile.core.files

import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.nio.file.Path

/** Ends "the process" at its step number [dies], counted from 1: that step is half done or not, and nothing happens after it. */
internal class DyingDisk(
    private val dies: Int,
) : Disk {
    class Killed : Error()

    var steps = 0
        private set

    private fun step(half: () -> Unit = {}) {
        steps++
        if (steps == dies) half()
        if (steps >= dies) throw Killed()
    }

    override fun create(path: Path): FileChannel {
        step()
        return RealDisk.create(path)
    }

    override fun write(
        channel: FileChannel,
        data: ByteBuffer,
    ) {
        step { channel.write(data.duplicate().limit(data.limit() / 2) as ByteBuffer) }
        RealDisk.write(channel, data)
    }

    override fun sync(channel: FileChannel) {
        step()
        RealDisk.sync(channel)
    }

    override fun rename(
        from: Path,
        to: Path,
    ) {
        step()
        RealDisk.rename(from, to)
    }

    override fun syncFolder(folder: Path) {
        step()
        RealDisk.syncFolder(folder)
    }

    override fun delete(path: Path) {
        step()
        RealDisk.delete(path)
    }
}

/** Has room for [room] bytes, then none; and says so as Linux and Android do. */
internal class FullDisk(
    private var room: Int,
) : Disk by RealDisk {
    override fun write(
        channel: FileChannel,
        data: ByteBuffer,
    ) {
        val fits = minOf(room, data.remaining())
        room -= fits
        RealDisk.write(channel, data.duplicate().limit(data.position() + fits) as ByteBuffer)
        if (fits < data.remaining()) throw IOException("No space left on device")
    }
}
