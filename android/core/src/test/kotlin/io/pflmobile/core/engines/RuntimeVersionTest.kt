package io.pflmobile.core.engines

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.errors.EngineException
import io.pflmobile.core.errors.EngineUnavailableException
import java.nio.file.Path
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotNull
import kotlin.test.assertTrue

/** Bundles say which runtimes load them. */
class RuntimeVersionTest {
    private val bundle = Bundle.open(Path.of(System.getProperty("bundles"), "arrays.pflb"))
    private val needs = assertNotNull(bundle.manifest.engine("onnxruntime").runtime)

    private fun runtime(
        version: String?,
        fault: EngineException? = null,
    ) = object : Engine {
        override val name = "onnxruntime"
        override val version = version

        override fun open(
            files: Map<String, Path>,
            programs: List<ProgramSpec>,
            threads: Int,
        ): Session = fault?.let { throw it } ?: OnnxRuntimeEngine.open(files, programs, threads)
    }

    private fun open(engine: Engine) = openSession(bundle, listOf(engine), trusted = true).close()

    @Test
    fun `an older runtime is refused with the way out`() {
        val error = assertFailsWith<EngineUnavailableException> { open(runtime("1.17.3")) }
        assertTrue("needs onnxruntime ${needs.atLeast} or later" in error.message && "1.17.3" in error.message, error.message)
        assertTrue(needs.verified in error.mend, error.mend)
    }

    @Test
    fun `newer ones, and those that do not tell, are tried`() {
        for (version in listOf(needs.atLeast, "99.0", null)) open(runtime(version))
        open(OnnxRuntimeEngine)
    }

    @Test
    fun `a runtime that does not tell its version and fails is told what is needed`() {
        val fault = EngineException("cannot load", "export the bundle again")
        val error = assertFailsWith<EngineException> { open(runtime(null, fault)) }
        assertTrue(needs.atLeast in error.message && needs.verified in error.mend, "$error")
        assertEquals(fault, assertFailsWith<EngineException> { open(runtime("99.0", fault)) })
    }
}
