package io.pflmobile.core.bundle

import io.pflmobile.core.errors.KeyFileException
import io.pflmobile.core.files.fromHex
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource
import java.util.Base64
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class VerificationKeyTest {
    private val hex = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"

    private fun pem(der: String) =
        "-----BEGIN PUBLIC KEY-----\n${Base64.getEncoder().encodeToString(fromHex(der))}\n-----END PUBLIC KEY-----\n"

    @Test
    fun `hex and PEM are one key`() {
        assertEquals(hex, VerificationKey.parse(hex.uppercase() + "\n").hex)
        assertEquals(VerificationKey.parse(hex), VerificationKey.parse(pem("302a300506032b6570032100$hex")))
    }

    @Test
    fun `a test vector of RFC 8032 is verified`() {
        val signature =
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        val value = checkNotNull(fromHex(signature))
        assertEquals(true, VerificationKey.parse(hex).verifies(value, ByteArray(0)))
        assertEquals(false, VerificationKey.parse(hex).verifies(value, ByteArray(1)))
        assertEquals(false, VerificationKey.parse(hex).verifies(value.copyOf().also { it[0] = 0 }, ByteArray(0)))
    }

    @ParameterizedTest
    @ValueSource(strings = ["", "d75a", "-----BEGIN PRIVATE KEY-----", "-----BEGIN PUBLIC KEY-----\n???\n-----END PUBLIC KEY-----"])
    fun `what is no public key is refused`(text: String) {
        assertFailsWith<KeyFileException> { VerificationKey.parse(text) }
        // X25519 and a short key.
        assertFailsWith<KeyFileException> { VerificationKey.parse(pem("302a300506032b656e032100$hex")) }
        assertFailsWith<KeyFileException> { VerificationKey.parse(pem("302a300506032b6570032100${hex.drop(2)}")) }
    }
}
