package io.pflmobile.core.scenarios

import io.pflmobile.core.conformance.text
import io.pflmobile.core.engines.DesktopBridge
import io.pflmobile.core.engines.ExecuTorchEngine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.JsonObject
import java.nio.file.Path

/** How a process ends that the system kills. */
internal const val KILLED = 137

/** As the system does it: nothing of the process runs any more, no native destructor either. */
private fun killed() {
    ProcessBuilder("kill", "-9", "${ProcessHandle.current().pid()}").start()
    Thread.sleep(Long.MAX_VALUE)
}

/** A phone on a JVM, with one of both engines. */
internal fun jvm(
    bundles: Path,
    home: Path,
    engine: String,
    serve: (Path) -> String = { error("a scenario whose process ends has no aggregator") },
): Phone {
    DesktopBridge.load()
    val chosen = listOf(ExecuTorchEngine, OnnxRuntimeEngine).single { it.name == engine }
    return Phone(bundles, home.resolve("model"), chosen, { FileExamples(home.resolve("examples")) }, ::killed, serve)
}

/** Name of the bundle that is open after some steps. */
internal fun bundleAfter(steps: List<JsonObject>): String = text(steps.last { "bundle" in it }.getValue("bundle"))

/**
 * Carries out the steps of a scenario up to one that ends the process.
 *
 * Arguments: scenario, engine, bundles, folder.
 */
fun main(args: Array<String>) {
    val (scenario, engine, bundles, home) = args
    val phone = jvm(Path.of(bundles), Path.of(home), engine)
    runBlocking {
        for (step in Scenario(Path.of(scenario)).steps) phone.carryOut(step)
        phone.close()
    }
}
