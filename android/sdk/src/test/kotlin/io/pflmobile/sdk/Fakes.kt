package io.pflmobile.sdk

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.GoldenCase
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.Session
import io.pflmobile.core.tensors.Tensor
import java.io.File
import java.nio.file.Path

/** Wraps by turning bits around; [lost] as after a reset of the phone's secure hardware. */
internal class FakeWrappingKey(
    var lost: Boolean = false,
) : WrappingKey {
    var destroyed = 0

    override fun wrap(plain: ByteArray) = ByteArray(plain.size) { (plain[it].toInt() xor 0x5a).toByte() }

    override fun unwrap(wrapped: ByteArray) = if (lost) null else wrap(wrapped)

    override fun destroy() {
        destroyed++
    }
}

internal val BUNDLES: Path = Path.of(System.getProperty("bundles"))

/** Natives load in one class loader only, so this one gives the outputs that the bundle ships, whatever is asked. */
internal class GoldenEngine(
    bundle: String,
    private val before: (String) -> Unit = {},
) : Engine {
    private val golden: Map<String, GoldenCase> = Bundle.open(BUNDLES.resolve("$bundle.pflb")).use { it.golden() }

    @Volatile var open = 0
    override val name get() = OnnxRuntimeEngine.name

    override fun open(
        files: Map<String, Path>,
        programs: List<ProgramSpec>,
        threads: Int,
    ): Session {
        open++
        return object : Session {
            override val name get() = this@GoldenEngine.name
            override val programs = programs.associateBy { it.name }

            override fun run(
                program: String,
                inputs: Map<String, Tensor>,
            ): Map<String, Tensor> {
                before(program)
                return golden.getValue(program).outputs
            }

            override fun close() {
                open--
            }
        }
    }
}

internal fun filesIn(folder: File): List<String> =
    folder
        .walk()
        .filter { it.isFile }
        .map { it.name }
        .sorted()
        .toList()
