package io.pflmobile.core.bundle

import com.google.crypto.tink.subtle.Ed25519Verify
import io.pflmobile.core.errors.KeyFileException
import io.pflmobile.core.errors.SignatureException
import io.pflmobile.core.files.fromHex
import io.pflmobile.core.files.hex
import io.pflmobile.core.files.parseJson
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import java.security.GeneralSecurityException
import java.util.Base64

/**
 * The public half of an Ed25519 signing key, which an app pins: only what was signed with the other half is opened.
 *
 * @property hex its 32 bytes as 64 hex digits
 */
public class VerificationKey private constructor(
    public val hex: String,
) {
    /** Whether it is the same key. */
    override fun equals(other: Any?): Boolean = other is VerificationKey && hex == other.hex

    /** Of [hex]. */
    override fun hashCode(): Int = hex.hashCode()

    /** [hex]. */
    override fun toString(): String = hex

    /** Whether [signature], of 64 bytes, is of [data]. */
    internal fun verifies(
        signature: ByteArray,
        data: ByteArray,
    ): Boolean =
        try {
            Ed25519Verify(checkNotNull(fromHex(hex))).verify(signature, data)
            true
        } catch (_: GeneralSecurityException) {
            false
        }

    /** Reads keys. */
    public companion object {
        private const val MEND = "give an Ed25519 key as 64 hex digits or as PEM text, which `pfl keys new` prints and writes"
        private val HEX = Regex("[0-9a-fA-F]{64}")

        // SubjectPublicKeyInfo of an Ed25519 key (RFC 8410): this, then the 32 bytes.
        private const val SPKI = "302a300506032b6570032100"

        /**
         * The key in [text]: 64 hex digits, or PEM.
         *
         * @throws KeyFileException it is neither, of another algorithm, or a private key, which has no place in an app
         */
        public fun parse(text: String): VerificationKey {
            val given = text.trim()
            if (HEX.matches(given)) return VerificationKey(given.lowercase())
            if ("PRIVATE KEY" in given) {
                throw KeyFileException(
                    "the public key is a private key; whoever checks a signature must not have it",
                    "give the public half: the file that ends in .pub",
                )
            }
            val lines = given.lines().map { it.trim() }
            if (lines.first() != "-----BEGIN PUBLIC KEY-----" || lines.last() != "-----END PUBLIC KEY-----") {
                throw KeyFileException("the public key is neither 64 hex digits nor PEM", MEND)
            }
            val der =
                try {
                    hex(Base64.getDecoder().decode(lines.subList(1, lines.size - 1).joinToString("")))
                } catch (error: IllegalArgumentException) {
                    throw KeyFileException("the public key is damaged PEM", MEND, error)
                }
            if (!der.startsWith(SPKI) || der.length != SPKI.length + 64) {
                throw KeyFileException("the public key is of another algorithm than Ed25519", MEND)
            }
            return VerificationKey(der.removePrefix(SPKI))
        }
    }
}

/** Ed25519 signatures over the exact bytes of `manifest.json`, which has the digest of every other file. */
internal object Signatures {
    const val MAX_BYTES = 4096
    private const val ALGORITHM = "ed25519"
    private val FIELDS = setOf("algorithm", "public_key", "signature")

    /**
     * Checks a manifest against the content of its signature file.
     *
     * @param manifest exact bytes of the manifest
     * @param signature exact bytes of the signature file; null when there is none
     * @param pinned the key that must have signed. Without one the check only shows that the manifest is unchanged since someone,
     *   whoever that is, signed it
     * @return the public key that made the signature, in hex
     * @throws SignatureException missing, malformed, by another key than the pinned one, or not of these bytes
     */
    fun verify(
        manifest: ByteArray,
        signature: ByteArray?,
        pinned: VerificationKey?,
    ): String {
        if (signature == null) {
            throw SignatureException(
                "the bundle is not signed",
                "export it with --sign KEY, or allow unsigned bundles if you trust where it came from",
            )
        }
        val (named, value) = parse(signature)
        if (pinned != null && named != pinned) {
            throw SignatureException(
                "the bundle is signed by another key: $named, not $pinned",
                "obtain the bundle from its owner, or pin the owner's new key",
            )
        }
        if (!named.verifies(value, manifest)) {
            throw SignatureException(
                "${Paths.MANIFEST} is not what was signed",
                "obtain the bundle again; after an edit of the manifest, export and sign anew",
            )
        }
        return named.hex
    }

    private fun parse(signature: ByteArray): Pair<VerificationKey, ByteArray> {
        try {
            require(signature.size <= MAX_BYTES) { "it is too long" }
            val record = parseJson(signature)
            require(record is JsonObject && record.keys == FIELDS) { "it needs exactly the fields ${FIELDS.joinToString()}" }
            val texts = record.mapValues { (it.value as? JsonPrimitive)?.takeIf { value -> value.isString }?.content.orEmpty() }
            require(texts["algorithm"] == ALGORITHM) { "its algorithm is not '$ALGORITHM'" }
            val key = fromHex(texts.getValue("public_key"))
            val value = fromHex(texts.getValue("signature"))
            require(key?.size == 32 && value?.size == 64) { "its key or signature has the wrong length" }
            return VerificationKey.parse(hex(key)) to value
        } catch (error: IllegalArgumentException) {
            throw SignatureException("${Paths.SIGNATURE} is not a signature: ${error.message}", "obtain the bundle again", error)
        }
    }
}
