package io.pflmobile.core.bundle

import io.pflmobile.core.errors.BundleTooLargeException
import io.pflmobile.core.errors.InvalidManifestException
import io.pflmobile.core.errors.MissingFileException
import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.errors.TamperedBundleException
import io.pflmobile.core.errors.TruncatedFileException
import io.pflmobile.core.errors.near
import io.pflmobile.core.files.Safetensors
import io.pflmobile.core.files.diskErrors
import io.pflmobile.core.files.hex
import io.pflmobile.core.files.map
import io.pflmobile.core.files.openRegular
import io.pflmobile.core.files.strictly
import io.pflmobile.core.tensors.Tensor
import java.io.Closeable
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.nio.charset.CharacterCodingException
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.StandardOpenOption.CREATE_NEW
import java.nio.file.StandardOpenOption.WRITE
import java.security.MessageDigest
import java.util.concurrent.atomic.AtomicBoolean

/** Told while files of a bundle are read; what it throws ends the reading. */
public fun interface BundleProgress {
    /** So many bytes of [total] are done, the last of them of [file]. */
    public fun onProgress(
        file: String,
        done: Long,
        total: Long,
    )
}

/**
 * An open, verified bundle: nothing of it is used before all of it is checked. Close it, so that an unpacked zip is removed.
 *
 * @property folder where its files lie
 * @property manifest what is in it
 * @property signedBy public key of the signature in hex, or null when it is not signed
 * @property pinned whether the signature was checked against a key that the opener gave: someone whom the opener knows vouches for
 *   every byte
 */
public class Bundle private constructor(
    public val folder: Path,
    public val manifest: Manifest,
    public val signedBy: String?,
    public val pinned: Boolean,
    /** sha256 of `manifest.json` in hex, which has the digests of all files: it stands for the whole bundle. */
    public val digest: String,
    private val unpacked: Boolean,
) : Closeable {
    private val closed = AtomicBoolean()

    /** Removes what was unpacked; paths given out before are then gone. */
    override fun close() {
        if (unpacked && !closed.getAndSet(true)) remove(folder)
    }

    /**
     * Where file [name] of the manifest lies.
     *
     * @throws MissingFileException the manifest has no such file
     */
    public fun path(name: String): Path {
        if (name !in manifest.files) {
            throw MissingFileException("bundle '${manifest.name}' has no file '$name'", near(name, manifest.files.keys))
        }
        return folder.resolve(name)
    }

    /**
     * The bytes of file [name], checked again: these very bytes have the digest of the manifest.
     *
     * @throws MissingFileException as [open]; so are the others
     * @throws TruncatedFileException it has another length
     * @throws TamperedBundleException it has other bytes
     * @throws io.pflmobile.core.errors.UnreadableFileException the system refuses to read it
     */
    public fun read(name: String): ByteArray {
        val data = mapped(name)
        return ByteArray(data.remaining()).also { data.get(it) }
    }

    /**
     * Initial values of all device tensors, by name, in the order of the manifest.
     *
     * @throws io.pflmobile.core.errors.TensorFileException the file is damaged; or as [read]
     * @throws io.pflmobile.core.errors.TensorMismatchException it does not hold what the manifest says
     */
    public fun values(): Map<String, Tensor> {
        val tensors = Safetensors.read(mapped(manifest.values), manifest.values).tensors
        Content.checkValues(manifest, tensors)
        return manifest.tensors.associate { it.name to tensors.getValue(it.name) }
    }

    /**
     * For each program with a golden call: its complete inputs, and the outputs that PyTorch gave.
     *
     * @throws io.pflmobile.core.errors.TensorFileException the file is damaged; or as [read]
     * @throws io.pflmobile.core.errors.TensorMismatchException it does not fit the programs
     */
    public fun golden(): Map<String, GoldenCase> {
        val tensors = Safetensors.read(mapped(manifest.golden), manifest.golden).tensors
        return Content.goldenCases(manifest, tensors, values())
    }

    /** The text of the plan; errors as [read], and [InvalidManifestException] where it is not UTF-8. */
    public fun planJson(): String =
        try {
            strictly(Charsets.UTF_8, mapped(manifest.plan))
        } catch (error: CharacterCodingException) {
            throw InvalidManifestException("${manifest.plan} is not UTF-8 text", OBTAIN_AGAIN, error)
        }

    /** The bytes of the tokenizer, or null for a model that has none; errors as [read]. */
    public fun tokenizer(): ByteArray? = manifest.tokenizer?.let(::read)

    /**
     * The files of [engine] by purpose.
     *
     * @throws io.pflmobile.core.errors.EngineUnavailableException there are none
     */
    public fun engineFiles(engine: String): Map<String, Path> = manifest.engine(engine).files.mapValues { path(it.value) }

    /** The checked content of a file, mapped into memory. */
    private fun mapped(name: String): ByteBuffer {
        val file = path(name)
        val expected = manifest.files.getValue(name)
        val length = bundleErrors(name, file) { openRegular(file, links = false).use { it.size() } }
        if (length != expected.bytes) throw otherLength(name, expected.bytes, length)
        val data = bundleErrors(name, file) { map(file) }
        val sha = MessageDigest.getInstance("SHA-256").also { it.update(data.duplicate()) }
        if (hex(sha.digest()) != expected.sha256) throw otherBytes(name)
        return data
    }

    /** Opens bundles. */
    public companion object {
        // No manifest is as large as this: it bounds what is read before a signature is checked.
        private const val MAX_MANIFEST_BYTES = 32 shl 20

        /** Bytes of a bundle's files together, unless the caller allows more. */
        public const val MAX_BYTES: Long = 4L shl 30

        /**
         * Checks every file of a bundle and opens it.
         *
         * @param path its folder or its `.pflb` zip; a zip is unpacked into a folder of its own
         * @param publicKey the pinned key; with one, only a bundle signed by it is opened
         * @param requireSignature refuse an unsigned bundle also when no key is pinned
         * @param cacheFolder where to unpack a zip; the system's temporary folder by default
         * @param maxBytes refuse a bundle with more bytes, before any is unpacked
         * @param progress told while files are read
         * @throws MissingFileException the bundle, its manifest, or a file that the manifest lists is not there
         * @throws io.pflmobile.core.errors.NotABundleException the path is neither a folder nor a zip, or the zip is of an unknown kind
         * @throws io.pflmobile.core.errors.SignatureException unsigned, signed by another key, or changed since
         * @throws io.pflmobile.core.errors.SchemaVersionException made by a newer version of pfl-mobile
         * @throws InvalidManifestException the manifest breaks its schema
         * @throws TruncatedFileException a file has another length than the manifest says
         * @throws TamperedBundleException a file has other bytes than the manifest says, or is not listed there
         * @throws io.pflmobile.core.errors.UnsafePathException a path, link or special file would lead out of the bundle
         * @throws BundleTooLargeException more than [maxBytes]
         * @throws io.pflmobile.core.errors.UnreadableFileException the system refuses to read a file
         * @throws StorageFullException no room to unpack the zip
         */
        public fun open(
            path: Path,
            publicKey: VerificationKey? = null,
            requireSignature: Boolean = false,
            cacheFolder: Path? = null,
            maxBytes: Long = MAX_BYTES,
            progress: BundleProgress? = null,
        ): Bundle {
            val where = path.toAbsolutePath()
            BundleSource.open(where).use { source ->
                val data = source.small(Paths.MANIFEST, MAX_MANIFEST_BYTES) ?: throw noManifest(where, source)
                // First the signature, so that as little as possible is done with bytes of unknown origin.
                val signature = source.small(Paths.SIGNATURE, Signatures.MAX_BYTES)
                val check = signature != null || publicKey != null || requireSignature
                val signedBy = if (check) Signatures.verify(data, signature, publicKey) else null
                val manifest = ManifestReader.parse(data)
                checkPresence(source, manifest, maxBytes)
                val unpack = source !is FolderSource
                val folder = if (unpack) unpack(source, where, manifest, data, signature, cacheFolder, progress) else where
                if (!unpack) checkFiles(source, manifest, null, progress)
                val digest = hex(MessageDigest.getInstance("SHA-256").digest(data))
                return Bundle(folder, manifest, signedBy, publicKey != null, digest, unpack)
            }
        }

        private fun noManifest(
            path: Path,
            source: BundleSource,
        ): MissingFileException {
            val inner =
                try {
                    source
                        .files()
                        .take(1000)
                        .map { it.first }
                        .find { it.endsWith("/" + Paths.MANIFEST) }
                } catch (_: io.pflmobile.core.errors.BundleException) {
                    null
                }
            val mend = inner?.let { "the bundle may be in its folder '${it.removeSuffix("/" + Paths.MANIFEST)}'" }
            return MissingFileException(
                "$path has no ${Paths.MANIFEST}, so it is not a bundle",
                mend ?: "give the folder of a bundle, or its .pflb zip",
            )
        }

        /** Names and lengths, before any large file is read. */
        private fun checkPresence(
            source: BundleSource,
            manifest: Manifest,
            maxBytes: Long,
        ) {
            val total = manifest.measured.totalBytes
            if (total > maxBytes) {
                throw BundleTooLargeException(
                    "the bundle has $total bytes, more than the $maxBytes allowed",
                    "raise maxBytes if you trust where the bundle came from",
                )
            }
            val sizes = HashMap<String, Long>()
            for ((path, size) in source.files()) {
                if (path in manifest.files) {
                    sizes[path] = size
                } else if (path != Paths.MANIFEST && path != Paths.SIGNATURE) {
                    throw TamperedBundleException(
                        "'$path' is in the bundle, but its manifest does not list it",
                        "remove it, or $OBTAIN_AGAIN",
                    )
                }
            }
            for ((path, expected) in manifest.files) {
                val size = sizes[path] ?: throw MissingFileException("$path, which the manifest lists, is not in the bundle", OBTAIN_AGAIN)
                if (size != expected.bytes) throw otherLength(path, expected.bytes, size)
            }
        }

        /** Reads every file once, and puts it into [target] on the way. */
        private fun checkFiles(
            source: BundleSource,
            manifest: Manifest,
            target: Path?,
            progress: BundleProgress?,
        ) {
            var done = 0L
            for ((path, expected) in manifest.files) {
                val sha = MessageDigest.getInstance("SHA-256")
                var count = 0L
                val out = target?.let { create(it.resolve(path)) }
                out.use {
                    source.read(path, expected.bytes) { data, length ->
                        sha.update(data, 0, length)
                        count += length
                        out?.write(data, length)
                        progress?.onProgress(path, done + count, manifest.measured.totalBytes)
                    }
                }
                if (count != expected.bytes) throw otherLength(path, expected.bytes, count)
                if (hex(sha.digest()) != expected.sha256) throw otherBytes(path)
                done += count
            }
        }

        private fun create(file: Path): FileChannel =
            diskErrors(file) {
                Files.createDirectories(file.parent)
                FileChannel.open(file, CREATE_NEW, WRITE)
            }

        private fun FileChannel.write(
            data: ByteArray,
            length: Int,
        ) {
            val buffer = ByteBuffer.wrap(data, 0, length)
            while (buffer.hasRemaining()) write(buffer)
        }

        private fun unpack(
            source: BundleSource,
            where: Path,
            manifest: Manifest,
            manifestBytes: ByteArray,
            signature: ByteArray?,
            cacheFolder: Path?,
            progress: BundleProgress?,
        ): Path {
            val needed = manifest.measured.totalBytes + manifestBytes.size + Signatures.MAX_BYTES
            return diskErrors(cacheFolder ?: where) {
                val folder =
                    if (cacheFolder == null) Files.createTempDirectory(PREFIX) else Files.createTempDirectory(cacheFolder, PREFIX)
                var whole = false
                try {
                    // Android knows no FileStore.
                    if (folder.toFile().usableSpace < needed) {
                        throw StorageFullException(
                            "no space to unpack $where: it needs $needed bytes",
                            "free some space, or give another cacheFolder",
                        )
                    }
                    checkFiles(source, manifest, folder, progress)
                    Files.write(folder.resolve(Paths.MANIFEST), manifestBytes)
                    if (signature != null) Files.write(folder.resolve(Paths.SIGNATURE), signature)
                    whole = true
                    folder
                } finally {
                    if (!whole) remove(folder)
                }
            }
        }

        private const val PREFIX = "pfl-bundle-"

        /** Removes a folder of ours; what cannot be removed stays until the system clears its cache. */
        private fun remove(folder: Path) {
            folder.toFile().deleteRecursively()
        }

        private fun otherLength(
            path: String,
            expected: Long,
            found: Long,
        ) = TruncatedFileException("$path has $found bytes, but the manifest says $expected", OBTAIN_AGAIN)

        private fun otherBytes(path: String) =
            TamperedBundleException("$path is not the file that the manifest lists (sha256 differs)", OBTAIN_AGAIN)
    }
}
