package io.pflmobile.core.local

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.engines.DesktopBridge
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.ExecuTorchEngine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.openSession
import io.pflmobile.core.files.Safetensors
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.state.PersonalStateStore
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.tensors.sameBits
import io.pflmobile.core.tensors.toDoubles
import kotlinx.coroutines.test.runTest
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.CsvSource
import java.nio.file.Path
import kotlin.io.path.exists
import kotlin.io.path.readBytes
import kotlin.io.path.readText
import kotlin.math.sqrt
import kotlin.test.assertEquals
import kotlin.test.assertTrue

/**
 * The same bundle and examples end in the same personal state as in Python, on each engine: words, memory and trained tensors. The
 * keyboard and the activity recipe have their own backbones, modules and plans, of 50 steps here.
 *
 * ExecuTorch is one runtime on both sides, so every bit is the same. ONNX Runtime has another version in Python, which may add in
 * another order.
 */
class ParityTest {
    private val folder = Path.of(System.getProperty("bundles"))

    @BeforeEach
    fun `the bridge stands in for the libraries of a phone`() = DesktopBridge.load()

    private fun examples(
        name: String,
        part: String,
    ): Examples {
        val texts = folder.resolve("$name-examples.json")
        if (!texts.exists()) {
            val file = folder.resolve("$name-$part.safetensors")
            return Examples.Arrays(Safetensors.read(file.readBytes(), "$file").tensors)
        }
        val lists = Json.parseToJsonElement(texts.readText()).jsonObject
        return Examples.Texts(lists.getValue(part).jsonArray.map { it.jsonPrimitive.content })
    }

    @ParameterizedTest
    @CsvSource(
        "tiny, executorch, 18, zorp",
        "tiny, onnxruntime, 18, zorp",
        "keyboard, executorch, 50, zorp",
        "keyboard, onnxruntime, 50, zorp",
        "activity, executorch, 50,",
        "activity, onnxruntime, 50,",
    )
    fun `Kotlin ends where Python ends`(
        name: String,
        engine: String,
        steps: Long,
        word: String?,
    ) = runTest {
        val chosen: Engine = listOf(ExecuTorchEngine, OnnxRuntimeEngine).single { it.name == engine }
        Bundle.open(folder.resolve("$name.pflb")).use { bundle ->
            openSession(bundle, listOf(chosen), trusted = true).use { session ->
                val shipped = bundle.values()
                val encoder = textEncoder(bundle)?.let { TrainingEncoder(it) }
                val trainer = LocalTrainer(session, Plan.load(bundle.planJson()), bundle.manifest.tensors, shipped, encoder)
                val report = trainer.personalize(examples(name, "train"), examples(name, "holdout"))
                assertEquals(Status.ADOPTED, report.status)
                assertEquals(steps, report.steps)
                val ours = report.state!!
                val theirs = PersonalStateStore(folder.resolve("$name-state-$engine"), ModelId.of(bundle.manifest)).load().state!!
                if (word != null) assertTrue(word in theirs.words)
                assertEquals(theirs.words, ours.words)
                assertEquals(theirs.tensors.keys, ours.tensors.keys)
                val worst = theirs.tensors.maxOf { (key, want) -> apart(key, want, ours.tensors.getValue(key), shipped.getValue(key)) }
                val most = if (engine == ExecuTorchEngine.name) 0.0 else OTHER_VERSION
                assertTrue(worst <= most, "$name through $engine ends $worst of the way away from where Python ended")
            }
        }
    }

    /**
     * How far a tensor is from Python's, as a share of how far that moved; not of each element: AdamW makes a whole step of a gradient
     * that is rounding noise.
     */
    private fun apart(
        name: String,
        want: Tensor,
        found: Tensor,
        start: Tensor,
    ): Double {
        if (want !is FloatTensor) assertTrue(want.sameBits(found), name)
        if (want.sameBits(found)) return 0.0
        return distance(want, found) / distance(want, start)
    }

    private fun distance(
        one: Tensor,
        other: Tensor,
    ): Double = sqrt(one.toDoubles().zip(other.toDoubles().toTypedArray()) { a, b -> (a - b) * (a - b) }.sum())

    private companion object {
        /** 3e-7 was found on the tiny model, and the same bits on both recipes; a processor may have other kernels. */
        const val OTHER_VERSION = 1e-3
    }
}
