package io.pflmobile.core.bundle

import io.pflmobile.core.errors.MissingFileException
import io.pflmobile.core.errors.NotABundleException
import io.pflmobile.core.errors.TamperedBundleException
import io.pflmobile.core.errors.TruncatedFileException
import io.pflmobile.core.errors.UnreadableFileException
import io.pflmobile.core.errors.UnsafePathException
import io.pflmobile.core.files.NotRegularException
import io.pflmobile.core.files.openRegular
import java.io.ByteArrayOutputStream
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.nio.file.Files
import java.nio.file.LinkOption.NOFOLLOW_LINKS
import java.nio.file.NoSuchFileException
import java.nio.file.Path
import java.nio.file.attribute.BasicFileAttributes
import kotlin.io.path.name

internal const val OBTAIN_AGAIN: String = "obtain the bundle again, or export it again"
private const val GIVE = "give the folder of a bundle, or its .pflb file"
private const val CHUNK = 1 shl 16

/** Where the files of a bundle come from. */
internal interface BundleSource : AutoCloseable {
    /** Path and length in bytes of each file there is; links and the like are refused on the way. */
    fun files(): Sequence<Pair<String, Long>>

    /** Gives the content in pieces, as the first so many bytes of an array; stops after the piece that goes beyond [limit] bytes. */
    fun read(
        path: String,
        limit: Long,
        piece: (ByteArray, Int) -> Unit,
    )

    /** Whether there is such a file. */
    fun has(path: String): Boolean

    /** The whole content when it has at most [limit] bytes; null when there is no such file. */
    fun small(
        path: String,
        limit: Int,
    ): ByteArray? {
        if (!has(path)) return null
        val out = ByteArrayOutputStream()
        read(path, limit.toLong()) { data, count -> out.write(data, 0, count) }
        if (out.size() > limit) throw NotABundleException("$path has more than $limit bytes, which no bundle needs", OBTAIN_AGAIN)
        return out.toByteArray()
    }

    companion object {
        /**
         * The folder or zip at [path].
         *
         * @throws MissingFileException nothing is there
         * @throws NotABundleException it is neither a folder nor a zip
         * @throws TruncatedFileException it is the beginning of a zip
         * @throws UnsafePathException the zip has entries that no bundle has
         * @throws TamperedBundleException likewise
         * @throws UnreadableFileException the system refuses to read it
         */
        fun open(path: Path): BundleSource = if (Files.isDirectory(path)) FolderSource(path) else ZipSource.open(path)
    }
}

/** Calls [step] and turns what the system says of file [name] at [path] into errors of bundles. */
internal inline fun <T> bundleErrors(
    name: String,
    path: Path,
    step: () -> T,
): T =
    try {
        step()
    } catch (error: NoSuchFileException) {
        throw MissingFileException("$name is not there ($path)", OBTAIN_AGAIN, error)
    } catch (error: NotRegularException) {
        throw UnsafePathException("$path is not a regular file", "replace it by a file", error)
    } catch (error: IOException) {
        throw UnreadableFileException(
            "cannot read $name ($path): ${error.message}",
            "check the permissions of the file and its folder",
            error,
        )
    }

/** A bundle that is a folder. */
internal class FolderSource(
    private val folder: Path,
) : BundleSource {
    override fun files(): Sequence<Pair<String, Long>> = scan(folder, "")

    override fun has(path: String): Boolean {
        if (Files.isSymbolicLink(folder.resolve(path))) throw link(path)
        return Files.exists(folder.resolve(path), NOFOLLOW_LINKS)
    }

    override fun read(
        path: String,
        limit: Long,
        piece: (ByteArray, Int) -> Unit,
    ) {
        val file = folder.resolve(path)
        val data = ByteBuffer.allocate(CHUNK)
        var left = limit
        bundleErrors(path, file) { openRegular(file, links = false) }.use { channel ->
            while (left >= 0) {
                data.clear()
                val count = bundleErrors(path, file) { channel.read(data) }
                if (count <= 0) return
                left -= count
                piece(data.array(), count)
            }
        }
    }

    override fun close() = Unit

    private fun scan(
        folder: Path,
        prefix: String,
    ): Sequence<Pair<String, Long>> =
        sequence {
            for (entry in list(folder)) {
                val path = prefix + entry.name
                val found = bundleErrors(path, entry) { Files.readAttributes(entry, BasicFileAttributes::class.java, NOFOLLOW_LINKS) }
                when {
                    found.isSymbolicLink -> throw link(path)
                    found.isDirectory -> yieldAll(scan(entry, "$path/"))
                    found.isRegularFile -> yield(path to found.size())
                    else -> throw UnsafePathException("$path in the bundle is not a regular file", OBTAIN_AGAIN)
                }
            }
        }

    private fun list(folder: Path): List<Path> =
        bundleErrors("a folder", folder) { Files.newDirectoryStream(folder).use { all -> all.sortedBy { it.name } } }
}

/** A bundle that is a zip. Names, kinds and lengths of all entries are checked before any is read. */
internal class ZipSource private constructor(
    private val archive: ZipArchive,
    private val path: Path,
) : BundleSource {
    private val entries: Map<String, ZipItem>

    init {
        val files = archive.items.filterNot { it.isFolder }
        files.forEach(::check)
        refuseDuplicates()
        entries = files.associateBy { it.name }
    }

    override fun files(): Sequence<Pair<String, Long>> = entries.values.asSequence().map { it.name to it.size }

    override fun has(path: String): Boolean = path in entries

    override fun read(
        path: String,
        limit: Long,
        piece: (ByteArray, Int) -> Unit,
    ) {
        var left = limit
        try {
            archive.read(entries.getValue(path)) { data, count ->
                left -= count
                piece(data, count)
                left >= 0
            }
        } catch (error: DamagedZipException) {
            throw TamperedBundleException("$path is damaged in the zip: ${error.message}", OBTAIN_AGAIN, error)
        } catch (error: IOException) {
            throw UnreadableFileException("cannot read $path in the zip ${this.path}: ${error.message}", OBTAIN_AGAIN, error)
        }
    }

    override fun close() = archive.close()

    private fun check(item: ZipItem) {
        when (item.mode and KIND) {
            LINK -> throw link(item.name)
            0, REGULAR -> Unit
            else -> throw UnsafePathException("'${item.name}' in the zip is not a regular file", OBTAIN_AGAIN)
        }
        Paths.check(item.name)
        if (item.flags and ZipArchive.ENCRYPTED != 0 || (item.method != ZipArchive.STORED && item.method != ZipArchive.DEFLATED)) {
            throw NotABundleException(
                "${item.name} in the zip is encrypted or packed in a way that bundles are not",
                "pack it again with: pfl-export, or with plain zip (stored or deflate)",
            )
        }
    }

    private fun refuseDuplicates() {
        val seen = archive.items.groupingBy { it.name }.eachCount()
        for ((name, count) in seen) {
            if (name.endsWith('/')) Paths.check(name.removeSuffix("/"))
            if (count > 1) throw TamperedBundleException("the zip has two files named '$name'", OBTAIN_AGAIN)
        }
        Paths.checkDistinct(seen.keys.filterNot { it.endsWith('/') })
    }

    companion object {
        // Of the mode of a file on Unix.
        private const val KIND = 0xf000
        private const val LINK = 0xa000
        private const val REGULAR = 0x8000

        fun open(path: Path): ZipSource {
            val channel =
                try {
                    openRegular(path)
                } catch (error: NoSuchFileException) {
                    throw MissingFileException("there is no bundle at $path", "check the path", error)
                } catch (error: NotRegularException) {
                    throw NotABundleException("$path is neither a folder nor a file", GIVE, error)
                } catch (error: IOException) {
                    throw UnreadableFileException("cannot read $path: ${error.message}", "check its permissions", error)
                }
            var opened: ZipSource? = null
            try {
                return ZipSource(ZipArchive.open(channel), path).also { opened = it }
            } catch (error: DamagedZipException) {
                throw notAZip(path, start(channel), error)
            } catch (error: IOException) {
                throw UnreadableFileException("cannot read $path: ${error.message}", "check its permissions", error)
            } finally {
                if (opened == null) channel.close()
            }
        }

        private fun notAZip(
            path: Path,
            start: List<Byte>,
            error: DamagedZipException,
        ) = when (start) {
            "PK\u0003\u0004".map { it.code.toByte() } -> {
                TruncatedFileException("$path is an incomplete or damaged zip: ${error.message}", OBTAIN_AGAIN, error)
            }

            else -> {
                NotABundleException(
                    "$path ${if (start.isEmpty()) "is empty" else "is not a zip"}, so it is not a bundle",
                    GIVE,
                    error,
                )
            }
        }

        private fun start(channel: FileChannel): List<Byte> {
            val data = ByteBuffer.allocate(4)
            channel.read(data, 0)
            return data.array().take(data.position())
        }
    }
}

private fun link(path: String) =
    UnsafePathException(
        "'$path' in the bundle is a symbolic link, which could lead anywhere",
        "put the file itself in its place; if you did not make this bundle, do not use it",
    )
