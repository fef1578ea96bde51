package io.pflmobile.sdk

import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertNull

@RunWith(RobolectricTestRunner::class)
class SealTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val plain = "see you".encodeToByteArray()

    @Before
    fun install() = FakeAndroidKeyStore.install()

    private fun dataKey(alias: String = "one") = DataKey(folder.root.resolve("key"), KeystoreKey(alias))

    @Test
    fun `what was sealed is opened by another process, and only as what it is`() {
        val sealed = dataKey().seal(plain, "text")
        assertContentEquals(plain, dataKey().open(sealed, "text"))
        assertNull(dataKey().open(sealed, "arrays"))
        assertNull(dataKey().open(sealed.copyOf().also { it[20] = (it[20] + 1).toByte() }, "text"))
        assertNull(dataKey().open(ByteArray(3), "text"))
    }

    @Test
    fun `neither key nor text lie on the disk`() {
        val key = dataKey()
        key.seal(plain, "text")
        val wrapped = folder.root.resolve("key").readBytes()
        assertEquals(12 + 32 + 16, wrapped.size)
        assertEquals(listOf("one"), FakeAndroidKeyStore.KEYS.keys.toList())
    }

    @Test
    fun `a lost key of the phone makes a new one, and what was sealed is lost`() {
        val sealed = dataKey().seal(plain, "text")
        FakeAndroidKeyStore.KEYS.clear()
        val fresh = dataKey()
        assertNull(fresh.open(sealed, "text"))
        assertContentEquals(plain, dataKey().open(fresh.seal(plain, "text"), "text"))
    }

    @Test
    fun `destroyed, neither key is left`() {
        val key = dataKey()
        val sealed = key.seal(plain, "text")
        key.destroy()
        assertFalse(folder.root.resolve("key").exists())
        assertEquals(0, FakeAndroidKeyStore.KEYS.size)
        assertNull(key.open(sealed, "text"))
    }
}
