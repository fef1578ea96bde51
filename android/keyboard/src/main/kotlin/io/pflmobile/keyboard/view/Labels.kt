package io.pflmobile.keyboard.view

import android.content.res.Resources
import android.view.inputmethod.EditorInfo
import io.pflmobile.keyboard.R
import io.pflmobile.keyboard.keys.KeyAction
import io.pflmobile.keyboard.keys.Page
import io.pflmobile.keyboard.keys.Shift

/** What stands on a key, and what a screen reader says of it. */
internal class Labels(
    private val resources: Resources,
) {
    /** What the enter key does, one of `EditorInfo.IME_ACTION_`. */
    var enterAction: Int = EditorInfo.IME_ACTION_NONE

    fun drawn(
        action: KeyAction,
        shift: Shift,
    ): String =
        when (action) {
            is KeyAction.Type -> if (shift == Shift.OFF) action.text else action.text.uppercase()

            KeyAction.Backspace -> "⌫"

            KeyAction.Space, KeyAction.Shift -> ""

            // shift is an arrow
            is KeyAction.Show -> shown(action.page)

            KeyAction.Enter -> ENTER[enterAction]?.first ?: "⏎"
        }

    fun spoken(
        action: KeyAction,
        shift: Shift,
    ): String =
        when (action) {
            is KeyAction.Type -> character(action.text, shift)
            KeyAction.Shift -> resources.getString(SHIFT.getValue(shift))
            KeyAction.Backspace -> resources.getString(R.string.key_backspace)
            KeyAction.Space -> resources.getString(R.string.key_space)
            is KeyAction.Show -> resources.getString(PAGE.getValue(action.page))
            KeyAction.Enter -> resources.getString(ENTER[enterAction]?.second ?: R.string.key_enter)
        }

    private fun character(
        text: String,
        shift: Shift,
    ): String =
        when {
            text == "," -> resources.getString(R.string.key_comma)
            text == "." -> resources.getString(R.string.key_period)
            shift != Shift.OFF && text[0].isLetter() -> resources.getString(R.string.capital, text.uppercase())
            else -> text
        }

    private fun shown(page: Page): String =
        when (page) {
            Page.LETTERS -> "ABC"
            Page.SYMBOLS -> "?123"
            Page.MORE_SYMBOLS -> "=\\<"
        }

    private companion object {
        val SHIFT =
            mapOf(
                Shift.OFF to R.string.key_shift,
                Shift.ONCE to R.string.key_shift_once,
                Shift.LOCKED to R.string.key_shift_locked,
            )
        val PAGE =
            mapOf(
                Page.LETTERS to R.string.key_letters,
                Page.SYMBOLS to R.string.key_symbols,
                Page.MORE_SYMBOLS to R.string.key_more_symbols,
            )
        val ENTER =
            mapOf(
                EditorInfo.IME_ACTION_GO to ("→" to R.string.key_go),
                EditorInfo.IME_ACTION_SEARCH to ("🔍" to R.string.key_search),
                EditorInfo.IME_ACTION_SEND to ("➤" to R.string.key_send),
                EditorInfo.IME_ACTION_NEXT to ("⇥" to R.string.key_next),
                EditorInfo.IME_ACTION_DONE to ("✓" to R.string.key_done),
            )
    }
}
