package io.pflmobile.sdk

import android.content.Context
import android.database.sqlite.SQLiteDatabase
import io.pflmobile.core.errors.DataException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.local.Payload
import io.pflmobile.core.local.Retention
import io.pflmobile.core.tensors.FloatTensor
import org.junit.After
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue

@RunWith(RobolectricTestRunner::class)
class SqliteExampleStoreTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val context: Context get() = RuntimeEnvironment.getApplication()
    private val file get() = folder.root.resolve("examples.db")
    private val wrapping = FakeWrappingKey()
    private val stores = ArrayList<SqliteExampleStore>()
    private var now = Moment(wall = 1e9, sinceBoot = 100.0, boot = 1)

    private fun open(retention: Retention = Retention()) =
        SqliteExampleStore(context, file, retention, DataKey(folder.root.resolve("key"), wrapping)) { now }.also { stores += it }

    private fun texts(store: SqliteExampleStore) = store.examples().map { (it.payload as Payload.Text).text }

    private fun pass(seconds: Double) {
        now = now.copy(wall = now.wall + seconds, sinceBoot = now.sinceBoot + seconds)
    }

    @After
    fun close() = stores.forEach { it.close() }

    @Test
    fun `examples are kept in order, over a restart, and unreadable on the disk`() {
        val store = open()
        assertEquals(0, store.count())
        assertFalse(file.exists())
        val ids = listOf("see you", "at the zorp", "\uD83D\uDC4B").map { assertNotNull(store.add(Payload.Text(it))) }
        store.close()
        val again = open()
        assertEquals(ids, again.examples().map { it.id })
        assertEquals(listOf("see you", "at the zorp", "\uD83D\uDC4B"), texts(again))
        assertEquals(listOf("\uD83D\uDC4B"), again.examples(1).map { (it.payload as Payload.Text).text })
        assertEquals(1e9, again.examples().first().created)
        assertFalse("zorp" in String(file.readBytes(), Charsets.ISO_8859_1))
        assertEquals(1, again.erase(listOf(ids[1], 99)))
        assertEquals(listOf("see you", "\uD83D\uDC4B"), texts(again))
    }

    @Test
    fun `arrays come back as they were`() {
        val store = open()
        store.add(Payload.Arrays(mapOf("x" to FloatTensor(floatArrayOf(1f, -0f), listOf(1, 2)))))
        val found = (store.examples().single().payload as Payload.Arrays).arrays.getValue("x") as FloatTensor
        assertContentEquals(floatArrayOf(1f, -0f), found.values)
    }

    @Test
    fun `the limits hold at each addition and at each opening, the oldest go first`() {
        val store = open(Retention(maxExamples = 3))
        repeat(5) { store.add(Payload.Text("$it")) }
        assertEquals(listOf("2", "3", "4"), texts(store))
        store.close()
        assertEquals(listOf("3", "4"), texts(open(Retention(maxExamples = 2))).also { stores.last().close() })
        val bytes = open(Retention(maxBytes = 8))
        bytes.add(Payload.Text("123456"))
        assertEquals(listOf("3", "4", "123456"), texts(bytes))
        bytes.add(Payload.Text("ab"))
        assertEquals(listOf("123456", "ab"), texts(bytes))
        assertNull(bytes.add(Payload.Text("longer than all of it")))
        assertEquals(listOf("123456", "ab"), texts(bytes))
        assertFailsWith<DataException> { bytes.add(Payload.Text("x".repeat(2 shl 20))) }
    }

    @Test
    fun `old examples go`() {
        val store = open(Retention(maxAge = 100.0))
        store.add(Payload.Text("old"))
        pass(60.0)
        store.add(Payload.Text("new"))
        pass(60.0)
        store.add(Payload.Text("newest"))
        assertEquals(listOf("new", "newest"), texts(store))
        store.close()
        pass(1000.0)
        assertEquals(0, open(Retention(maxAge = 100.0)).count())
    }

    @Test
    fun `a clock that jumps makes nothing old`() {
        val limit = Retention(maxAge = 100.0)
        val store = open(limit)
        store.add(Payload.Text("kept"))
        now = now.copy(wall = 9e9) // the user sets a date far away
        store.add(Payload.Text("far"))
        now = now.copy(wall = 1e3) // and back before it
        store.add(Payload.Text("back"))
        assertEquals(3, store.count())
        store.close()
        now = Moment(wall = 9e9, sinceBoot = 1.0, boot = 2) // a wrong date after a restart
        assertEquals(3, open(limit).also { assertEquals(3, it.count()) }.count())
        stores.last().close()
        now = Moment(wall = 5e8, sinceBoot = 1.0, boot = 3)
        assertEquals(3, open(limit).count())
    }

    @Test
    fun `a lost key loses the examples and nothing else`() {
        open().also { it.add(Payload.Text("see you")) }.close()
        wrapping.lost = true
        val store = open()
        assertEquals(1, store.count())
        assertEquals(emptyList(), store.examples())
        assertEquals(0, store.count())
        wrapping.lost = false
        store.add(Payload.Text("again"))
        assertEquals(listOf("again"), texts(store))
    }

    @Test
    fun `erased, no file is left, and it can be used on`() {
        val store = open()
        store.add(Payload.Text("see you"))
        assertEquals(1, store.eraseAll())
        assertEquals(emptyList(), filesIn(folder.root))
        assertEquals(1, wrapping.destroyed)
        assertEquals(0, store.count())
        store.add(Payload.Text("again"))
        assertEquals(listOf("again"), texts(store))
    }

    @Test
    fun `a full disk changes nothing`() {
        val store = open()
        store.add(Payload.Text("first"))
        store.database.maximumSize = 1 // what is there stays
        assertFailsWith<StorageFullException> { store.add(Payload.Text("x".repeat(500_000))) }
        assertEquals(listOf("first"), texts(store))
    }

    @Test
    fun `a damaged database is said and not removed`() {
        open().also { it.add(Payload.Text("see you")) }.close()
        file.writeBytes(ByteArray(8192) { 7 })
        val error = assertFailsWith<StateException> { open() }
        assertTrue("erase" in error.mend)
        assertTrue(file.exists())
    }

    @Test
    fun `a newer database and a closed one are refused`() {
        val store = open()
        store.add(Payload.Text("see you"))
        store.close()
        assertFailsWith<StateException> { store.count() }
        assertFailsWith<StateException> { store.add(Payload.Text("more")) }
        SQLiteDatabase.openDatabase(file.path, null, SQLiteDatabase.OPEN_READWRITE).use { it.version = 9 }
        assertTrue("newer" in assertFailsWith<StateException> { open() }.message)
    }
}
