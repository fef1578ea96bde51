package io.pflmobile.core.local

import io.pflmobile.core.bundle.TensorUpdate
import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.assertBits
import io.pflmobile.core.conformance.table
import io.pflmobile.core.conformance.tensors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.state.PersonalState
import io.pflmobile.core.state.PersonalStateStore
import io.pflmobile.core.text.TextEncoder
import io.pflmobile.core.text.WordTokenizer
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Path
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue

class ForgetTest {
    private val vectors = Vectors.read("slots.json")
    private val forget = vectors.getValue("forget").jsonObject
    private val table = table(forget.getValue("table"))
    private val initial = tensors(forget.getValue("initial"))
    private val vocabulary = strings(vectors.getValue("vocabulary"))
    private val encoder = TextEncoder(WordTokenizer(vocabulary), 8, vocabulary.size, 4)
    private val ids = wordIds(encoder)
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
    fun `words are cut as the keyboard cuts them`() {
        for (case in forget.getValue("cases").jsonArray.map { it.jsonObject }) {
            assertEquals(strings(case.getValue("cut")), wordsToForget(strings(case.getValue("forget"))).toList())
        }
        for (bad in listOf(emptyList(), listOf("two words"), listOf(" "))) assertFailsWith<ConfigException> { wordsToForget(bad) }
    }

    @Test
    fun `every saved version forgets, and the words are not learned again`(
        @TempDir folder: Path,
    ) {
        val store = PersonalStateStore(folder, ModelId.of("toy", "1", table))
        store.save(state)
        store.save(state)
        val done = forget(store, listOf("Zorp"), encoder, table, initial)
        assertEquals(listOf(1, 2), done.versions)
        assertEquals(1, done.slots)
        assertTrue(done.trained)
        for (version in done.versions) assertFalse("zorp" in store.read(version).words)
        assertTrue(store.blocked().hides("zorp"))
        val again = forget(store, listOf("Zorp"), encoder, table, initial, retrain = true)
        assertEquals(0, again.slots)
        assertFalse(again.trained)
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
