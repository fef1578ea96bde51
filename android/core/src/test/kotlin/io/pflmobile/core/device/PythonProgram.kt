package io.pflmobile.core.device

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.files.parseJson
import kotlinx.serialization.json.JsonObject
import org.junit.jupiter.api.Assumptions.assumeTrue
import java.io.IOException
import java.nio.file.Path
import java.util.concurrent.TimeUnit
import kotlin.concurrent.thread
import kotlin.io.path.isExecutable
import kotlin.test.assertTrue
import kotlin.test.fail

/** The `pfl` command of this project as a process; it is killed at the end. */
class PythonProgram private constructor(
    private val process: Process,
) : AutoCloseable {
    private val errors = StringBuffer()

    init {
        thread(isDaemon = true) {
            try {
                process.errorStream.bufferedReader().forEachLine { errors.appendLine(it) }
            } catch (_: IOException) {
                errors.appendLine("(killed)")
            }
        }
    }

    /** The first piece of JSON that it prints, whose last line is a brace alone. */
    fun json(): JsonObject {
        val text = StringBuilder()
        for (line in process.inputStream.bufferedReader().lineSequence()) {
            text.appendLine(line)
            if (line == "}") return parseJson(text.toString()) as JsonObject
        }
        fail("it printed no JSON: $text\n$errors")
    }

    /** Waits for its end; its exit code. */
    fun wait(seconds: Long): Int {
        assertTrue(process.waitFor(seconds, TimeUnit.SECONDS), "it did not end: $errors")
        return process.exitValue()
    }

    override fun close() {
        process.destroy()
        if (!process.waitFor(KILL_S, TimeUnit.SECONDS)) process.destroyForcibly()
    }

    companion object {
        private const val KILL_S = 10L
        private val project: Path =
            Vectors.folder
                .toAbsolutePath()
                .parent
                .normalize()
        private val python: Path = Path.of(System.getProperty("python") ?: "$project/.venv/bin/python")

        /** Skips the test where there is no Python; fails where all services must be there. */
        fun needed() {
            if (python.isExecutable()) return
            if (System.getenv("PFL_REQUIRE_SERVICES") == "1") fail("$python is missing, and PFL_REQUIRE_SERVICES=1")
            assumeTrue(false, "there is no Python at $python")
        }

        /** Starts `pfl` with these arguments. */
        fun pfl(
            folder: Path,
            vararg arguments: String,
        ): PythonProgram = start(folder, "import sys; from pfl_mobile.cli import main; sys.exit(main())", *arguments)

        /** Starts an aggregator, and unless the phone is [alone] a device of Python; it prints its address as `url`. */
        fun federation(
            folder: Path,
            bundle: Path,
            alone: Boolean,
        ): PythonProgram =
            start(
                folder,
                "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')",
                project.resolve("android/federation.py").toString(),
                bundle.toString(),
                "--folder",
                folder.resolve("federation").toString(),
                *(if (alone) arrayOf("--alone") else emptyArray()),
            )

        /** Starts a Python program. */
        fun start(
            folder: Path,
            program: String,
            vararg arguments: String,
        ): PythonProgram {
            val builder = ProcessBuilder(python.toString(), "-W", "ignore", "-c", program, *arguments).directory(folder.toFile())
            val parts = listOf("", "exporters", "server", "recipes")
            builder.environment()["PYTHONPATH"] = parts.joinToString(":") { project.resolve(it).toString() }
            builder.environment()["OMP_NUM_THREADS"] = "1"
            builder.environment()["PFL_ADMIN_TOKEN"] = "for-tests-".repeat(4)
            return PythonProgram(builder.start())
        }
    }
}
