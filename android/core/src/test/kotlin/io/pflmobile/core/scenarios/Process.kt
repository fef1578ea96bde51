package io.pflmobile.core.scenarios

import io.pflmobile.core.engines.DesktopBridge
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.ExecuTorchEngine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.personal.ModelOptions
import io.pflmobile.core.personal.PersonalModel
import io.pflmobile.scenarios.Phone
import io.pflmobile.scenarios.Place
import io.pflmobile.scenarios.Scenario
import kotlinx.coroutines.runBlocking
import java.nio.file.Path
import kotlin.io.path.readText

/** How a process ends that the system kills. */
internal const val KILLED = 137

/** A phone on a JVM, with one of both engines. */
internal class Jvm(
    private val bundles: Path,
    private val home: Path,
    engine: String,
    override val aggregator: String?,
) : Place {
    override val engine: Engine = listOf(ExecuTorchEngine, OnnxRuntimeEngine).single { it.name == engine }

    init {
        DesktopBridge.load()
    }

    override suspend fun open(
        name: String,
        options: ModelOptions,
    ): PersonalModel =
        PersonalModel.open(bundles.resolve("$name.pflb"), home.resolve("model"), options) { FileExamples(home.resolve("examples")) }

    /** Nothing of the process runs any more, no native destructor either. */
    override fun kill() {
        ProcessBuilder("kill", "-9", "${ProcessHandle.current().pid()}").start()
        Thread.sleep(Long.MAX_VALUE)
    }
}

/**
 * Carries out one part of a scenario, which ends the process.
 *
 * Arguments: scenario, part, engine, bundles, folder, and the aggregator's address where there is one.
 */
fun main(args: Array<String>) {
    val (scenario, part, engine, bundles, home) = args
    val place = Jvm(Path.of(bundles), Path.of(home), engine, args.getOrNull(AGGREGATOR))
    runBlocking { Scenario(Path.of(scenario).readText()).carryOut(part.toInt()) { Phone(place, it) } }
}

private const val AGGREGATOR = 5
