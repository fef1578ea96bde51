package io.pflmobile.core.text

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.text
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class CompleteTest {
    private fun JsonObject.texts(name: String) = getValue(name).jsonArray.map(::text)

    @Test
    fun `words that were begun are completed as Python does`() {
        val vectors = Vectors.read("completions.json")
        val tokenizer = WordTokenizer(WordTokenizer.SPECIALS + vectors.texts("words"))
        val index = PrefixIndex(tokenizer)
        val cases = vectors.getValue("cases").jsonArray.map { it.jsonObject }
        for (case in cases) {
            val prefix = text(case.getValue("prefix"))
            val ids = index.startingWith(prefix)
            assertEquals(case.getValue("ids").jsonArray.map { it.jsonPrimitive.int }, ids, prefix)
            for ((k, words) in case.getValue("words").jsonObject) {
                val found = complete(case.texts("likely"), case.texts("own"), ids.asSequence().map(tokenizer::word), prefix, k.toInt())
                assertEquals(words.jsonArray.map(::text), found, prefix)
            }
        }
        assertTrue(cases.size > 10)
    }

    @Test
    fun `over subwords what is likely and one's own is all`() {
        assertEquals(listOf("tonight", "tzatziki"), complete(listOf("see", "tonight"), listOf("tzatziki"), null, "t", 3))
    }
}
