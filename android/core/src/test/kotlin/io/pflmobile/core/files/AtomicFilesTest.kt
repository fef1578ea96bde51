package io.pflmobile.core.files

import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.errors.UnwritableException
import org.junit.jupiter.api.io.TempDir
import java.io.IOException
import java.nio.channels.FileChannel
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.StandardOpenOption.WRITE
import java.nio.file.attribute.PosixFilePermissions
import kotlin.io.path.exists
import kotlin.io.path.listDirectoryEntries
import kotlin.io.path.name
import kotlin.io.path.readText
import kotlin.io.path.writeText
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertIs
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue

class AtomicFilesTest {
    @TempDir
    lateinit var folder: Path

    private val file get() = folder.resolve("it")

    private fun names() = folder.listDirectoryEntries().map { it.name }

    @Test
    fun `a file is replaced, and is its owner's alone`() {
        AtomicFiles().write(file, "old".toByteArray())
        AtomicFiles().write(file, "new".toByteArray())
        assertEquals("new", file.readText())
        assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(file)))
        assertEquals(listOf("it"), names())
    }

    @Test
    fun `a process killed at any step leaves the old or the new, and the next write clears up`() {
        var step = 1
        while (true) {
            AtomicFiles().write(file, "old".toByteArray())
            val disk = DyingDisk(step)
            try {
                AtomicFiles(disk).write(file, "new".toByteArray())
                break
            } catch (_: DyingDisk.Killed) {
                assertTrue(file.readText() in setOf("old", "new"), "step $step")
            }
            AtomicFiles().write(file, "after".toByteArray())
            assertEquals(listOf("it"), names(), "step $step")
            step++
        }
        assertEquals(7, step)
        assertEquals("new", file.readText())
    }

    @Test
    fun `a full disk keeps the old file`() {
        AtomicFiles().write(file, "old".toByteArray())
        for (room in 0 until 3) {
            assertFailsWith<StorageFullException> { AtomicFiles(FullDisk(room)).write(file, "new".toByteArray()) }
            assertEquals("old", file.readText())
            assertEquals(listOf("it"), names())
        }
    }

    @Test
    fun `a disk that is really full is told from another fault`() {
        val full =
            assertFailsWith<IOException> {
                FileChannel
                    .open(
                        Path.of("/dev/full"),
                        WRITE,
                    ).use { RealDisk.write(it, java.nio.ByteBuffer.allocate(1)) }
            }
        assertIs<StorageFullException>(diskError(file, full))
        assertFailsWith<UnwritableException> { AtomicFiles().write(folder.resolve("no/it"), ByteArray(1)) }
        assertIs<StorageFullException>(diskError(file, IOException("write failed: ENOSPC (No space left on device)")))
    }

    @Test
    fun `a link is replaced, not followed`() {
        val other = folder.resolve("other").also { it.writeText("theirs") }
        Files.createSymbolicLink(file, other)
        AtomicFiles().write(file, "new".toByteArray())
        assertEquals("theirs", other.readText())
        assertEquals("new", file.readText())
    }

    @Test
    fun `temporaries of others stay`() {
        val others = listOf(".it.tmp", ".it.0123456789aG.tmp", ".that.0123456789ab.tmp", "it.0123456789ab.tmp")
        others.forEach { folder.resolve(it).writeText("") }
        folder.resolve(".it.0123456789ab.tmp").writeText("")
        AtomicFiles().write(file, ByteArray(1))
        assertEquals((others + "it").toSet(), names().toSet())
    }

    @Test
    fun `a folder is held once`() {
        val lock = assertNotNull(FolderLock.take(folder, 0))
        assertNull(FolderLock.take(folder, 0))
        assertNull(FolderLock.take(folder.resolve("../${folder.name}"), 0))
        lock.close()
        assertNotNull(FolderLock.take(folder, 0)).close()
    }

    @Test
    fun `a private folder is closed to others where it is ours`() {
        fun permissions(path: Path) = PosixFilePermissions.toString(Files.getPosixFilePermissions(path))
        val inner = folder.resolve("a/b")
        privateFolder(inner) { it == "ours" }
        assertEquals("rwx------", permissions(inner))
        assertEquals("rwx------", permissions(folder.resolve("a")))
        Files.setPosixFilePermissions(inner, PosixFilePermissions.fromString("rwxr-xr-x"))
        inner.resolve("theirs").writeText("")
        privateFolder(inner) { it == "ours" }
        assertEquals("rwxr-xr-x", permissions(inner))
        inner.resolve("ours").writeText("")
        privateFolder(inner) { it == "ours" }
        assertEquals("rwx------", permissions(inner))
        assertFailsWith<UnwritableException> { privateFolder(inner.resolve("ours")) { true } }
        assertTrue(inner.exists())
    }
}
