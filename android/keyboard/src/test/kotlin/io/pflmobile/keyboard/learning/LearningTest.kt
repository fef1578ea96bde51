package io.pflmobile.keyboard.learning

import android.text.InputType
import android.view.inputmethod.EditorInfo
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertTrue

class LearningTest {
    private fun field(
        type: Int,
        options: Int = 0,
        incognito: Boolean = false,
    ) = Field.of(type, options, incognito)

    private fun text(variation: Int = 0) = InputType.TYPE_CLASS_TEXT or variation

    @Test
    fun `learns where people write`() {
        for (type in listOf(
            text(),
            text(InputType.TYPE_TEXT_VARIATION_SHORT_MESSAGE),
            text(InputType.TYPE_TEXT_VARIATION_LONG_MESSAGE) or InputType.TYPE_TEXT_FLAG_MULTI_LINE,
            text(InputType.TYPE_TEXT_VARIATION_EMAIL_SUBJECT),
            text(InputType.TYPE_TEXT_VARIATION_WEB_EDIT_TEXT) or InputType.TYPE_TEXT_FLAG_CAP_SENTENCES,
        )) {
            assertTrue(field(type).learns)
        }
    }

    @Test
    fun `never learns a secret, a number or an address`() {
        for (type in listOf(
            InputType.TYPE_NULL,
            text(InputType.TYPE_TEXT_VARIATION_PASSWORD),
            text(InputType.TYPE_TEXT_VARIATION_VISIBLE_PASSWORD) or InputType.TYPE_TEXT_FLAG_MULTI_LINE,
            text(InputType.TYPE_TEXT_VARIATION_WEB_PASSWORD),
            text(InputType.TYPE_TEXT_VARIATION_EMAIL_ADDRESS),
            text(InputType.TYPE_TEXT_VARIATION_WEB_EMAIL_ADDRESS),
            text(InputType.TYPE_TEXT_VARIATION_URI),
            text(InputType.TYPE_TEXT_VARIATION_PERSON_NAME),
            text(InputType.TYPE_TEXT_VARIATION_POSTAL_ADDRESS),
            text(InputType.TYPE_TEXT_VARIATION_FILTER),
            text(InputType.TYPE_TEXT_FLAG_NO_SUGGESTIONS),
            text(0xFF0),
            InputType.TYPE_CLASS_NUMBER,
            InputType.TYPE_CLASS_NUMBER or InputType.TYPE_NUMBER_VARIATION_PASSWORD,
            InputType.TYPE_CLASS_PHONE,
            InputType.TYPE_CLASS_DATETIME,
        )) {
            assertFalse(field(type).learns, "%x".format(type))
        }
    }

    @Test
    fun `an app and the user can forbid learning, and words are suggested still`() {
        val forbidden = field(text(), EditorInfo.IME_FLAG_NO_PERSONALIZED_LEARNING or EditorInfo.IME_ACTION_SEND)
        val incognito = field(text(), incognito = true)
        for (found in listOf(forbidden, incognito)) assertEquals(field(text()).copy(learns = false), found)
        assertTrue(forbidden.suggests)
    }

    @Test
    fun `secrets get no suggestions`() {
        assertFalse(field(text(InputType.TYPE_TEXT_VARIATION_PASSWORD)).suggests)
        assertFalse(field(text(InputType.TYPE_TEXT_FLAG_NO_SUGGESTIONS)).suggests)
        assertFalse(field(InputType.TYPE_CLASS_PHONE).suggests)
    }

    @Test
    fun `one-off strings are known`() {
        for (token in listOf(
            "12",
            "3.50",
            "room7",
            "٣",
            "½",
            "a@b.example",
            "@someone",
            "https://a.example/b",
            "www.example.org",
            "example.org,",
            "hunter2!",
            "aGhKxQ",
            "snake_case",
            "C:\\temp",
            "#tag",
            "xkcdqwrt",
            "a".repeat(31),
            "50%",
            "²",
            "(B12)",
        )) {
            assertTrue(LearningFilter.isOneOff(token), token)
        }
        for (token in listOf(
            "gym",
            "don't",
            "(hello)",
            "ok...",
            "Müller",
            "привет",
            "我们",
            "नमस्ते",
            "👍",
            "iPhone",
            "McDonald",
            ":)",
            "hm",
            "e.g.",
            "rhythm",
        )) {
            assertFalse(LearningFilter.isOneOff(token), token)
        }
    }

    @Test
    fun `a text is cut where something is left out`() {
        assertEquals(listOf("see you at", "tomorrow evening"), LearningFilter.parts("see you at 18:30 tomorrow evening"))
        assertEquals(listOf("write to me at"), LearningFilter.parts("write to me at ann@mail.example please"))
        assertEquals(emptyList(), LearningFilter.parts("  "))
        assertEquals(emptyList(), LearningFilter.parts("ok"))
        assertEquals(emptyList(), LearningFilter.parts("👍 👍"))
        assertEquals(listOf("love you 👍🏽"), LearningFilter.parts("love you 👍🏽"))
    }

    private class Learned {
        val texts = ArrayList<String>()
        val collector = SentenceCollector { texts += it }

        fun type(text: String) {
            var before = ""
            for (letter in text) {
                collector.typed(before, letter.toString())
                before += letter
            }
        }
    }

    @Test
    fun `a sentence is learned when it ends`() {
        val learned = Learned()
        learned.type("see you at 3.5 there. and")
        assertEquals(listOf("see you at 3.5 there."), learned.texts)
        learned.collector.close()
        assertEquals(listOf("see you at 3.5 there.", "and"), learned.texts)
        learned.type("我们走。好")
        assertEquals("我们走。", learned.texts.last())
    }

    @Test
    fun `what was deleted is not learned`() {
        val learned = Learned()
        learned.type("see your")
        learned.collector.deleted(1)
        learned.collector.deleted(0)
        learned.collector.close()
        assertEquals(listOf("see you"), learned.texts)
        learned.collector.deleted(5)
        learned.collector.close()
        assertEquals(1, learned.texts.size)
    }

    @Test
    fun `only what was typed, without halves of words that stood there`() {
        val learned = Learned()
        learned.collector.typed("hel", "lo my")
        learned.collector.typed("hello my", " frie")
        learned.collector.close("nd")
        assertEquals(listOf("my"), learned.texts)
    }

    @Test
    fun `the cursor elsewhere ends the sentence, our own edits do not`() {
        val learned = Learned()
        learned.type("see you")
        learned.collector.moved("they wrote this, see you", "")
        assertEquals(emptyList(), learned.texts)
        learned.collector.moved("", "")
        assertEquals(listOf("see you"), learned.texts)
    }
}
