package io.pflmobile.keyboard.keys

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue

class KeysTest {
    @Test
    fun `every page has letters or symbols, a way back, and rows that fit`() {
        for (page in Page.entries) {
            val rows = KeyLayout.rows(page)
            assertEquals(4, rows.size)
            rows.forEach { row -> assertTrue(row.sumOf { it.weight.toDouble() } <= KeyLayout.WIDTH, "$row") }
            val actions = rows.flatten().map { it.action }
            assertTrue(actions.containsAll(listOf(KeyAction.Space, KeyAction.Enter, KeyAction.Backspace)))
            assertEquals(actions.size, actions.toSet().size, "a key stands twice on $page")
            assertTrue(actions.any { it is KeyAction.Show })
        }
    }

    @Test
    fun `all letters are there, and the character beside the space bar`() {
        val typed = KeyLayout.rows(Page.LETTERS, "@").flatten().mapNotNull { (it.action as? KeyAction.Type)?.text }
        assertEquals(
            ('a'..'z').map { it.toString() } + listOf(".", "@").sorted(),
            typed.filter { it[0].isLetter() }.sorted() + listOf(".", "@"),
        )
    }

    @Test
    fun `each key is found at its middle, and the last of a row beside it`() {
        val geometry = KeyGeometry(KeyLayout.rows(Page.LETTERS), 1000f, 400f)
        for (key in geometry.keys) assertEquals(key, geometry.at((key.left + key.right) / 2, (key.top + key.bottom) / 2))
        assertEquals(KeyAction.Type("a"), assertNotNull(geometry.at(1f, 150f)).key.action)
        assertEquals(KeyAction.Type("l"), assertNotNull(geometry.at(999f, 150f)).key.action)
        assertNull(geometry.at(10f, 401f))
    }

    @Test
    fun `shift holds for one letter, twice for all, and once more for none`() {
        val key = ShiftKey()
        key.press(0)
        assertEquals(Shift.ONCE, key.state)
        key.typed()
        assertEquals(Shift.OFF, key.state)
        key.press(10_000)
        key.press(10_200)
        assertEquals(Shift.LOCKED, key.state)
        key.typed()
        assertEquals(Shift.LOCKED, key.state)
        key.press(11_000)
        assertEquals(Shift.OFF, key.state)
    }

    @Test
    fun `a slow second press takes the first back`() {
        val key = ShiftKey()
        key.press(0)
        key.press(1000)
        assertEquals(Shift.OFF, key.state)
    }

    @Test
    fun `the field's wish gives way to the user's`() {
        val key = ShiftKey()
        key.fieldWants(true)
        assertEquals(Shift.ONCE, key.state)
        key.fieldWants(false)
        assertEquals(Shift.OFF, key.state)
        key.press(0)
        key.fieldWants(false)
        assertEquals(Shift.ONCE, key.state)
    }
}
