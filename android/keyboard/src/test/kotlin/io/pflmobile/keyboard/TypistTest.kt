package io.pflmobile.keyboard

import android.text.InputType
import io.pflmobile.keyboard.keys.KeyAction
import io.pflmobile.keyboard.keys.Page
import io.pflmobile.keyboard.keys.Shift
import io.pflmobile.keyboard.learning.Field
import io.pflmobile.keyboard.text.Edit
import io.pflmobile.keyboard.text.Request
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNull

/** A field of one's own. */
private class Text(
    var text: String = "",
    private val capitals: Boolean = false,
    private val sends: Boolean = false,
) : Editor {
    var cursor = text.length
    var selected = 0

    override fun before(units: Int): String = text.substring(0, cursor).takeLast(units)

    override fun after(units: Int): String = text.substring(cursor + selected).take(units)

    override fun hasSelection(): Boolean = selected > 0

    override fun wantsCapital(): Boolean = capitals && (cursor == 0 || before(2).let { it.length == 2 && it[0] in ".!?" && it[1] == ' ' })

    override fun edit(edit: Edit) {
        val start = cursor - edit.delete
        text = text.substring(0, start) + edit.insert + text.substring(cursor + selected)
        cursor = start + edit.insert.length
        selected = 0
    }

    override fun enter(): Boolean {
        if (sends) {
            text = ""
            cursor = 0
        } else {
            edit(Edit(0, "\n"))
        }
        return !sends
    }
}

class TypistTest {
    private val learned = ArrayList<String>()
    private val typist = Typist { learned += it }
    private val prose = Field.of(InputType.TYPE_CLASS_TEXT, 0, incognito = false)

    private fun Text.type(
        text: String,
        tell: Boolean = true,
    ): Text {
        for (letter in text) {
            val action =
                when (letter) {
                    ' ' -> KeyAction.Space
                    '\n' -> KeyAction.Enter
                    '<' -> KeyAction.Backspace
                    '^' -> KeyAction.Shift
                    else -> KeyAction.Type(letter.toString())
                }
            typist.press(action, this, 0)
            if (tell) typist.moved(this)
        }
        return this
    }

    private fun text(
        text: Text = Text(),
        field: Field = prose,
    ): Text = text.also { typist.start(field, it) }

    @Test
    fun `a sentence with a suggestion and punctuation`() {
        val text = text(Text(capitals = true)).type("see you at the gy")
        assertEquals("See you at the gy", text.text)
        val request = Request("See you at the ", "gy")
        assertEquals(request, typist.request(text))
        typist.choose(typist.spelled("gym", request), text)
        typist.moved(text)
        text.type("! bye")
        assertEquals("See you at the gym! Bye", text.text)
        assertEquals(listOf("See you at the gym!"), learned)
        typist.finish()
        assertEquals(listOf("See you at the gym!"), learned, "one word is no example")
    }

    @Test
    fun `what is sent is learned once`() {
        val text = text(Text(sends = true)).type("on my way\n")
        assertEquals("", text.text)
        typist.finish()
        assertEquals(listOf("on my way"), learned)
    }

    @Test
    fun `a password is never learned, nor what follows from a field that forbids it`() {
        for (type in listOf(
            InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_VARIATION_PASSWORD,
            InputType.TYPE_CLASS_NUMBER,
        )) {
            val text = text(field = Field.of(type, 0, incognito = false)).type("my secret words. are here")
            assertNull(typist.request(text))
            typist.finish()
        }
        assertEquals(emptyList(), learned)
    }

    @Test
    fun `incognito in the middle of a sentence drops its beginning`() {
        val text = text().type("this is not ")
        typist.change(prose.copy(learns = false))
        text.type("for you to keep. never ")
        typist.change(prose)
        text.type("but this is. ")
        assertEquals(listOf("but this is."), learned)
    }

    @Test
    fun `backspace takes whole emoji and what is selected`() {
        val text = text(Text("hi 👨‍👩‍👧‍👦")).type("<<")
        assertEquals("hi", text.text)
        text.cursor = 0
        text.selected = 2
        assertNull(typist.request(text))
        assertEquals("", text.type("<<").text)
    }

    @Test
    fun `what was there before is not learned`() {
        val text = text(Text("a text of another person ")).type("my own words. ")
        assertEquals("a text of another person my own words. ", text.text)
        assertEquals(listOf("my own words."), learned)
    }

    @Test
    fun `the keys of a field`() {
        text(field = Field.of(InputType.TYPE_CLASS_PHONE, 0, incognito = false))
        assertEquals(Page.SYMBOLS, typist.page)
        text(field = Field.of(InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_VARIATION_EMAIL_ADDRESS, 0, incognito = false))
        assertEquals("@", typist.beside)
        assertEquals(Page.LETTERS, typist.page)
        val text = text()
        typist.press(KeyAction.Show(Page.SYMBOLS), text, 0)
        text.type("7 ")
        assertEquals(Page.LETTERS, typist.page, "letters follow a space")
    }

    @Test
    fun `shift and caps lock`() {
        val text = text().type("^ab")
        assertEquals("Ab", text.text)
        text.type("^^cd")
        assertEquals("AbCD", text.text)
        assertEquals(Shift.LOCKED, typist.shift)
        assertEquals("GYM", typist.spelled("gym", Request("", "")))
    }

    @Test
    fun `the space of a suggestion is not doubled, and two of the user's end a sentence`() {
        val text = text()
        typist.choose("hello", text)
        assertEquals("hello ", text.text)
        assertEquals("hello ", text.type(" ").text)
        assertEquals("hello. ", text.type(" ").text)
    }

    @Test
    fun `other scripts are typed and deleted as they are`() {
        val text = text(Text("привет"))
        assertEquals(Request("", "привет"), typist.request(text))
        typist.choose("приветик", text)
        assertEquals("приветик ", text.text)
        assertEquals("приветик", text.type("<").text)
    }
}
