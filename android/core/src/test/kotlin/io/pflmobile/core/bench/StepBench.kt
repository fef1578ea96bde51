package io.pflmobile.core.bench

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.engines.DesktopBridge
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.ExecuTorchEngine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.Session
import io.pflmobile.core.engines.openSession
import io.pflmobile.core.local.Examples
import io.pflmobile.core.local.LocalTrainer
import io.pflmobile.core.local.TrainingEncoder
import io.pflmobile.core.local.textEncoder
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.tensors.Tensor
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.put
import java.nio.file.Path
import kotlin.io.path.readText
import kotlin.io.path.writeText

/** Nanoseconds of each call of a program. */
private class Timed(
    private val inner: Session,
) : Session by inner {
    val taken = HashMap<String, MutableList<Long>>()

    override fun run(
        program: String,
        inputs: Map<String, Tensor>,
    ): Map<String, Tensor> {
        val start = System.nanoTime()
        return inner.run(program, inputs).also { taken.getOrPut(program, ::ArrayList) += System.nanoTime() - start }
    }
}

private const val PER_MS = 1e6

private fun median(values: List<Long>): Double = values.sorted().let { (it[(it.size - 1) / 2] + it[it.size / 2]) / 2.0 / PER_MS }

/**
 * What Kotlin adds to the engine in a step of training, and how long a suggestion takes: `make android-bench`.
 *
 * Arguments: bundle, plan, texts (a JSON list), engine, where the result goes.
 */
fun main(args: Array<String>) {
    val (path, plan, texts, name, to) = args
    val started = System.nanoTime()
    val engine: Engine = listOf(ExecuTorchEngine, OnnxRuntimeEngine).single { it.name == name }
    DesktopBridge.load()
    val examples = Json.parseToJsonElement(Path.of(texts).readText()).jsonArray.map { it.jsonPrimitive.content }
    Bundle.open(Path.of(path)).use { bundle ->
        Timed(openSession(bundle, listOf(engine), trusted = true)).use { session ->
            val encoder = checkNotNull(textEncoder(bundle)) { "the bundle is of texts" }
            val values = bundle.values()

            fun suggest(text: String) {
                val context = encoder.context(text)
                session.run("predict", values + mapOf("tokens" to context.tokens, "position" to context.position))
            }
            suggest(examples.first())
            val first = (System.nanoTime() - started) / PER_MS
            val suggestions =
                examples.drop(1).flatMap { text -> List(2) { text } }.map { text ->
                    System.nanoTime().let { start ->
                        suggest(text)
                        System.nanoTime() - start
                    }
                }
            val steps = ArrayList<Long>()
            val calls = ArrayList<Long>()
            // The first pass is not counted: the JVM compiles what it runs often.
            repeat(2) { pass ->
                session.taken.clear()
                val trainer =
                    LocalTrainer(session, Plan.load(Path.of(plan).readText()), bundle.manifest.tensors, values, TrainingEncoder(encoder))
                var last = 0L
                runBlocking {
                    trainer.personalize(Examples.Texts(examples.dropLast(2)), Examples.Texts(examples.takeLast(2))) {
                        val now = System.nanoTime()
                        if (pass == 1 && last != 0L) steps += now - last
                        last = now
                    }
                }
                if (pass == 1) calls += session.taken.getValue("gradients").drop(1)
            }
            check(steps.size == calls.size) { "a step has more than one call" }
            val result =
                buildJsonObject {
                    put("steps", steps.size)
                    put("step_ms", median(steps))
                    put("engine_ms", median(calls))
                    put("overhead", median(steps.zip(calls) { step, call -> step - call }) / median(calls))
                    put("suggestion_ms", median(suggestions))
                    put("first_suggestion_ms", first)
                }
            Path.of(to).writeText(result.toString())
        }
    }
}
