package io.pflmobile.core.local

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.tensors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.openSession
import io.pflmobile.core.rows.joinRows
import kotlinx.coroutines.test.runTest
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNotEquals
import kotlin.test.assertTrue

class EvaluationTest {
    private val vectors = Vectors.read("runs.json")

    @Test
    fun `the newest examples tell what personalization brought`() =
        runTest {
            Bundle.open(Vectors.folder.resolve(text(vectors.getValue("bundle")))).use { bundle ->
                openSession(bundle, listOf(OnnxRuntimeEngine), trusted = true).use { session ->
                    val evaluator = Evaluator(bundle, session)
                    assertTrue(evaluator.golden.ok)
                    val all = Examples.Arrays(joinRows(tensors(vectors.getValue("train")), tensors(vectors.getValue("holdout"))))
                    val result = evaluator.personalize(all)
                    assertEquals(all.size, result.train + result.holdout + result.test)
                    assertEquals(0, result.older)
                    val tested = parts(all).test
                    assertEquals(evaluator.measure(tested), result.before)
                    assertEquals(Status.ADOPTED, result.report.status)
                    assertEquals(evaluator.measure(tested, result.report.state), result.after)
                    assertNotEquals(result.before, result.after)
                }
            }
        }
}
