package io.pflmobile.core.local

import io.pflmobile.core.bundle.TensorUpdate
import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.assertBits
import io.pflmobile.core.conformance.table
import io.pflmobile.core.conformance.tensors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.state.PersonalState
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlin.test.Test
import kotlin.test.assertEquals

class ForgetTest {
    private val vectors = Vectors.read("slots.json")
    private val forget = vectors.getValue("forget").jsonObject
    private val table = table(forget.getValue("table"))
    private val initial = tensors(forget.getValue("initial"))
    private val vocabulary = strings(vectors.getValue("vocabulary"))
    private val ids = WordIds(vocabulary.size.toLong()) { word -> vocabulary.indexOf(word).takeIf { it >= 4 }?.toLong() }
    private val given = forget.getValue("state").jsonObject
    private val state = PersonalState(tensors(given.getValue("tensors")), sets(given.getValue("copies")), strings(given.getValue("words")))

    private fun strings(list: JsonElement) = list.jsonArray.map { text(it) }

    private fun sets(sets: JsonElement) = sets.jsonObject.mapValues { tensors(it.value) }

    @Test
    fun `words leave no slot and no entry, and all else stays`() {
        for (case in forget.getValue("cases").jsonArray.map { it.jsonObject }) {
            val words = strings(case.getValue("cut")).toSet()
            val found = forgetWords(state, words, ids, table, initial)
            assertEquals(strings(case.getValue("words")), found.words, "$words")
            assertBits(tensors(case.getValue("tensors")), found.tensors, "$words")
            for ((copy, values) in sets(case.getValue("copies"))) assertBits(values, found.copies.getValue(copy), "$words: $copy")
            assertEquals(0 to 0, countForgotten(found, words, ids, table))
            assertEquals(state.words.size - found.words.size, countForgotten(state, words, ids, table).first)
        }
    }

    @Test
    fun `what gradients trained can be had as shipped`() {
        val fresh = shippedAgain(state, table, initial)
        val trained = table.filter { it.update == TensorUpdate.GRADIENT }.map { it.name }
        assertBits(initial.filterKeys { it in trained }, fresh.tensors.filterKeys { it in trained }, "trained")
        assertBits(state.tensors - trained.toSet(), fresh.tensors - trained.toSet(), "the rest")
        assertEquals(emptyMap(), fresh.copies)
    }
}
