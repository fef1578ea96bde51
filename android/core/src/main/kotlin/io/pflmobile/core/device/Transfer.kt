package io.pflmobile.core.device

import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.errors.ProtocolException
import io.pflmobile.core.errors.ServerProblemException
import io.pflmobile.core.errors.UnreachableException
import io.pflmobile.core.files.RealDisk
import io.pflmobile.core.files.diskErrors
import io.pflmobile.core.files.hex
import io.pflmobile.core.files.owner
import io.pflmobile.core.protocol.Download
import io.pflmobile.core.protocol.SAFETENSORS
import io.pflmobile.core.protocol.UploadState
import io.pflmobile.core.protocol.UploadStatus
import okhttp3.MediaType
import okhttp3.MediaType.Companion.toMediaType
import okhttp3.RequestBody
import okhttp3.Response
import okio.BufferedSink
import java.io.EOFException
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.nio.file.Files
import java.nio.file.OpenOption
import java.nio.file.Path
import java.nio.file.StandardOpenOption.APPEND
import java.nio.file.StandardOpenOption.CREATE
import java.nio.file.StandardOpenOption.TRUNCATE_EXISTING
import java.nio.file.StandardOpenOption.WRITE
import java.security.MessageDigest
import kotlin.io.path.deleteIfExists
import kotlin.io.path.exists
import kotlin.io.path.fileSize
import kotlin.io.path.inputStream
import kotlin.io.path.name

// Downloads and uploads that go on where a connection broke.

private const val CHUNK = 1 shl 16
private const val PARTIAL = 206

/**
 * Downloads a set of values to a file. It resumes what an earlier attempt left, even one that was killed.
 *
 * @param what address, size and digest
 * @param to the file; it is there only once it is complete and its digest is right
 * @throws UnreachableException given up; what has arrived stays for the next time
 * @throws ServerProblemException the aggregator refuses
 * @throws io.pflmobile.core.errors.StorageFullException the disk
 * @throws io.pflmobile.core.errors.UnwritableException the disk
 */
internal suspend fun download(
    client: Client,
    what: Download,
    to: Path,
) {
    val part = to.resolveSibling("${to.name}.part")

    fun have() = diskErrors(part) { if (part.exists()) part.fileSize() else 0 }
    if (what.bytes == 0L) diskErrors(to) { open(part, WRITE, CREATE, TRUNCATE_EXISTING).close() }
    client.retrying(::have) {
        if (have() > what.bytes) diskErrors(part) { part.deleteIfExists() }
        if (have() < what.bytes) fetch(client, what, part, have())
        if (have() < what.bytes) throw UnreachableException("${what.url} broke off", mend = "try again")
        val digest = sha256(part)
        if (digest != what.sha256) {
            diskErrors(part) { part.deleteIfExists() }
            throw UnreachableException(
                "${what.url} arrived with the digest ${digest.take(SHOWN)}..., not ${what.sha256.take(SHOWN)}...",
                mend = "try again; if it stays so, something between changes the bytes",
            )
        }
    }
    diskErrors(to) {
        RealDisk.rename(part, to)
        RealDisk.syncFolder(to.parent)
    }
}

private const val SHOWN = 12

private fun open(
    path: Path,
    vararg options: OpenOption,
): FileChannel = FileChannel.open(path, setOf(*options), *owner(path, "rw-------"))

private suspend fun fetch(
    client: Client,
    what: Download,
    part: Path,
    have: Long,
) {
    val headers = if (have > 0) mapOf("If-Range" to "\"${what.sha256}\"", "Range" to "bytes=$have-") else emptyMap()
    client.exchange("GET", what.url, headers) { response ->
        val wentOn = response.code == PARTIAL
        if (wentOn && response.header("Content-Range")?.startsWith("bytes $have-") != true) {
            throw ProtocolException(
                "${what.url} was asked for from byte $have on, the answer is '${response.header("Content-Range")?.take(SHOWN)}'",
                mend = "check what lies between device and aggregator",
            )
        }
        append(client, what, response, part, if (wentOn) have else 0)
    }
}

private fun append(
    client: Client,
    what: Download,
    response: Response,
    part: Path,
    have: Long,
) {
    val channel = diskErrors(part) { open(part, WRITE, CREATE, if (have > 0) APPEND else TRUNCATE_EXISTING) }
    channel.use { file ->
        var done = have
        try {
            client.pieces(response) { piece, count ->
                done += count
                if (done > what.bytes) {
                    throw ProtocolException(
                        "${what.url} has more than the ${what.bytes} bytes that the task says",
                        mend = "check what lies between device and aggregator",
                    )
                }
                diskErrors(part) { RealDisk.write(file, ByteBuffer.wrap(piece, 0, count)) }
            }
        } finally {
            diskErrors(part) { file.force(false) }
        }
    }
}

/** Digest of a file. */
internal fun sha256(path: Path): String {
    val sha = MessageDigest.getInstance("SHA-256")
    diskErrors(path) {
        path.inputStream().use { stream ->
            val buffer = ByteArray(CHUNK)
            while (true) {
                val count = stream.read(buffer)
                if (count < 0) break
                sha.update(buffer, 0, count)
            }
        }
    }
    return hex(sha.digest())
}

/**
 * Sends an update; a part that arrived before stays and is not sent again.
 *
 * @param url of the task's update
 * @param file the update
 * @param key idempotency key, the same for every try
 * @param resume something may have been sent before (the process was started again)
 * @return the aggregator's answer: accepted
 * @throws UnreachableException given up for now
 * @throws ServerProblemException the aggregator refuses the update
 * @throws DeviceFolderException the file cannot be read
 */
internal suspend fun upload(
    client: Client,
    url: String,
    file: Path,
    key: String,
    resume: Boolean = false,
): UploadState {
    val size =
        try {
            file.fileSize()
        } catch (error: IOException) {
            throw DeviceFolder.unreadable(file, error)
        }
    var sent = 0L // what the aggregator has,
    var sure = !resume // and whether that is known
    return client.retrying({ sent }) {
        if (!sure) {
            val (offset, complete) = received(client, url, key, size)
            sent = offset
            if (complete) {
                val task = url.split('/').let { it[it.size - 2] }
                return@retrying UploadState(UploadStatus.ACCEPTED, task, size, duplicate = true)
            }
        }
        sure = false // until the answer is here
        val headers = mapOf("Idempotency-Key" to key, "Upload-Offset" to "$sent", "Upload-Length" to "$size")
        val answer =
            try {
                client.exchange("PUT", url, headers, FileBody(client, file, sent, size)) { response ->
                    parse(UploadState.serializer(), client.read(response), "PUT $url")
                }
            } catch (problem: ServerProblemException) {
                if (problem.code != "offset-mismatch") throw problem
                throw UnreachableException("the aggregator has another part of the update", mend = "try again", problem)
            }
        if (answer.status == UploadStatus.PARTIAL) {
            throw UnreachableException("${answer.received} of $size bytes arrived", mend = "try again")
        }
        answer
    }
}

/**
 * How many bytes of the update the aggregator has, and whether that is all. A task that is over answers an error without a body; the
 * upload is then tried from the beginning, which tells why.
 */
private suspend fun received(
    client: Client,
    url: String,
    key: String,
    size: Long,
): Pair<Long, Boolean> {
    val (offset, complete) =
        try {
            client.exchange("HEAD", url, mapOf("Idempotency-Key" to key)) { response ->
                (response.header("Upload-Offset") ?: "0") to (response.header("Upload-Complete") == "?1")
            }
        } catch (problem: ServerProblemException) {
            if (problem.passing) throw problem
            return 0L to false
        }
    val found = offset.takeIf { text -> text.all { it in '0'..'9' } }?.toLongOrNull()?.takeIf { it <= size }
    if (found == null) {
        throw ProtocolException("the aggregator says that it has '${offset.take(SHOWN)}' of $size bytes", mend = "drop the update")
    }
    return found to complete
}

/** The rest of a file, counted as it goes out. */
private class FileBody(
    private val client: Client,
    private val file: Path,
    private val offset: Long,
    private val size: Long,
) : RequestBody() {
    override fun contentType(): MediaType = SAFETENSORS.toMediaType()

    override fun contentLength(): Long = size - offset

    override fun isOneShot(): Boolean = true

    @Throws(IOException::class)
    override fun writeTo(sink: BufferedSink) {
        reading { Files.newByteChannel(file) }.use { channel ->
            reading { channel.position(offset) }
            val buffer = ByteBuffer.allocate(CHUNK)
            var left = contentLength()
            while (left > 0) {
                if (reading { channel.read(buffer) } < 0) reading<Unit> { throw EOFException("it was cut short meanwhile") }
                buffer.flip()
                val count = minOf(buffer.remaining().toLong(), left).toInt()
                client.traffic.up.addAndGet(count.toLong())
                sink.write(buffer.array(), 0, count)
                left -= count
                buffer.clear()
            }
        }
    }

    /** What goes wrong with the file is not taken for the network. */
    private inline fun <T> reading(step: () -> T): T =
        try {
            step()
        } catch (error: IOException) {
            throw OwnFileException(DeviceFolder.unreadable(file, error))
        }
}

/** A file of this device cannot be read while it is sent; [error] says so. An [IOException], as the HTTP library knows only these. */
internal class OwnFileException(
    val error: DeviceFolderException,
) : IOException(error)
