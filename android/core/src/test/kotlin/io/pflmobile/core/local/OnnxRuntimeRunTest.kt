package io.pflmobile.core.local

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.tensors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.goldenCheck
import io.pflmobile.core.engines.openSession
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.state.PersonalStateStore
import io.pflmobile.core.tensors.sameBits
import io.pflmobile.core.tensors.toDoubles
import kotlinx.coroutines.test.runTest
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource
import java.nio.file.Path
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class OnnxRuntimeRunTest {
    @TempDir
    lateinit var folder: Path

    @ParameterizedTest
    @ValueSource(strings = ["runs.json", "block_runs.json"])
    fun `a real bundle ends where Python ends, and its state is kept`(file: String) =
        runTest {
            val vectors = Vectors.read(file)

            fun examples(name: String) = Examples.Arrays(tensors(vectors.getValue(name)))
            Bundle.open(Vectors.folder.resolve(text(vectors.getValue("bundle")))).use { bundle ->
                openSession(bundle, listOf(OnnxRuntimeEngine), trusted = true).use { session ->
                    goldenCheck(bundle, session).require()
                    val store = PersonalStateStore(folder, ModelId.of(bundle.manifest))
                    val trainer = LocalTrainer(session, Plan.load(bundle.planJson()), bundle.manifest.tensors, bundle.values())
                    val report = trainer.personalize(examples("train"), examples("holdout"), store = store)
                    assertEquals(text(vectors.getValue("status")), report.status.name.lowercase())
                    assertEquals(vectors.getValue("steps").jsonPrimitive.long, report.steps)
                    val losses = vectors.getValue("losses").jsonArray.map { Vectors.double(text(it)) }
                    losses.zip(report.losses).forEachIndexed {
                        step,
                        (want, found),
                        ->
                        assertEquals(want, found, CLOSE, "loss of step $step")
                    }
                    for ((name, want) in tensors(vectors.getValue("tensors"))) {
                        val found =
                            report.state!!
                                .tensors
                                .getValue(name)
                                .toDoubles()
                        want.toDoubles().zip(found.toTypedArray()).forEach { (one, other) -> assertEquals(one, other, CLOSE, name) }
                    }
                    for ((name, want) in vectors.getValue("after").jsonObject) {
                        assertEquals(Vectors.double(text(want)), report.after.getValue(name), CLOSE, name)
                    }
                    val kept = PersonalStateStore(folder, ModelId.of(bundle.manifest)).load()
                    assertEquals(report.version, kept.version)
                    for ((name, value) in report.state!!.tensors) assertTrue(value.sameBits(kept.state!!.tensors.getValue(name)), name)
                }
            }
        }

    private companion object {
        // Two builds of one engine, up to 80 steps of AdamW in float32.
        const val CLOSE = 1e-4
    }
}
