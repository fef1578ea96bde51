package io.pflmobile.sdk

import android.security.keystore.KeyGenParameterSpec
import android.security.keystore.KeyPermanentlyInvalidatedException
import android.security.keystore.KeyProperties
import io.pflmobile.core.errors.StateException
import java.io.File
import java.io.IOException
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import java.security.GeneralSecurityException
import java.security.KeyStore
import java.security.ProviderException
import java.security.SecureRandom
import javax.crypto.AEADBadTagException
import javax.crypto.Cipher
import javax.crypto.KeyGenerator
import javax.crypto.SecretKey
import javax.crypto.spec.GCMParameterSpec
import javax.crypto.spec.SecretKeySpec

/** A key that never leaves its keeper, and encrypts another one. */
internal interface WrappingKey {
    /**
     * [plain], encrypted. The key is made if there is none.
     *
     * @throws StateException the keeper does not answer
     */
    fun wrap(plain: ByteArray): ByteArray

    /**
     * What was wrapped; null where the key is lost for good.
     *
     * @throws StateException the keeper does not answer; it may later
     */
    fun unwrap(wrapped: ByteArray): ByteArray?

    /** Removes the key: whatever it encrypted can never be read again. */
    fun destroy()
}

/**
 * A key of the Android Keystore, in secure hardware where the phone has any: AES-256-GCM.
 *
 * @param alias its name in this app
 */
internal class KeystoreKey(
    private val alias: String,
) : WrappingKey {
    override fun wrap(plain: ByteArray): ByteArray =
        asking {
            val cipher = Cipher.getInstance(CIPHER)
            cipher.init(Cipher.ENCRYPT_MODE, found() ?: made())
            cipher.iv + cipher.doFinal(plain)
        }

    override fun unwrap(wrapped: ByteArray): ByteArray? =
        asking {
            val key = found() ?: return null
            if (wrapped.size <= IV_BYTES) return null
            try {
                val cipher = Cipher.getInstance(CIPHER)
                cipher.init(Cipher.DECRYPT_MODE, key, GCMParameterSpec(TAG_BITS, wrapped, 0, IV_BYTES))
                cipher.doFinal(wrapped, IV_BYTES, wrapped.size - IV_BYTES)
            } catch (_: AEADBadTagException) {
                null
            } catch (_: KeyPermanentlyInvalidatedException) {
                null
            }
        }

    override fun destroy() = asking { KeyStore.getInstance(STORE).apply { load(null) }.deleteEntry(alias) }

    private fun found(): SecretKey? = KeyStore.getInstance(STORE).apply { load(null) }.getKey(alias, null) as? SecretKey

    private fun made(): SecretKey {
        val spec =
            KeyGenParameterSpec
                .Builder(alias, KeyProperties.PURPOSE_ENCRYPT or KeyProperties.PURPOSE_DECRYPT)
                .setBlockModes(KeyProperties.BLOCK_MODE_GCM)
                .setEncryptionPaddings(KeyProperties.ENCRYPTION_PADDING_NONE)
                .setKeySize(KEY_BITS)
                .build()
        return KeyGenerator.getInstance(KeyProperties.KEY_ALGORITHM_AES, STORE).apply { init(spec) }.generateKey()
    }

    private inline fun <T> asking(step: () -> T): T =
        try {
            step()
        } catch (error: GeneralSecurityException) {
            throw silent(error)
        } catch (error: ProviderException) {
            throw silent(error)
        } catch (error: IOException) {
            throw silent(error)
        }

    private fun silent(error: Exception) =
        StateException("the Android Keystore does not answer: ${error.message}", "try again later, or after a restart of the phone", error)

    private companion object {
        const val STORE = "AndroidKeyStore"
        const val KEY_BITS = 256
    }
}

/**
 * Encrypts examples: AES-256-GCM under a random key, which lies in [file] wrapped by [wrapping]. The Keystore takes milliseconds for a
 * call, so it is asked once.
 */
internal class DataKey(
    private val file: File,
    private val wrapping: WrappingKey,
) {
    private val random = SecureRandom()
    private var key: SecretKey? = null

    /** [plain] encrypted and bound to [about]. */
    @Synchronized
    fun seal(
        plain: ByteArray,
        about: String,
    ): ByteArray {
        val iv = ByteArray(IV_BYTES).also(random::nextBytes)
        val cipher = Cipher.getInstance(CIPHER)
        cipher.init(Cipher.ENCRYPT_MODE, key(), GCMParameterSpec(TAG_BITS, iv))
        cipher.updateAAD(about.encodeToByteArray())
        return iv + cipher.doFinal(plain)
    }

    /** What was sealed; null where it is damaged, or its key is lost. */
    @Synchronized
    fun open(
        sealed: ByteArray,
        about: String,
    ): ByteArray? {
        if (sealed.size <= IV_BYTES) return null
        return try {
            val cipher = Cipher.getInstance(CIPHER)
            cipher.init(Cipher.DECRYPT_MODE, key(), GCMParameterSpec(TAG_BITS, sealed, 0, IV_BYTES))
            cipher.updateAAD(about.encodeToByteArray())
            cipher.doFinal(sealed, IV_BYTES, sealed.size - IV_BYTES)
        } catch (_: AEADBadTagException) {
            null
        }
    }

    /** Removes the keys: what was sealed can never be read again. */
    @Synchronized
    fun destroy() {
        key = null
        try {
            Files.deleteIfExists(file.toPath())
        } catch (error: IOException) {
            throw storageError("$file cannot be removed", error)
        }
        wrapping.destroy()
    }

    private fun key(): SecretKey {
        key?.let { return it }
        val kept =
            try {
                if (file.exists()) wrapping.unwrap(file.readBytes()) else null
            } catch (error: IOException) {
                throw StateException("$file cannot be read: ${error.message}", "try again later", error)
            }
        return SecretKeySpec(kept ?: made(), "AES").also { key = it }
    }

    private fun made(): ByteArray {
        val fresh = ByteArray(KEY_BYTES).also(random::nextBytes)
        val temporary = File("$file.new")
        try {
            temporary.outputStream().use {
                it.write(wrapping.wrap(fresh))
                it.fd.sync()
            }
            Files.move(temporary.toPath(), file.toPath(), StandardCopyOption.ATOMIC_MOVE)
        } catch (error: IOException) {
            throw storageError("$file cannot be written", error)
        }
        return fresh
    }

    private companion object {
        const val KEY_BYTES = 32
    }
}

private const val CIPHER = "AES/GCM/NoPadding"
private const val IV_BYTES = 12
private const val TAG_BITS = 128
