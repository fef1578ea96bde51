package io.pflmobile.core.engines

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.Damage
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.bundle.VerificationKey
import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.errors.EngineException
import io.pflmobile.core.errors.EngineMismatchException
import io.pflmobile.core.errors.EngineUnavailableException
import io.pflmobile.core.errors.SignatureException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.errors.UnknownNameException
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.tensors.sameBits
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Path
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

class OnnxRuntimeEngineTest {
    @TempDir
    lateinit var folder: Path

    private val key =
        VerificationKey.parse(
            Vectors
                .read("bundles.json")
                .getValue("keys")
                .jsonObject
                .getValue("right")
                .jsonPrimitive.content,
        )
    private val bundle = Bundle.open(Vectors.folder.resolve("bundles/arrays"), key)

    @AfterEach
    fun `nothing of the runtime is left`() {
        assertEquals(0, OnnxRuntimePrograms.open.get())
    }

    private fun <T> session(use: (Session) -> T): T = openSession(bundle, listOf(OnnxRuntimeEngine)).use(use)

    @Test
    fun `the golden calls give what PyTorch gave`() {
        val report = session { goldenCheck(bundle, it) }
        report.require()
        assertTrue(report.worstRelErr < 1e-5, "$report")
        assertEquals("onnxruntime", report.engine)
    }

    @Test
    fun `all that the runtime holds is counted and given back`() {
        val golden = bundle.golden()
        val session = openSession(bundle, listOf(OnnxRuntimeEngine))
        for ((program, case) in golden) session.run(program, case.inputs)
        // Options, three programs, and room for the inputs of one program at a time; no outputs.
        val forms =
            golden.values.map { case ->
                case.inputs.values
                    .groupingBy { it.signature }
                    .eachCount()
            }
        val rooms =
            forms
                .flatMap { it.entries }
                .groupBy({ it.key }, { it.value })
                .values
                .sumOf { it.max() }
        assertEquals(1 + 3 + rooms, OnnxRuntimePrograms.open.get())
        repeat(3) { session.run("gradients", golden.getValue("gradients").inputs) }
        assertEquals(1 + 3 + rooms, OnnxRuntimePrograms.open.get())
        session.close()
        session.close()
        assertEquals(0, OnnxRuntimePrograms.open.get())
        assertFailsWith<EngineException> { session.run("gradients", golden.getValue("gradients").inputs) }
    }

    @Test
    fun `outputs are the caller's, and a call does not see the one before`() =
        session { session ->
            val case = bundle.golden().getValue("gradients")
            val first = session.run("gradients", case.inputs)
            val kept = first.mapValues { (it.value as FloatTensor).copy() }
            val zero: Map<String, Tensor> = case.inputs + ("weight" to FloatTensor(FloatArray(4), listOf(4)))
            assertEquals(0f, (session.run("gradients", zero).getValue("weight_sum") as FloatTensor).values.single())
            for ((name, value) in first) assertTrue(value.sameBits(kept.getValue(name)), name)
            for ((name, value) in session.run("gradients", case.inputs)) assertTrue(value.sameBits(kept.getValue(name)), name)
        }

    @Test
    fun `wrong tensors are named`() =
        session { session ->
            val inputs = bundle.golden().getValue("gradients").inputs
            assertFailsWith<UnknownNameException> { session.run("gradient", inputs) }
            val missing = assertFailsWith<TensorMismatchException> { session.run("gradients", inputs - "labels") }
            assertTrue("'labels'" in missing.message)
            val shape = FloatTensor(FloatArray(3), listOf(3))
            val error = assertFailsWith<TensorMismatchException> { session.run("gradients", inputs + ("weight" to shape)) }
            assertTrue("float32[3]" in error.message && "float32[4]" in error.message)
            val dtype = LongTensor(LongArray(4), listOf(4))
            assertFailsWith<TensorMismatchException> { session.run("gradients", inputs + ("weight" to dtype)) }
            session.run("gradients", inputs + ("more" to dtype))
            Unit
        }

    @Test
    fun `programs that are not what the manifest says are errors`() {
        val files = bundle.engineFiles("onnxruntime")
        val inputs = bundle.golden().getValue("evaluate").inputs
        val spec = bundle.manifest.program("evaluate")

        fun run(
            changed: ProgramSpec,
            from: Map<String, Path> = files,
        ) = OnnxRuntimeEngine.open(from, listOf(changed)).use { it.run("evaluate", inputs) }
        val shape = spec.outputs.map { it.copy(shape = listOf(2)) }
        assertFailsWith<TensorMismatchException> { run(spec.copy(outputs = shape)) }
        assertFailsWith<EngineException> { run(spec.copy(outputs = listOf(TensorSpec("nothing", listOf(1), DType.FLOAT32)))) }
        assertFailsWith<EngineException> { run(spec.copy(inputs = spec.inputs.drop(1))) }
        assertFailsWith<EngineException> { run(spec, emptyMap()) }
        assertFailsWith<EngineException> { run(spec, mapOf("evaluate" to bundle.path("plan.json"))) }
        assertFailsWith<EngineException> { run(spec, mapOf("evaluate" to folder.resolve("no.onnx"))) }
    }

    @Test
    fun `who vouches for nobody's programs has to say so`() {
        val own = folder.resolve("it").also(Damage::unpackSmall)
        Bundle.open(own).use {
            assertFailsWith<SignatureException> { openSession(it, listOf(OnnxRuntimeEngine)) }
            openSession(it, listOf(OnnxRuntimeEngine), trusted = true).close()
            val other =
                object : Engine by OnnxRuntimeEngine {
                    override val name = "executorch"
                }
            assertFailsWith<EngineUnavailableException> { openSession(it, listOf(other)) }
            openSession(it, listOf(other, OnnxRuntimeEngine), trusted = true).close()
        }
    }

    @Test
    fun `of the engines that a bundle has the first is taken that the app brings, new enough`() {
        fun absent(
            name: String,
            found: () -> String?,
        ) = object : Engine by OnnxRuntimeEngine {
            override val name = name
            override val version get() = found()
        }
        val missing = absent("executorch") { throw EngineUnavailableException("it is not in the app", "add it") }
        Bundle.open(Path.of(System.getProperty("bundles"), "tiny.pflb")).use { both ->
            openSession(both, listOf(missing, OnnxRuntimeEngine), trusted = true).use { assertEquals("onnxruntime", it.name) }
            val old = absent("executorch") { "0.1" }
            openSession(both, listOf(old, OnnxRuntimeEngine), trusted = true).use { assertEquals("onnxruntime", it.name) }
            val why = assertFailsWith<EngineUnavailableException> { openSession(both, listOf(missing, old), trusted = true) }
            assertEquals("it is not in the app", why.message)
        }
    }

    @Test
    fun `an engine that computes other numbers is refused`() {
        for ((output, factor) in mapOf("loss_sum" to 1.001f, "grad.hidden.0.lora_B" to 1.001f, "weight_sum" to Float.NaN)) {
            val wrong =
                session { session ->
                    goldenCheck(
                        bundle,
                        object : Session by session {
                            override fun run(
                                program: String,
                                inputs: Map<String, Tensor>,
                            ) = session.run(program, inputs).mapValues { (name, value) ->
                                if (name != output || program != "gradients") return@mapValues value
                                (value as FloatTensor).copy().also { for (i in it.values.indices) it.values[i] *= factor }
                            }
                        },
                    )
                }
            assertEquals("gradients.$output", wrong.worst)
            val error = assertFailsWith<EngineMismatchException> { wrong.require() }
            assertTrue("gradients.$output" in error.message)
        }
    }
}
