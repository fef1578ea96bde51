package io.pflmobile.core.scenarios

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.device.PythonProgram
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.JsonObject
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Path
import kotlin.io.path.copyTo
import kotlin.io.path.createDirectories
import kotlin.io.path.listDirectoryEntries
import kotlin.io.path.nameWithoutExtension
import kotlin.io.path.readBytes
import kotlin.io.path.writeBytes
import kotlin.io.path.writeText
import kotlin.test.assertEquals
import kotlin.test.assertTrue

/** What a user lives through, on both engines; `conformance/scenarios`. */
class ScenariosTest {
    @TempDir
    lateinit var folder: Path

    private lateinit var bundles: Path

    @BeforeEach
    fun `one bundle is damaged`() {
        bundles = folder.resolve("bundles").createDirectories()
        val sound = Path.of(System.getProperty("bundles"))
        for (name in listOf("tiny", "tiny-2", "talk")) sound.resolve("$name.pflb").copyTo(bundles.resolve("$name.pflb"))
        val bytes = sound.resolve("tiny.pflb").readBytes()
        bytes[bytes.size / 2] = (bytes[bytes.size / 2] + 1).toByte()
        bundles.resolve("damaged.pflb").writeBytes(bytes)
    }

    @TestFactory
    fun scenarios(): List<DynamicTest> =
        Vectors.folder
            .resolve("scenarios")
            .listDirectoryEntries("*.json")
            .sorted()
            .also { assertTrue(it.size > 8, "$it") }
            .flatMap { file -> listOf("onnxruntime", "executorch").map { file to it } }
            .map { (file, engine) ->
                DynamicTest.dynamicTest("${file.nameWithoutExtension} on $engine") {
                    pass(file, engine, folder.resolve("${file.nameWithoutExtension}-$engine").createDirectories())
                }
            }

    private fun pass(
        file: Path,
        engine: String,
        home: Path,
    ) {
        val steps = Scenario(file).steps
        if (steps.any { text(it.getValue("do")) == "serve" }) PythonProgram.needed()
        val servers = ArrayList<PythonProgram>()
        try {
            pass(file, steps, engine, home) { bundle -> serve(bundle, home).also { servers += it }.let { text(it.json().getValue("url")) } }
        } finally {
            servers.forEach { it.close() }
        }
    }

    private fun serve(
        bundle: Path,
        home: Path,
    ): PythonProgram {
        val config = home.resolve("federation.json")
        config.writeText(FEDERATION)
        val address = arrayOf("--port", "0", "--open-enrolment", "--dashboard", "off", "--data", home.resolve("server").toString())
        return PythonProgram.pfl(home, "serve", "$bundle", "--json", "--config", "$config", *address)
    }

    private fun pass(
        file: Path,
        steps: List<JsonObject>,
        engine: String,
        home: Path,
        serve: (Path) -> String,
    ) {
        val killing = steps.indexOfFirst { "kill_after" in it }
        if (killing >= 0) {
            // A process of its own, as it is not to live on.
            val java = Path.of(System.getProperty("java.home"), "bin", "java").toString()
            val builder =
                ProcessBuilder(
                    java,
                    "-Dbridge=${System.getProperty("bridge")}",
                    "io.pflmobile.core.scenarios.ProcessKt",
                    "$file",
                    engine,
                    "$bundles",
                    "$home",
                ).redirectErrorStream(true)
            // Not as an argument: ONNX Runtime 1.29 runs out of stack when the command line of its process is long.
            builder.environment()["CLASSPATH"] = System.getProperty("java.class.path")
            val child = builder.start()
            val said = child.inputStream.bufferedReader().readText()
            assertEquals(KILLED, child.waitFor(), said)
        }
        runBlocking {
            val phone = jvm(bundles, home, engine, serve)
            if (killing >= 0) phone.goOn(bundleAfter(steps.take(killing)))
            for ((index, step) in steps.withIndex().drop(killing + 1)) {
                try {
                    phone.carryOut(step)
                } catch (error: AssertionError) {
                    throw AssertionError("step $index, $step: ${error.message}", error)
                }
            }
            phone.close()
        }
    }

    private companion object {
        /** One device makes a round, and adds noise itself. */
        const val FEDERATION =
            """{"rounds": {"cohort": 1, "minimum": 1, "total": 3, "retry_s": 0.1, "deadline_s": 100}, "privacy": {"mechanism": "local",
                "clip_norm": 0.5, "local_noise_multiplier": 8.0, "cohort": 1, "rounds": 3, "delta": 1e-6}}"""
    }
}
