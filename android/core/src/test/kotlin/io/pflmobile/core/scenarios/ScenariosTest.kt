package io.pflmobile.core.scenarios

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.device.PythonProgram
import io.pflmobile.scenarios.Passed
import io.pflmobile.scenarios.Phone
import io.pflmobile.scenarios.Scenario
import io.pflmobile.scenarios.damaged
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Path
import kotlin.io.path.copyTo
import kotlin.io.path.createDirectories
import kotlin.io.path.listDirectoryEntries
import kotlin.io.path.name
import kotlin.io.path.nameWithoutExtension
import kotlin.io.path.readBytes
import kotlin.io.path.readText
import kotlin.io.path.writeBytes
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
        for (file in sound.listDirectoryEntries("*.pflb")) file.copyTo(bundles.resolve(file.name))
        bundles.resolve("damaged.pflb").writeBytes(damaged(sound.resolve("tiny.pflb").readBytes()))
    }

    @TestFactory
    fun `on ONNX Runtime`(): List<DynamicTest> = scenarios("onnxruntime")

    @TestFactory
    fun `on ExecuTorch`(): List<DynamicTest> = scenarios("executorch")

    private fun scenarios(engine: String): List<DynamicTest> {
        val all = Vectors.folder.resolve("scenarios")
        val passed = Passed(all, "jvm-$engine")
        return all
            .listDirectoryEntries("*.json")
            .sorted()
            .also { assertTrue(it.size > 10, "$it") }
            .map { file ->
                DynamicTest.dynamicTest(file.nameWithoutExtension) {
                    pass(file, engine, folder.resolve("${file.nameWithoutExtension}-$engine").createDirectories())
                    passed.add(file)
                }
            }.plus(
                DynamicTest.dynamicTest("what passed is written down") { passed.settle(System.getProperty("scenarios.write") == "true") },
            )
    }

    private fun pass(
        file: Path,
        engine: String,
        home: Path,
    ) {
        val scenario = Scenario(file.readText())
        val needed = scenario.served ?: return pass(scenario, file, Jvm(bundles, home, engine, null), home)
        PythonProgram.needed()
        PythonProgram.federation(home, bundles.resolve("${needed.bundle}.pflb"), needed.alone).use { served ->
            val url = text(served.json().getValue("url"))
            pass(scenario, file, Jvm(bundles, home, engine, url), home)
        }
    }

    private fun pass(
        scenario: Scenario,
        file: Path,
        place: Jvm,
        home: Path,
    ) {
        for (part in scenario.parts.indices) {
            if (scenario.isKilled(part)) {
                assertKilled(file, part, place, home)
            } else {
                runBlocking { scenario.carryOut(part) { Phone(place, it) } }
            }
        }
    }

    /** In a process of its own, as it is not to live on. */
    private fun assertKilled(
        file: Path,
        part: Int,
        place: Jvm,
        home: Path,
    ) {
        val java = Path.of(System.getProperty("java.home"), "bin", "java").toString()
        val command = listOf(java, "-Dbridge=${System.getProperty("bridge")}", "io.pflmobile.core.scenarios.ProcessKt")
        val arguments = listOfNotNull("$file", "$part", place.engine.name, "$bundles", "$home", place.aggregator)
        val builder = ProcessBuilder(command + arguments).redirectErrorStream(true)
        // Not as an argument: ONNX Runtime 1.29 runs out of stack when the command line of its process is long.
        builder.environment()["CLASSPATH"] = System.getProperty("java.class.path")
        val child = builder.start()
        val said = child.inputStream.bufferedReader().readText()
        assertEquals(KILLED, child.waitFor(), said)
    }
}
