package io.pflmobile.scenarios

import java.nio.file.Files
import java.nio.file.Path
import java.security.MessageDigest
import kotlin.io.path.createDirectories
import kotlin.io.path.exists
import kotlin.io.path.name
import kotlin.io.path.readText
import kotlin.io.path.writeText
import kotlin.test.assertEquals

/**
 * Which scenarios passed at one place, in `passed/WHERE.sha256` as `sha256sum -c` reads it: a scenario that is changed has passed nowhere.
 *
 * @param scenarios the folder `conformance/scenarios`
 * @param where a name like `jvm-onnxruntime`
 */
internal class Passed(
    scenarios: Path,
    where: String,
) {
    private val file = scenarios.resolve("passed/$where.sha256")
    private val lines = sortedMapOf<String, String>()

    /** This scenario passed. */
    fun add(scenario: Path) {
        val digest = MessageDigest.getInstance("SHA-256").digest(Files.readAllBytes(scenario))
        lines[scenario.name] = digest.joinToString("") { "%02x".format(it) } + "  ${scenario.name}"
    }

    /**
     * Holds what passed against what is written down; with [write] it is written down anew.
     *
     * @throws AssertionError they differ
     */
    fun settle(write: Boolean) {
        val now = lines.values.joinToString("") { "$it\n" }
        if (write) {
            file.parent.createDirectories()
            file.writeText(now)
        }
        val told = if (file.exists()) file.readText() else ""
        assertEquals(told, now, "run `make android-scenarios`, which writes ${file.name}")
    }
}
