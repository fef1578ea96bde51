package io.pflmobile.core.local

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.engines.DesktopBridge
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.ExecuTorchEngine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.openSession
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
import java.nio.file.Path
import kotlin.io.path.readText
import kotlin.math.sqrt
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

/** The same bundle and texts end in the same personal state as in Python: words, memory and trained tensors, on each engine. */
class ParityTest {
    private val folder = Path.of(System.getProperty("bundles"))
    private val texts = Json.parseToJsonElement(folder.resolve("texts.json").readText()).jsonObject

    @BeforeEach
    fun `the bridge stands in for the libraries of a phone`() = DesktopBridge.load()

    private fun texts(part: String) = Examples.Texts(texts.getValue(part).jsonArray.map { it.jsonPrimitive.content })

    @Test
    fun `through ExecuTorch`() = endsWherePythonEnds(ExecuTorchEngine)

    @Test
    fun `through ONNX Runtime`() = endsWherePythonEnds(OnnxRuntimeEngine)

    private fun endsWherePythonEnds(engine: Engine) =
        runTest {
            Bundle.open(folder.resolve("tiny.pflb")).use { bundle ->
                openSession(bundle, listOf(engine), trusted = true).use { session ->
                    val shipped = bundle.values()
                    val encoder = TrainingEncoder(textEncoder(bundle)!!)
                    val trainer = LocalTrainer(session, Plan.load(bundle.planJson()), bundle.manifest.tensors, shipped, encoder)
                    val report = trainer.personalize(texts("train"), texts("holdout"))
                    assertEquals(Status.ADOPTED, report.status)
                    val ours = report.state!!
                    val theirs = PersonalStateStore(folder.resolve("tiny-state-${engine.name}"), ModelId.of(bundle.manifest)).load().state!!
                    assertTrue("zorp" in theirs.words)
                    assertEquals(theirs.words, ours.words)
                    assertEquals(theirs.tensors.keys, ours.tensors.keys)
                    for ((name, want) in theirs.tensors) close(name, want, ours.tensors.getValue(name), shipped.getValue(name))
                }
            }
        }

    /** Not each element: AdamW makes a whole step of a gradient that is rounding noise. */
    private fun close(
        name: String,
        want: Tensor,
        found: Tensor,
        start: Tensor,
    ) {
        if (want !is FloatTensor) return assertTrue(want.sameBits(found), name)
        val apart = distance(want, found)
        val moved = distance(want, start)
        assertTrue(apart <= 1e-3 * moved, "$name is $apart from Python's, which moved $moved")
    }

    private fun distance(
        one: Tensor,
        other: Tensor,
    ): Double = sqrt(one.toDoubles().zip(other.toDoubles().toTypedArray()) { a, b -> (a - b) * (a - b) }.sum())
}
