package io.pflmobile.keyboard

import android.view.KeyEvent
import android.view.inputmethod.EditorInfo
import android.view.inputmethod.InputConnection
import io.pflmobile.keyboard.text.Edit

/** The app's field, over its connection. A field that is gone reads as empty. */
internal class ConnectedEditor(
    private val connection: InputConnection,
    private val info: EditorInfo,
) : Editor {
    override fun before(units: Int): String = connection.getTextBeforeCursor(units, 0)?.toString().orEmpty()

    override fun after(units: Int): String = connection.getTextAfterCursor(units, 0)?.toString().orEmpty()

    override fun hasSelection(): Boolean = !connection.getSelectedText(0).isNullOrEmpty()

    override fun wantsCapital(): Boolean = info.inputType != 0 && connection.getCursorCapsMode(info.inputType) != 0

    override fun edit(edit: Edit) {
        connection.beginBatchEdit()
        if (edit.delete > 0) connection.deleteSurroundingText(edit.delete, 0)
        if (edit.insert.isNotEmpty() || edit.delete == 0) connection.commitText(edit.insert, 1)
        connection.endBatchEdit()
    }

    override fun enter(): Boolean {
        val action = enterAction(info)
        if (action != EditorInfo.IME_ACTION_NONE) {
            connection.performEditorAction(action)
            return false
        }
        connection.sendKeyEvent(KeyEvent(KeyEvent.ACTION_DOWN, KeyEvent.KEYCODE_ENTER))
        connection.sendKeyEvent(KeyEvent(KeyEvent.ACTION_UP, KeyEvent.KEYCODE_ENTER))
        return true
    }

    companion object {
        /** What enter does in a field; `IME_ACTION_NONE` for a new line. */
        fun enterAction(info: EditorInfo): Int {
            val action = info.imeOptions and EditorInfo.IME_MASK_ACTION
            val newLine = info.imeOptions and EditorInfo.IME_FLAG_NO_ENTER_ACTION != 0 || action == EditorInfo.IME_ACTION_UNSPECIFIED
            return if (newLine) EditorInfo.IME_ACTION_NONE else action
        }
    }
}
