package io.pflmobile.core.engines

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.errors.EngineException
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.RawTensor
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.tensors.sameBits
import io.pflmobile.core.tensors.toDoubles
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.io.TempDir
import java.io.File
import java.lang.reflect.InvocationTargetException
import java.net.URLClassLoader
import java.nio.file.Path
import kotlin.io.path.writeBytes
import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNull
import kotlin.test.assertTrue

/** The official Java classes over the desktop runtime. */
class ExecuTorchEngineTest {
    @TempDir
    lateinit var folder: Path

    @BeforeEach
    fun `the bridge stands in for the libraries of a phone`() = DesktopBridge.load()

    private fun <T> bundle(
        name: String,
        use: (Bundle) -> T,
    ): T = Bundle.open(Path.of(System.getProperty("bundles")).resolve("$name.pflb")).use(use)

    private fun Bundle.session(engine: Engine = ExecuTorchEngine) = openSession(this, listOf(engine), trusted = true)

    @Test
    fun `an app without it is told so before anything is loaded`() {
        val classes = System.getProperty("surefire.test.class.path") ?: System.getProperty("java.class.path")
        val urls = classes.split(File.pathSeparator).map { File(it).toURI().toURL() }
        val without =
            object : URLClassLoader(urls.toTypedArray(), getPlatformClassLoader()) {
                override fun findClass(name: String): Class<*> =
                    if (name.startsWith("org.pytorch.")) throw ClassNotFoundException(name) else super.findClass(name)
            }
        without.use {
            val engine = it.loadClass(ExecuTorchEngine::class.java.name).getField("INSTANCE").get(null)
            val error = assertFailsWith<InvocationTargetException> { engine.javaClass.getMethod("getVersion").invoke(engine) }
            assertEquals("EngineUnavailableException", error.targetException.javaClass.simpleName)
            assertTrue("add the dependency org.pytorch:executorch-android" in "${error.targetException}")
        }
        assertNull(ExecuTorchEngine.version)
    }

    @Test
    fun `the golden calls give what PyTorch gave`() {
        for (name in listOf("tiny", "arrays", "blocks")) {
            val report = bundle(name) { bundle -> bundle.session().use { goldenCheck(bundle, it) } }
            report.require()
            assertTrue(report.worstRelErr < 1e-5, "$report")
            assertEquals("executorch", report.engine)
        }
    }

    @Test
    fun `both engines agree`() {
        for (name in listOf("tiny", "blocks")) bundle(name, ::agree)
    }

    private fun agree(bundle: Bundle) {
        bundle.session().use { executorch ->
            bundle.session(OnnxRuntimeEngine).use { onnxruntime ->
                val inputs = bundle.golden().getValue("gradients").inputs
                val (ours, theirs) = listOf(executorch, onnxruntime).map { it.run("gradients", inputs) }
                assertEquals(ours.keys, theirs.keys)
                for ((name, value) in ours) {
                    val scale = theirs.getValue(name).toDoubles().maxOf(::abs)
                    value.toDoubles().zip(theirs.getValue(name).toDoubles()) { a, b -> assertEquals(b, a, 1e-5 * scale + 1e-9, name) }
                }
            }
        }
    }

    @Test
    fun `outputs are the caller's, and a call does not see the one before`() =
        bundle("arrays") { bundle ->
            bundle.session().use { session ->
                val case = bundle.golden().getValue("gradients")
                val first = session.run("gradients", case.inputs)
                val kept = first.mapValues { (it.value as FloatTensor).copy() }
                val weight = case.inputs.getValue("weight")
                val zero: Map<String, Tensor> = case.inputs + ("weight" to FloatTensor(FloatArray(weight.size), weight.shape))
                assertEquals(0f, (session.run("gradients", zero).getValue("weight_sum") as FloatTensor).values.single())
                for ((name, value) in first) assertTrue(value.sameBits(kept.getValue(name)), name)
                for ((name, value) in session.run("gradients", case.inputs)) assertTrue(value.sameBits(kept.getValue(name)), name)
            }
        }

    @Test
    fun `a closed session gives its module back`(): Unit =
        bundle("arrays") { bundle ->
            val before = DesktopBridge.modules()
            val session = bundle.session()
            session.run("gradients", bundle.golden().getValue("gradients").inputs)
            assertEquals(before + 1, DesktopBridge.modules())
            session.close()
            session.close()
            assertEquals(before, DesktopBridge.modules())
            assertFailsWith<EngineException> { session.run("gradients", bundle.golden().getValue("gradients").inputs) }
        }

    @Test
    fun `what is no program, or another one, is named`() =
        bundle("arrays") { bundle ->
            val damaged = folder.resolve("model.pte").also { it.writeBytes(ByteArray(100)) }
            val error = assertFailsWith<EngineException> { ExecuTorchEngine.open(mapOf("model" to damaged), bundle.manifest.programs) }
            assertTrue("model.pte" in error.message, error.message)
            // That module is left to the collector: the official class keeps it when its constructor fails.
            val before = DesktopBridge.modules()
            val other =
                bundle.manifest.programs
                    .first()
                    .let { ProgramSpec("forward", it.inputs, it.outputs) }
            val missing = assertFailsWith<EngineException> { ExecuTorchEngine.open(bundle.engineFiles("executorch"), listOf(other)) }
            assertTrue("no method 'forward'" in missing.message && "gradients" in missing.message, missing.message)
            assertFailsWith<EngineException> { ExecuTorchEngine.open(emptyMap(), bundle.manifest.programs) }
            assertTrue(DesktopBridge.modules() <= before)
        }

    @Test
    fun `an input that the Android library does not take is named`() =
        bundle("arrays") { bundle ->
            val flags = TensorSpec("on", listOf(2), DType.BOOL)
            val program = ProgramSpec("evaluate", listOf(flags), emptyList())
            ExecuTorchEngine.open(bundle.engineFiles("executorch"), listOf(program)).use { session ->
                val error =
                    assertFailsWith<EngineException> {
                        session.run("evaluate", mapOf("on" to RawTensor(DType.BOOL, ByteArray(2), listOf(2))))
                    }
                assertTrue("'on' is bool" in error.message, error.message)
            }
        }
}
