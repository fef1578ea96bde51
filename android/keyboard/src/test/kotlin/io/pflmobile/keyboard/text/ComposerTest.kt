package io.pflmobile.keyboard.text

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertTrue

class ComposerTest {
    @Test
    fun `backspace takes what a reader calls one character`() {
        for (one in listOf("a", "e\u0301", "👍", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "1️⃣", "❤️", "நி", "각")) {
            assertEquals(one.length, Graphemes.lastLength("x$one"), one)
            assertEquals(one.length, Graphemes.lastLength(one), one)
        }
        assertEquals(4, Graphemes.lastLength("🇩🇪🇫🇷"))
        assertEquals(0, Graphemes.lastLength(""))
        assertEquals(1, Graphemes.lastLength("a\uD83D"), "half a pair")
    }

    @Test
    fun `the word before the cursor`() {
        val words =
            mapOf(
                "" to "",
                "see " to "",
                "see yo" to "yo",
                "I don't" to "don't",
                "I don\u2019" to "",
                "he said 'he" to "he",
                "über grö" to "grö",
                "привет ми" to "ми",
                "नमस्ते दुनि" to "दुनि",
                "می\u200Cخو" to "می\u200Cخو",
                "我在这" to "",
                "hi 👍" to "",
                "hi 👍🏽ok" to "ok",
                "x,y" to "y",
            )
        for ((before, word) in words) assertEquals(Request(before.removeSuffix(word), word), Composer.request(before), before)
    }

    @Test
    fun `completions begin with what is typed, whatever its capitals and apostrophes`() {
        val words = listOf("the", "<unk>", ",", "gym", "don't", "Them", "👍", "the")
        assertEquals(listOf("the", "gym", "don't"), Composer.completions(words, "", 3))
        assertEquals(listOf("the", "Them"), Composer.completions(words, "T", 3))
        assertEquals(listOf("Them"), Composer.completions(words, "the", 3))
        assertEquals(listOf("don't"), Composer.completions(words, "Don\u2019", 3))
        assertEquals(listOf("👍"), Composer.completions(listOf("!", "👍", "1"), "", 3))
    }

    @Test
    fun `a suggestion has the capitals of what is typed`() {
        assertEquals("gym", Composer.spelled("gym", "g", false))
        assertEquals("Gym", Composer.spelled("gym", "G", false))
        assertEquals("GYM", Composer.spelled("gym", "GY", false))
        assertEquals("Gym", Composer.spelled("gym", "", true))
        assertEquals("gym", Composer.spelled("gym", "", false))
        assertEquals("I'm", Composer.spelled("i'm", "", false))
        assertEquals("\uD801\uDC00x", Composer.spelled("\uD801\uDC28x", "", true), "a letter beyond the first plane")
    }

    @Test
    fun `choosing replaces the word, or follows a space`() {
        assertEquals(Edit(2, "gym "), Composer.choose("at the gy", "gym"))
        assertEquals(Edit(0, "gym "), Composer.choose("at the ", "gym"))
        assertEquals(Edit(0, " gym "), Composer.choose("at the,", "gym"))
        assertEquals(Edit(0, "gym "), Composer.choose("(", "gym"))
        assertEquals(Edit(0, "gym "), Composer.choose("", "gym"))
        assertEquals(Edit(0, "里"), Composer.choose("我在这", "里"), "no spaces in Chinese")
        assertEquals(Edit(0, " 👍 "), Composer.choose("ok 👍", "👍"))
    }

    @Test
    fun `punctuation takes the space of a suggestion, and not the user's`() {
        assertEquals(Edit(1, ", "), Composer.type("gym ", ",", ownSpace = true))
        assertEquals(Edit(1, ")"), Composer.type("gym ", ")", ownSpace = true))
        assertEquals(Edit(0, ","), Composer.type("gym ", ",", ownSpace = false))
        assertEquals(Edit(0, "("), Composer.type("gym ", "(", ownSpace = true))
        assertEquals(Edit(0, "a"), Composer.type("gym ", "a", ownSpace = true))
    }

    @Test
    fun `two spaces end a sentence, three do not`() {
        assertEquals(Edit(1, ". "), Composer.space("gym "))
        assertEquals(Edit(0, " "), Composer.space("gym"))
        assertEquals(Edit(0, " "), Composer.space("gym. "))
        assertEquals(Edit(0, " "), Composer.space("  "))
        assertEquals(Edit(0, " "), Composer.space(" "))
    }

    @Test
    fun `sentences end in every script`() {
        for (end in listOf("a.", "a? ", "a…", "a。", "a！", "a\n")) assertTrue(Composer.endsSentence(end), end)
        for (no in listOf("", " ", "a", "a,", "👍")) assertFalse(Composer.endsSentence(no), no)
    }
}
