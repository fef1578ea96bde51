package io.pflmobile.sdk

import android.security.keystore.KeyGenParameterSpec
import java.io.InputStream
import java.io.OutputStream
import java.security.Key
import java.security.KeyStoreSpi
import java.security.Provider
import java.security.SecureRandom
import java.security.Security
import java.security.cert.Certificate
import java.security.spec.AlgorithmParameterSpec
import java.util.Collections
import java.util.Date
import java.util.Enumeration
import javax.crypto.KeyGenerator
import javax.crypto.KeyGeneratorSpi
import javax.crypto.SecretKey

/** The provider that a JVM lacks. */
class FakeAndroidKeyStore : Provider("AndroidKeyStore", "1", "for tests") {
    init {
        put("KeyStore.AndroidKeyStore", Store::class.java.name)
        put("KeyGenerator.AES", Maker::class.java.name)
    }

    class Store : KeyStoreSpi() {
        override fun engineGetKey(
            alias: String,
            password: CharArray?,
        ): Key? = KEYS[alias]

        override fun engineDeleteEntry(alias: String) {
            KEYS.remove(alias)
        }

        override fun engineContainsAlias(alias: String) = alias in KEYS

        override fun engineAliases(): Enumeration<String> = Collections.enumeration(KEYS.keys)

        override fun engineSize() = KEYS.size

        override fun engineIsKeyEntry(alias: String) = alias in KEYS

        override fun engineIsCertificateEntry(alias: String) = false

        override fun engineGetCertificate(alias: String) = null

        override fun engineGetCertificateChain(alias: String) = null

        override fun engineGetCertificateAlias(certificate: Certificate?) = null

        override fun engineGetCreationDate(alias: String): Date? = null

        override fun engineSetKeyEntry(
            alias: String,
            key: Key,
            password: CharArray?,
            chain: Array<out Certificate>?,
        ): Unit = throw UnsupportedOperationException()

        override fun engineSetKeyEntry(
            alias: String,
            key: ByteArray,
            chain: Array<out Certificate>?,
        ): Unit = throw UnsupportedOperationException()

        override fun engineSetCertificateEntry(
            alias: String,
            certificate: Certificate?,
        ): Unit = throw UnsupportedOperationException()

        override fun engineStore(
            stream: OutputStream?,
            password: CharArray?,
        ) = Unit

        override fun engineLoad(
            stream: InputStream?,
            password: CharArray?,
        ) = Unit
    }

    class Maker : KeyGeneratorSpi() {
        private var alias = ""

        override fun engineInit(random: SecureRandom?) = Unit

        override fun engineInit(
            params: AlgorithmParameterSpec,
            random: SecureRandom?,
        ) {
            alias = (params as KeyGenParameterSpec).keystoreAlias
        }

        override fun engineInit(
            size: Int,
            random: SecureRandom?,
        ) = Unit

        override fun engineGenerateKey(): SecretKey = KeyGenerator.getInstance("AES", "SunJCE").generateKey().also { KEYS[alias] = it }
    }

    companion object {
        val KEYS = HashMap<String, SecretKey>()

        fun install() {
            KEYS.clear()
            if (Security.getProvider("AndroidKeyStore") == null) Security.addProvider(FakeAndroidKeyStore())
        }
    }
}
