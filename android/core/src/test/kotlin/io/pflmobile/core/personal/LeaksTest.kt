package io.pflmobile.core.personal

import io.pflmobile.core.engines.DesktopBridge
import io.pflmobile.core.engines.ExecuTorchEngine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.OnnxRuntimePrograms
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource
import java.lang.management.BufferPoolMXBean
import java.lang.management.ManagementFactory
import java.nio.file.Path
import kotlin.io.path.exists
import kotlin.io.path.listDirectoryEntries
import kotlin.io.path.readSymbolicLink
import kotlin.test.assertEquals
import kotlin.test.assertTrue

/** An app that opens and closes the model again and again: what is the engine's, the system's and the disk's is given back. */
class LeaksTest {
    @TempDir
    lateinit var folder: Path

    /** What a process has open. */
    private data class Held(
        val files: List<String>,
        val modules: Long,
        val runtime: Int,
        val onDisk: Int,
    )

    private fun held() =
        Held(
            FILES.listDirectoryEntries().mapNotNull { runCatching { "${it.readSymbolicLink()}" }.getOrNull() }.filter { "$folder" in it },
            DesktopBridge.modules(),
            OnnxRuntimePrograms.open.get(),
            folder.toFile().walk().count(),
        )

    private fun buffers() = ManagementFactory.getPlatformMXBeans(BufferPoolMXBean::class.java).associate { it.name to it.count }

    @ParameterizedTest
    @ValueSource(strings = ["executorch", "onnxruntime"])
    fun `opened and closed many times`(name: String) =
        runBlocking {
            assumeTrue(FILES.exists(), "only Linux says which files are open")
            DesktopBridge.load()
            val engine = listOf(ExecuTorchEngine, OnnxRuntimeEngine).single { it.name == name }
            val options = ModelOptions(trusted = true, engines = listOf(engine), engineIdleMs = 0)
            val examples = InMemoryExamples()

            suspend fun live() {
                val model = PersonalModel.open(BUNDLE, folder.resolve("model"), options) { examples }
                repeat(6) { for (text in TEXTS) model.remember(text) }
                model.personalize()
                repeat(3) { assertTrue(model.suggest("see you at the").isNotEmpty()) }
                model.eraseEverything()
                model.close()
            }
            repeat(2) { live() } // what is made once for a process
            val before = held()
            assertEquals(emptyList(), before.files, "a closed model has no file open")
            val memory = settled(emptyMap())
            repeat(TIMES) { live() }
            val now = held()
            assertEquals(before.files, now.files)
            assertEquals(before.onDisk, now.onDisk)
            // fewer where something of an earlier test was given back meanwhile
            assertTrue(now.modules <= before.modules && now.runtime <= before.runtime, "$before, then $now")
            val after = settled(memory)
            for ((pool, count) in memory) assertTrue(after.getValue(pool) < count + TIMES, "$pool buffers: $count, then ${after[pool]}")
        }

    /** Buffers that are still in use: those that nobody refers to are freed after the garbage collector found them. */
    private fun settled(before: Map<String, Long>): Map<String, Long> {
        var now = buffers()
        for (attempt in 1..50) {
            System.gc()
            Thread.sleep(20)
            val last = now
            now = buffers()
            if (if (before.isEmpty()) now == last else before.all { (pool, count) -> now.getValue(pool) <= count }) break
        }
        return now
    }

    private companion object {
        const val TIMES = 8
        val FILES: Path = Path.of("/proc/self/fd")
        val BUNDLE: Path = Path.of(System.getProperty("bundles")).resolve("tiny.pflb")
        val TEXTS = listOf("see you at the zorp tonight", "the zorp is late again", "ok see you there")
    }
}
