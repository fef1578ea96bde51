package io.pflmobile.core.engines

import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.Tensor
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class GoldenCheckTest {
    private fun floats(vararg values: Float) = FloatTensor(values, listOf(values.size))

    private fun errors(
        got: Map<String, Tensor>,
        want: Map<String, Tensor>,
        weight: Tensor? = null,
    ) = outputErrors(got, want, weight, TOLERANCE).associate { it.name to it.error }

    @Test
    fun `errors are relative to the largest entry`() {
        assertEquals(0.25, relativeError(doubleArrayOf(1.0, 3.0), doubleArrayOf(1.0, 4.0)))
        assertEquals(0.0, relativeError(doubleArrayOf(0.0), doubleArrayOf(0.0)))
        assertEquals(Double.POSITIVE_INFINITY, relativeError(doubleArrayOf(1.0), doubleArrayOf(0.0)))
        assertEquals(Double.POSITIVE_INFINITY, relativeError(doubleArrayOf(Double.NaN), doubleArrayOf(Double.NaN)))
        assertEquals(0.5, relativeError(doubleArrayOf(1.0), doubleArrayOf(0.0), 2.0))
        assertEquals(0.0, relativeError(doubleArrayOf(), doubleArrayOf()))
    }

    @Test
    fun `a tiny gradient beside large ones is rounding noise`() {
        val want = mapOf("grad.a" to floats(100f), "grad.b" to floats(1e-9f))
        val found = errors(mapOf("grad.a" to floats(100f), "grad.b" to floats(2e-9f)), want)
        assertTrue(found.getValue("grad.b") < TOLERANCE)
        assertTrue(errors(mapOf("b" to floats(2e-3f)), mapOf("b" to floats(1e-3f))).getValue("b") > TOLERANCE)
    }

    @Test
    fun `one hit may fall to the other side`() {
        val want = mapOf("top1_sum" to floats(5f))
        val weight = floats(1f, 0.5f)
        assertEquals(0.0, errors(mapOf("top1_sum" to floats(6f)), want, weight).getValue("top1_sum"))
        assertTrue(errors(mapOf("top1_sum" to floats(7f)), want, weight).getValue("top1_sum") > TOLERANCE)
        assertTrue(errors(mapOf("top1_sum" to floats(6f)), want).getValue("top1_sum") > TOLERANCE)
    }

    @Test
    fun `ids of equal probability may change places`() {
        fun ids(vararg ids: Long) = LongTensor(ids, listOf(ids.size / 3, 3))

        fun wrong(
            got: LongTensor,
            want: LongTensor,
            vararg probs: Float,
        ) = outputErrors(
            mapOf("top_ids" to got, "top_probs" to FloatTensor(probs, want.shape)),
            mapOf("top_ids" to want, "top_probs" to FloatTensor(probs, want.shape)),
            null,
            TOLERANCE,
        ).first { it.name == "top_ids" }.error
        assertEquals(0.0, wrong(ids(1, 2, 3), ids(1, 2, 3), .5f, .3f, .2f))
        assertEquals(0.0, wrong(ids(2, 1, 3), ids(1, 2, 3), .4f, .4f, .2f))
        assertEquals(1.0, wrong(ids(2, 1, 3), ids(1, 2, 3), .5f, .3f, .2f))
        // There may be a fourth as likely as the third, in one row.
        assertEquals(0.0, wrong(ids(1, 2, 9), ids(1, 2, 3), .5f, .2f, .1f))
        assertEquals(1.0, wrong(ids(1, 2, 9), ids(1, 2, 3), .5f, .3f, .2f))
        assertEquals(1.0, wrong(ids(1, 2, 9, 1, 2, 9), ids(1, 2, 3, 1, 2, 3), .5f, .2f, .1f, .5f, .2f, .1f))
        // The end of a row is no neighbour of the next row's start.
        assertEquals(1.0, wrong(ids(1, 2, 3, 9, 5, 6), ids(1, 2, 3, 4, 5, 6), .8f, .1f, .05f, .05f, .02f, .01f))
    }
}
