package io.pflmobile.core.local

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.assertBits
import io.pflmobile.core.errors.DataException
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class MemoryTest {
    private val vectors = Vectors.read("memory.json")
    private val tokens = Vectors.tensor(vectors.getValue("tokens")) as LongTensor
    private val labels = Vectors.tensor(vectors.getValue("labels")) as LongTensor
    private val weight = Vectors.tensor(vectors.getValue("weight")) as FloatTensor

    @Test
    fun `entries lie where Python puts them`() {
        for (case in vectors.getValue("cases").jsonArray.map { it.jsonObject }) {
            val (capacity, context) = listOf("capacity", "context_length").map { case.getValue(it).jsonPrimitive.int }
            val found = memorize(tokens, labels, weight, capacity, context)
            assertBits(Vectors.tensor(case.getValue("next")), found.next, "next of $capacity")
            assertBits(Vectors.tensor(case.getValue("context")), found.context, "context of $capacity")
            assertEquals(case.getValue("count").jsonPrimitive.long, found.count)
        }
    }

    @Test
    fun `rows of other shapes are refused`() {
        assertFailsWith<DataException> { memorize(tokens, LongTensor(LongArray(3), listOf(3)), weight, 4, 2) }
    }
}
