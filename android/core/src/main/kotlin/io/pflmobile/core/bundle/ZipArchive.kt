package io.pflmobile.core.bundle

import io.pflmobile.core.files.strictly
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import java.nio.charset.CharacterCodingException
import java.util.zip.CRC32
import java.util.zip.DataFormatException
import java.util.zip.Inflater

/** An entry as the directory at the end of a zip has it; nothing of it was checked. */
internal class ZipItem(
    val name: String,
    val flags: Int,
    val method: Int,
    val crc: Long,
    val packed: Long,
    val size: Long,
    val offset: Long,
    /** Kind and permissions of a file on Unix; 0 where the zip has none. */
    val mode: Int,
) {
    val isFolder: Boolean get() = name.endsWith('/')
}

/** The bytes are no zip, or one that was damaged. */
internal class DamagedZipException(
    message: String,
    cause: Throwable? = null,
) : Exception(message, cause)

/**
 * A zip without encryption, without zip64 and on one disk (APPNOTE.TXT of PKWARE, 6.3). The platform's own reader neither tells
 * whether an entry is a link nor, on every Android, sees two entries of one name.
 */
internal class ZipArchive private constructor(
    private val channel: FileChannel,
    val items: List<ZipItem>,
) : AutoCloseable {
    /**
     * Gives the content of an entry in pieces.
     *
     * @param piece takes the first so many bytes of an array; false ends the reading
     * @throws DamagedZipException the entry is not what the directory says
     * @throws IOException the system refuses to read
     */
    fun read(
        item: ZipItem,
        piece: (ByteArray, Int) -> Boolean,
    ) {
        val header = bytes(item.offset, LOCAL)
        if (header.getInt(0) != LOCAL_MAGIC) throw DamagedZipException("bad magic number of its header")
        val nameLength = header.short(26)
        val name = name(bytes(item.offset + LOCAL, nameLength), header.short(6))
        if (item.flags and (PATCHED or STRONG or ENCRYPTED) != 0) throw DamagedZipException("it is encrypted or patched")
        if (name != item.name) throw DamagedZipException("it has another name in its header")
        val start = item.offset + LOCAL + nameLength + header.short(28)
        val crc = CRC32()
        var left = item.size
        var whole = true
        unpacked(item, start) { data, count ->
            val fits = minOf(count.toLong(), left).toInt()
            crc.update(data, 0, fits)
            left -= fits
            whole = fits == 0 || piece(data, fits)
            whole && left > 0
        }
        if (whole && crc.value != item.crc) throw DamagedZipException("its CRC-32 is another")
    }

    override fun close() = channel.close()

    private fun unpacked(
        item: ZipItem,
        start: Long,
        piece: (ByteArray, Int) -> Boolean,
    ) {
        if (item.method == STORED) {
            packed(item, start, piece)
            return
        }
        val inflater = Inflater(true)
        val out = ByteArray(CHUNK)
        try {
            packed(item, start) { data, count ->
                inflater.setInput(data, 0, count)
                var more = true
                while (more && !inflater.finished()) {
                    val found = inflater.inflate(out)
                    if (found == 0) break
                    more = piece(out, found)
                }
                more && !inflater.finished()
            }
        } catch (error: DataFormatException) {
            throw DamagedZipException("its data cannot be inflated: ${error.message}", error)
        } finally {
            inflater.end()
        }
    }

    private fun packed(
        item: ZipItem,
        start: Long,
        piece: (ByteArray, Int) -> Boolean,
    ) {
        val data = ByteBuffer.allocate(CHUNK)
        var at = start
        var left = item.packed
        while (left > 0) {
            data.clear().limit(minOf(left, CHUNK.toLong()).toInt())
            val count = channel.read(data, at)
            if (count <= 0) throw DamagedZipException("the zip ends in it")
            at += count
            left -= count
            if (!piece(data.array(), count)) return
        }
    }

    private fun bytes(
        at: Long,
        count: Int,
    ): ByteBuffer = bytes(channel, at, count)

    companion object {
        const val STORED = 0
        const val DEFLATED = 8
        const val ENCRYPTED = 1
        private const val PATCHED = 0x20
        private const val STRONG = 0x40
        private const val UTF8 = 0x800
        private const val CHUNK = 1 shl 16
        private const val LOCAL = 30
        private const val LOCAL_MAGIC = 0x04034b50
        private const val CENTRAL = 46
        private const val CENTRAL_MAGIC = 0x02014b50
        private const val END = 22
        private const val END_MAGIC = 0x06054b50
        private const val MOST_VERSION = 63
        private const val MOST_DIRECTORY = 64L shl 20

        /**
         * Reads the directory of a zip; the archive closes [channel] when it is closed.
         *
         * @throws DamagedZipException it is no zip
         * @throws IOException the system refuses to read
         */
        fun open(channel: FileChannel): ZipArchive {
            val (end, at) = endRecord(channel)
            val size = end.int(12)
            val shift = at - size - end.int(16)
            val start = end.int(16) + shift
            if (start < 0) throw DamagedZipException("bad offset of its directory")
            if (size > MOST_DIRECTORY) throw DamagedZipException("its directory has $size bytes")
            val directory = bytes(channel, start, size.toInt())
            val items = ArrayList<ZipItem>()
            while (directory.hasRemaining()) items += item(directory, shift)
            return ZipArchive(channel, items)
        }

        /** The record at the end, and where it is: behind it there may be a comment. */
        private fun endRecord(channel: FileChannel): Pair<ByteBuffer, Long> {
            val size = channel.size()
            val from = maxOf(size - END - (1 shl 16), 0)
            val tail = bytes(channel, from, (size - from).toInt())
            val last = tail.limit() - END
            if (last >= 0 && tail.getInt(last) == END_MAGIC && tail.short(last + 20) == 0) return tail.part(last, END) to from + last
            val found = (tail.limit() - 4 downTo 0).firstOrNull { tail.getInt(it) == END_MAGIC }
            if (found == null || found > last) throw DamagedZipException("it is not a zip")
            return tail.part(found, END) to from + found
        }

        private fun item(
            directory: ByteBuffer,
            shift: Long,
        ): ZipItem {
            val at = directory.position()
            if (directory.remaining() < CENTRAL) throw DamagedZipException("its directory is cut short")
            if (directory.getInt(at) != CENTRAL_MAGIC) throw DamagedZipException("bad magic number in its directory")
            val flags = directory.short(at + 8)
            val nameLength = directory.short(at + 28)
            val extraLength = directory.short(at + 30)
            val next = at + CENTRAL + nameLength + extraLength + directory.short(at + 32)
            if (next > directory.limit()) throw DamagedZipException("its directory is cut short")
            if (directory.get(at + 6).toInt() and 0xff > MOST_VERSION) throw DamagedZipException("it is of a newer kind of zip")
            checkExtra(directory.part(at + CENTRAL + nameLength, extraLength))
            directory.position(next)
            return ZipItem(
                name(directory.part(at + CENTRAL, nameLength), flags),
                flags,
                directory.short(at + 10),
                directory.int(at + 16),
                directory.int(at + 20),
                directory.int(at + 24),
                directory.int(at + 42) + shift,
                directory.short(at + 40),
            )
        }

        private fun checkExtra(extra: ByteBuffer) {
            var at = 0
            while (extra.limit() - at >= 4) {
                at += 4 + extra.short(at + 2)
                if (at > extra.limit()) throw DamagedZipException("an extra field is cut short")
            }
        }

        private fun name(
            bytes: ByteBuffer,
            flags: Int,
        ): String =
            try {
                // Not the code page of DOS, which some Androids lack: what is not ASCII is refused whatever it means.
                strictly(if (flags and UTF8 != 0) Charsets.UTF_8 else Charsets.ISO_8859_1, bytes)
            } catch (error: CharacterCodingException) {
                throw DamagedZipException("a name is not UTF-8", error)
            }

        private fun bytes(
            channel: FileChannel,
            at: Long,
            count: Int,
        ): ByteBuffer {
            if (at < 0 || at + count > channel.size()) throw DamagedZipException("it is cut short")
            val data = ByteBuffer.allocate(count).order(ByteOrder.LITTLE_ENDIAN)
            while (data.hasRemaining()) {
                if (channel.read(data, at + data.position()) < 0) throw DamagedZipException("it is cut short")
            }
            return data.flip() as ByteBuffer
        }

        private fun ByteBuffer.short(at: Int): Int = getShort(at).toInt() and 0xffff

        private fun ByteBuffer.int(at: Int): Long = getInt(at).toLong() and 0xffffffffL

        private fun ByteBuffer.part(
            at: Int,
            count: Int,
        ): ByteBuffer = (duplicate().limit(at + count).position(at) as ByteBuffer).slice().order(ByteOrder.LITTLE_ENDIAN)
    }
}
