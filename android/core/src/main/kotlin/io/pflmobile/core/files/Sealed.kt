package io.pflmobile.core.files

import io.pflmobile.core.errors.NewerFileException
import io.pflmobile.core.errors.TensorFileException
import io.pflmobile.core.tensors.NameOrder
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.tensors.littleEndian
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest

/** Tensors and a head of JSON in one safetensors file, with a digest of both: states and checkpoints. */
internal object Sealed {
    private const val AGAIN = "restore it from a copy"

    /**
     * The bytes of a file.
     *
     * @param head JSON of an object; with a name of the format also `schema_version`
     * @param form name of the format; null where there is none
     * @param finite refuse NaN and infinity
     * @throws io.pflmobile.core.errors.NonFiniteException as [Safetensors.write]
     * @throws TensorFileException likewise
     */
    fun seal(
        tensors: Map<String, Tensor>,
        head: String,
        form: String?,
        finite: Boolean = false,
    ): ByteArray {
        val notes = mapOf("head" to head, "sha256" to digest(tensors, head)) + if (form == null) emptyMap() else mapOf("format" to form)
        return Safetensors.write(tensors, notes, finite)
    }

    /**
     * Tensors and head of a file.
     *
     * @param form name of the format
     * @param schemaVersion the newest that is understood
     * @param what names the file in errors
     * @throws NewerFileException the file is of a newer schema
     * @throws TensorFileException it is damaged, or of another format
     */
    fun unseal(
        data: ByteBuffer,
        form: String?,
        schemaVersion: Long,
        what: String,
    ): Pair<Map<String, Tensor>, JsonObject> {
        val file = Safetensors.read(data, what)
        val text = file.metadata["head"].orEmpty()
        if (file.metadata["format"] != form || file.metadata["sha256"] != digest(file.tensors, text)) {
            throw TensorFileException("$what does not match its digest", AGAIN)
        }
        val (head, version) =
            damagedHead(what) {
                val head = requireNotNull(parseJson(text, finite = false) as? JsonObject) { "it is no object" }
                val version = head["schema_version"] ?: JsonPrimitive(0)
                require(version is JsonPrimitive && !version.isString) { "its schema_version is no number" }
                head to version.content.toBigInteger()
            }
        if (version > schemaVersion.toBigInteger()) {
            throw NewerFileException("$what has schema $version, newer than $schemaVersion", "update the app")
        }
        return file.tensors to head
    }

    /** Turns what goes wrong where the parts of a head are taken into [TensorFileException]: a digest says that a file is whole only. */
    inline fun <T> damagedHead(
        what: String,
        take: () -> T,
    ): T =
        try {
            take()
        } catch (error: IllegalArgumentException) {
            throw TensorFileException("the head of $what is damaged: ${error.message}", AGAIN, error)
        }

    /**
     * sha256 over [text], then name, dtype, shape and little-endian bytes of each tensor in order of name, in hex. Each part is preceded
     * by its length in bytes as 8 little-endian bytes.
     */
    fun digest(
        tensors: Map<String, Tensor>,
        text: String = "",
    ): String {
        val sha = MessageDigest.getInstance("SHA-256")

        fun part(data: ByteArray) {
            sha.update(
                ByteBuffer
                    .allocate(8)
                    .order(ByteOrder.LITTLE_ENDIAN)
                    .putLong(data.size.toLong())
                    .array(),
            )
            sha.update(data)
        }
        part(text.encodeToByteArray())
        for ((name, tensor) in tensors.entries.sortedWith(compareBy(NameOrder) { it.key })) {
            part(name.encodeToByteArray())
            part("${tensor.dtype.wireName} ${tensor.shape}".encodeToByteArray())
            part(tensor.littleEndian())
        }
        return hex(sha.digest())
    }
}

internal fun hex(bytes: ByteArray): String = bytes.joinToString("") { (it.toInt() and 0xff).toString(16).padStart(2, '0') }

/** The bytes of an even number of hex digits; null for other text. */
internal fun fromHex(text: String): ByteArray? {
    if (text.length % 2 != 0 || !text.all { it in '0'..'9' || it in 'a'..'f' || it in 'A'..'F' }) return null
    return ByteArray(text.length / 2) { text.substring(2 * it, 2 * it + 2).toInt(16).toByte() }
}
