package io.pflmobile.core.local

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.text.BlockList
import io.pflmobile.core.text.TextEncoder
import io.pflmobile.core.text.WordTokenizer
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNull
import kotlin.test.assertSame

class TrainingEncoderTest {
    private val encoder = TrainingEncoder(TextEncoder(WordTokenizer(WordTokenizer.SPECIALS + listOf("see", "you")), 4, 6, slots = 1))

    @Test
    fun `it gives the rows, slots and ids of the text encoder`() {
        val texts = listOf("see zorp", "you zorp")
        assertEquals(listOf("zorp"), encoder.chooseWords(texts, minCount = 2))
        assertEquals(emptyList(), encoder.chooseWords(texts, minCount = Long.MAX_VALUE))
        val rows = encoder.withWords(listOf("zorp")).encode(texts, dropUnknown = true)
        assertEquals(setOf("tokens", "labels", "weight"), rows.keys)
        assertEquals(listOf(2, 4), rows.getValue("tokens").shape)
        assertSame(encoder, encoder.withWords(emptyList()))
        assertEquals(emptyList(), encoder.withBlocked(BlockList.empty() + listOf("zorp")).chooseWords(texts, minCount = 1))
        assertEquals(2, encoder.unknown)
    }

    @Test
    fun `a bundle of arrays has none`() {
        Bundle.open(Vectors.folder.resolve("bundles/arrays")).use { assertNull(textEncoder(it)) }
    }
}
