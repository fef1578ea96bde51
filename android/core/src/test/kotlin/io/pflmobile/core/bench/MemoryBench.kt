package io.pflmobile.core.bench

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.goldenCheck
import io.pflmobile.core.engines.openSession
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.put
import java.lang.management.ManagementFactory
import java.lang.management.MemoryType
import java.nio.file.Path
import kotlin.concurrent.thread
import kotlin.io.path.readLines
import kotlin.system.exitProcess

/** Bytes of this process's memory, as Linux names them: `VmRSS`, `VmHWM`, `RssAnon`, `RssFile`. */
internal fun resident(kind: String): Long =
    Path
        .of("/proc/self/status")
        .readLines()
        .first { it.startsWith("$kind:") }
        .filter(Char::isDigit)
        .toLong() * 1024

private const val LOOK_EVERY_MS = 2L

/** The most that some work adds to memory of these kinds, in bytes, seen every 2 ms. */
private fun watched(
    kinds: List<String>,
    work: () -> Unit,
): List<Long> {
    val before = kinds.map(::resident)
    var most = before

    fun look() {
        most = most.zip(kinds) { seen, kind -> maxOf(seen, resident(kind)) }
    }
    val watcher =
        thread(isDaemon = true) {
            try {
                while (true) {
                    Thread.sleep(LOOK_EVERY_MS)
                    look()
                }
            } catch (_: InterruptedException) {
                // the work is done
            }
        }
    try {
        work()
    } finally {
        watcher.interrupt()
        watcher.join()
    }
    look()
    return most.zip(before) { after, start -> after - start }
}

/**
 * What loading the programs of a bundle and training steps (`gradients` on its golden batch) add to a JVM in which ONNX Runtime is
 * loaded, beside what the manifest plans, as one line of JSON: `bench/parts_memory.py`.
 *
 * The heap must be resident from the beginning (`-Xms` as `-Xmx`, `-XX:+AlwaysPreTouch`), so that what is added is beside it; what is
 * used of it is told apart. What the JVM takes for compiled code and classes is in the figure.
 *
 * Arguments: bundle, steps.
 */
fun main(args: Array<String>) {
    val (path, count) = args
    OnnxRuntimeEngine.version // loads the runtime
    val threads = ManagementFactory.getThreadMXBean()
    Bundle.open(Path.of(path)).use { bundle ->
        val inputs = bundle.golden().getValue("gradients").inputs
        val steps = ArrayList<Pair<Long, Long>>()
        openSession(bundle, listOf(OnnxRuntimeEngine), trusted = true).use { session ->
            val (anonymous, mapped) =
                watched(listOf("RssAnon", "RssFile")) {
                    repeat(count.toInt() + 1) {
                        val start = System.nanoTime() to threads.currentThreadCpuTime
                        session.run("gradients", inputs)
                        steps += System.nanoTime() - start.first to threads.currentThreadCpuTime - start.second
                    }
                }
            goldenCheck(bundle, session).require() // what was measured is the right work
            val heap = ManagementFactory.getMemoryPoolMXBeans().filter { it.type == MemoryType.HEAP }
            val found =
                buildJsonObject {
                    put("added_anonymous", anonymous)
                    put("added_mapped", mapped)
                    put("peak_resident", resident("VmHWM"))
                    put("peak_heap", heap.sumOf { it.peakUsage.used })
                    put("step_ms", steps.drop(1).minOf { it.first } / 1e6)
                    put("step_processor_ms", steps.drop(1).minOf { it.second } / 1e6)
                    put(
                        "planned",
                        bundle.manifest.engines
                            .getValue(session.name)
                            .measured["planned_gradients_bytes"],
                    )
                }
            println(found)
        }
    }
    exitProcess(0)
}
