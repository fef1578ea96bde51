package io.pflmobile.core.text

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.DataException
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.float
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

/** `subwords.json`, `subword_texts.json`. */
class SubwordVectorsTest {
    private val file = Vectors.read("subwords.json")
    private val texts = file.getValue("texts").jsonArray.map { it.jsonPrimitive.content }
    private val length = file.getValue("length").jsonPrimitive.int
    private val cases = file.getValue("tokenizers").jsonObject

    private fun tokenizer(case: JsonObject): SubwordTokenizer {
        val ids = case.getValue("specials").jsonObject.mapValues { it.value.jsonPrimitive.int }
        val (pad, bos, eos, unk) = listOf("pad", "bos", "eos", "unk").map(ids::getValue)
        return SubwordTokenizer.fromJson(case.getValue("tokenizer").jsonPrimitive.content, SpecialIds(pad, bos, eos, unk))
    }

    private fun longs(element: JsonElement?): List<Long> =
        checkNotNull(element).jsonArray.flatMap { row -> row.jsonArray.map { it.jsonPrimitive.long } }

    @Test
    fun `texts become the ids and rows that Python gives`() {
        for ((name, case) in cases.mapValues { it.value.jsonObject }) {
            tokenizer(case).use { tokenizer ->
                val encoder = TextEncoder(tokenizer, length, tokenizer.size)
                val ids = case.getValue("ids").jsonArray.map { row -> row.jsonArray.map { it.jsonPrimitive.int } }
                assertEquals(ids, texts.map(encoder::ids), name)
                assertEquals(case.getValue("decoded").jsonArray.map { it.jsonPrimitive.content }, ids.map(tokenizer::text), name)
                val rows = encoder.encode(texts, dropUnknown = true, wordsOnly = true)
                val wanted = case.getValue("rows").jsonObject
                assertEquals(longs(wanted["tokens"]), rows.tokens.values.toList(), name)
                assertEquals(longs(wanted["labels"]), rows.labels.values.toList(), name)
                val weight = wanted.getValue("weight").jsonArray.flatMap { row -> row.jsonArray.map { it.jsonPrimitive.float } }
                assertEquals(weight, rows.weight.values.toList(), name)
            }
        }
    }

    @Test
    fun `texts drawn by chance become the same ids with every kind of step`() {
        val drawn = Vectors.read("subword_texts.json")
        val texts = drawn.getValue("texts").jsonArray.map { it.jsonPrimitive.content }
        for ((name, case) in drawn.getValue("tokenizers").jsonObject.mapValues { it.value.jsonObject }) {
            tokenizer(case).use { tokenizer ->
                val ids = case.getValue("ids").jsonArray.map { row -> row.jsonArray.map { it.jsonPrimitive.int } }
                for ((text, wanted) in texts.zip(ids)) assertEquals(wanted, tokenizer.words(text).map(tokenizer::id), "$name: $text")
                assertEquals(case.getValue("decoded").jsonArray.map { it.jsonPrimitive.content }, ids.map(tokenizer::text), name)
            }
        }
    }

    @Test
    fun `nothing is learned from a text with a blocked word`() {
        val word = file.getValue("blocked").jsonPrimitive.content
        for ((name, case) in cases.mapValues { it.value.jsonObject }) {
            tokenizer(case).use { tokenizer ->
                val encoder = TextEncoder(tokenizer, length, tokenizer.size).withBlocked(BlockList.empty() + listOf(word))
                assertEquals(case.getValue("rows_without_gym").jsonPrimitive.int, encoder.encode(texts).tokens.shape[0], name)
                val spellings = case.getValue("spellings_of_gym").jsonArray.map { it.jsonPrimitive.int }
                assertEquals(spellings, tokenizer.spellings(listOf(word)).sorted(), name)
                assertEquals(emptyList(), encoder.chooseWords(texts))
                assertFailsWith<ConfigException> { TextEncoder(tokenizer, length, tokenizer.size, slots = 1) }
            }
        }
    }

    @Test
    fun `damaged files are refused`() {
        val case = cases.getValue("wordpiece").jsonObject
        val good = case.getValue("tokenizer").jsonPrimitive.content
        val ids = SpecialIds(0, 2, 3, 1)
        val models = listOf("""{"vocab": {"a": 9999999}}""", """{"vocab": {"a": 0, "b": 1, "c": 2, "d": 3}}""")
        for (wrong in listOf("", "{}", "[]") + models.map { """{"model": $it}""" }) {
            assertFailsWith<DataException>(wrong) { SubwordTokenizer.fromJson(wrong, ids) }
        }
        assertFailsWith<DataException> { SubwordTokenizer.fromJson(good, ids.copy(bos = 4711)) }
    }
}
