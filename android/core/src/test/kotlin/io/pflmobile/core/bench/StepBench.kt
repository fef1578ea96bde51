package io.pflmobile.core.bench

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.engines.DesktopBridge
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.ExecuTorchEngine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.Session
import io.pflmobile.core.engines.goldenCheck
import io.pflmobile.core.engines.openSession
import io.pflmobile.core.local.Examples
import io.pflmobile.core.local.LocalTrainer
import io.pflmobile.core.local.TrainingEncoder
import io.pflmobile.core.local.textEncoder
import io.pflmobile.core.personal.InMemoryExamples
import io.pflmobile.core.personal.ModelOptions
import io.pflmobile.core.personal.PersonalModel
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.tensors.Tensor
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonObjectBuilder
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.put
import java.lang.management.ManagementFactory
import java.lang.management.MemoryType
import java.nio.file.Path
import kotlin.io.path.createTempDirectory
import kotlin.io.path.readText
import kotlin.io.path.writeText
import kotlin.system.exitProcess

private const val PER_MS = 1e6
private const val PER_MB = 1 shl 20

/** Nanoseconds on the clock, and of the processor in this thread. */
private class Took(
    val wall: Long,
    val processor: Long,
) {
    operator fun minus(other: Took) = Took(wall - other.wall, processor - other.processor)
}

private val threads = ManagementFactory.getThreadMXBean()

private fun now() = Took(System.nanoTime(), threads.currentThreadCpuTime)

private fun median(values: List<Long>): Double = values.sorted().let { (it[(it.size - 1) / 2] + it[it.size / 2]) / 2.0 / PER_MS }

/** An engine whose sessions note what each call takes. */
private class Timed(
    private val inner: Engine,
) : Engine by inner {
    val taken = HashMap<String, MutableList<Took>>()

    override fun open(
        files: Map<String, Path>,
        programs: List<ProgramSpec>,
        threads: Int,
    ): Session =
        inner.open(files, programs, threads).let { session ->
            object : Session by session {
                override fun run(
                    program: String,
                    inputs: Map<String, Tensor>,
                ): Map<String, Tensor> {
                    val start = now()
                    return session.run(program, inputs).also { taken.getOrPut(program, ::ArrayList) += now() - start }
                }
            }
        }
}

/** A process that has just begun opens the keyboard and suggests: what a user waits for. Then words typed one after the other. */
private suspend fun JsonObjectBuilder.suggestions(
    bundle: Path,
    engine: Timed,
    texts: List<String>,
    unpacked: Path,
) {
    val runtime = ManagementFactory.getRuntimeMXBean()
    val process = ManagementFactory.getOperatingSystemMXBean() as com.sun.management.OperatingSystemMXBean
    put("jvm_ms", System.currentTimeMillis() - runtime.startTime)
    var start = System.nanoTime()
    val model =
        PersonalModel.open(bundle, unpacked.resolve("model"), ModelOptions(trusted = true, engines = listOf(engine))) { InMemoryExamples() }
    put("open_ms", (System.nanoTime() - start) / PER_MS)
    start = System.nanoTime()
    check(model.suggest(texts.first()).size == 3) { "three words" }
    put("first_suggestion_ms", (System.nanoTime() - start) / PER_MS)
    put("resident_mb", resident("VmRSS") / PER_MB)
    texts.forEach { model.suggest(it) } // the JVM compiles what it runs often
    engine.taken.clear()
    val busy = process.processCpuTime
    val walls =
        texts.map {
            start = System.nanoTime()
            model.suggest(it)
            System.nanoTime() - start
        }
    put("suggestion_processor_ms", (process.processCpuTime - busy) / PER_MS / texts.size)
    put("suggestion_ms", median(walls))
    put("predict_processor_ms", median(engine.taken.getValue("predict").map { it.processor }))
    model.close()
}

/** Steps of training, and what of them is the engine's. */
private suspend fun JsonObjectBuilder.steps(
    path: Path,
    plan: Plan,
    engine: Timed,
    texts: List<String>,
) {
    Bundle.open(path).use { bundle ->
        openSession(bundle, listOf(engine), trusted = true).use { session ->
            val start = System.nanoTime()
            goldenCheck(bundle, session).require()
            put("golden_ms", (System.nanoTime() - start) / PER_MS)
            val encoder = TrainingEncoder(checkNotNull(textEncoder(bundle)) { "the bundle is of texts" })
            val values = bundle.values()
            // The first pass is not counted: the JVM compiles what it runs often.
            repeat(2) { pass ->
                engine.taken.clear()
                val steps = ArrayList<Took>()
                var last: Took? = null
                LocalTrainer(session, plan, bundle.manifest.tensors, values, encoder)
                    .personalize(Examples.Texts(texts.dropLast(2)), Examples.Texts(texts.takeLast(2))) {
                        last?.let { steps += now() - it }
                        last = now()
                    }
                if (pass == 0) return@repeat
                val calls = engine.taken.getValue("gradients").drop(1)
                check(steps.size == calls.size) { "a step has more than one call" }
                val added = steps.zip(calls) { step, call -> step - call }
                put("steps", steps.size)
                put("step_ms", median(steps.map { it.wall }))
                put("engine_ms", median(calls.map { it.wall }))
                put("overhead", median(added.map { it.processor }) / median(calls.map { it.processor }))
            }
        }
    }
}

private fun measured(
    bundle: Path,
    plan: Plan,
    engine: Timed,
    texts: List<String>,
): JsonObject =
    buildJsonObject {
        val scratch = createTempDirectory("bench")
        try {
            runBlocking {
                suggestions(bundle, engine, texts, scratch)
                steps(bundle, plan, engine, texts)
            }
        } finally {
            scratch.toFile().deleteRecursively()
        }
        put("peak_resident_mb", resident("VmHWM") / PER_MB)
        val heap = ManagementFactory.getMemoryPoolMXBeans().filter { it.type == MemoryType.HEAP }
        put("peak_heap_mb", heap.sumOf { it.peakUsage.used } / PER_MB)
    }

/**
 * What Kotlin adds to the engine in a step of training, how long a suggestion takes, and what it needs: `make android-bench`.
 *
 * Arguments: bundle, plan, texts (a JSON list), engine, where the result goes.
 */
fun main(args: Array<String>) {
    val (path, plan, texts, name, to) = args
    val engine = Timed(listOf(ExecuTorchEngine, OnnxRuntimeEngine).single { it.name == name })
    DesktopBridge.load()
    val examples = Json.parseToJsonElement(Path.of(texts).readText()).jsonArray.map { it.jsonPrimitive.content }
    Path.of(to).writeText(measured(Path.of(path), Plan.load(Path.of(plan).readText()), engine, examples).toString())
    exitProcess(0) // fbjni has a thread that never ends
}
