package io.pflmobile.core.rows

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.assertBits
import io.pflmobile.core.conformance.tensors
import io.pflmobile.core.errors.DataException
import io.pflmobile.core.errors.NoExamplesException
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.double
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class RowsTest {
    private val vectors = Vectors.read("batches.json")

    private fun order(element: JsonElement) = element.jsonArray.map { it.jsonPrimitive.int }

    @Test
    fun `each epoch has Python's order`() {
        for (case in vectors.getValue("epoch_order").jsonArray.map { it.jsonObject }) {
            val (rows, phase, epoch) = listOf("rows", "phase", "epoch").map { case.getValue(it).jsonPrimitive.int }
            val found = epochOrder(rows, Vectors.unsigned(case.getValue("seed")), phase, epoch.toLong())
            assertEquals(order(case.getValue("order")), found.toList())
        }
    }

    @Test
    fun `the last batch is padded with zeros`() {
        val case = vectors.getValue("padded").jsonObject
        val rows = tensors(case.getValue("rows"))
        val found = paddedBatches(rows, case.getValue("size").jsonPrimitive.int, order(case.getValue("order")).toIntArray()).toList()
        val want = case.getValue("batches").jsonArray.map { tensors(it) }
        assertEquals(want.size, found.size)
        want.zip(found).forEachIndexed { number, (one, other) -> assertBits(one, other, "batch $number") }
    }

    @Test
    fun `as many are held out`() {
        for (case in vectors.getValue("holdout_size").jsonArray.map { it.jsonArray }) {
            assertEquals(case[2].jsonPrimitive.int, holdoutSize(case[0].jsonPrimitive.int, case[1].jsonPrimitive.double))
        }
    }

    @Test
    fun `rows that are cut and joined are the same rows`() {
        val rows = tensors(vectors.getValue("padded").jsonObject.getValue("rows"))
        val (first, rest) = cutRows(rows, 3)
        assertEquals(listOf(3, 4), listOf(first, rest).map { checkRows(it) })
        assertBits(rows, joinRows(first, rest), "joined")
    }

    @Test
    fun `rows without weight do not count`() {
        val rows =
            mapOf(
                "x" to LongTensor(longArrayOf(1, 2, 3), listOf(3)),
                "weight" to FloatTensor(floatArrayOf(0f, 0f, 0f, 0.5f, 0f, 0f), listOf(3, 2)),
            )
        assertEquals(listOf(2L), (weightedRows(rows).getValue("x") as LongTensor).values.toList())
        assertFailsWith<NoExamplesException> { weightedRows(cutRows(rows, 1).first) }
    }

    @Test
    fun `rows that are none are refused`() {
        fun weight(vararg values: Float) = FloatTensor(values, listOf(values.size))
        assertFailsWith<DataException> { checkRows(emptyMap()) }
        assertFailsWith<DataException> { checkRows(mapOf("weight" to weight(1f), "x" to weight(1f, 2f))) }
        assertFailsWith<DataException> { checkRows(mapOf("weight" to weight(-1f))) }
        assertFailsWith<DataException> { checkRows(mapOf("weight" to weight(Float.NaN))) }
    }
}
