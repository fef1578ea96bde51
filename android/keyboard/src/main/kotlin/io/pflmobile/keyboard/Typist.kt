package io.pflmobile.keyboard

import io.pflmobile.keyboard.keys.KeyAction
import io.pflmobile.keyboard.keys.Page
import io.pflmobile.keyboard.keys.Shift
import io.pflmobile.keyboard.keys.ShiftKey
import io.pflmobile.keyboard.learning.Field
import io.pflmobile.keyboard.learning.LearningFilter
import io.pflmobile.keyboard.learning.SentenceCollector
import io.pflmobile.keyboard.text.Composer
import io.pflmobile.keyboard.text.Edit
import io.pflmobile.keyboard.text.Graphemes
import io.pflmobile.keyboard.text.Request

/** The text that is typed into. */
internal interface Editor {
    /** At most so many UTF-16 units before the cursor. */
    fun before(units: Int): String

    /** At most so many behind it. */
    fun after(units: Int): String

    /** Whether text is selected, which the next character or backspace replaces. */
    fun hasSelection(): Boolean

    /** Whether the field wants a capital here. */
    fun wantsCapital(): Boolean

    /** Removes units before the cursor and puts a text there, or in the place of the selection. */
    fun edit(edit: Edit)

    /** Does what the enter key stands for; true if that was a new line. */
    fun enter(): Boolean
}

/**
 * What the keyboard does with its keys, apart from drawing and from Android.
 *
 * @param learn takes what may be learned
 */
internal class Typist(
    private val learn: (String) -> Unit,
) {
    private val shiftKey = ShiftKey()
    private val collector = SentenceCollector { text -> LearningFilter.parts(text).forEach(learn) }
    private var place = Field.UNKNOWN
    private var ownSpace = false

    /** The keys to show. */
    var page: Page = Page.LETTERS
        private set

    val shift: Shift get() = shiftKey.state

    /** The character left of the space bar. */
    val beside: String
        get() =
            when (place.kind) {
                Field.Kind.ADDRESS -> "@"
                Field.Kind.URL -> "/"
                else -> ","
            }

    /** Begins in a field. */
    fun start(
        field: Field,
        editor: Editor?,
    ) {
        collector.close()
        place = field
        ownSpace = false
        shiftKey.reset()
        page = if (field.kind == Field.Kind.DIGITS) Page.SYMBOLS else Page.LETTERS
        editor?.let { shiftKey.fieldWants(it.wantsCapital()) }
    }

    /** The field may do other things now: the user asked for incognito, or ended it. What was typed until now follows the stricter. */
    fun change(field: Field) {
        if (!field.learns) collector.drop()
        place = field
    }

    /** @param now in milliseconds */
    fun press(
        action: KeyAction,
        editor: Editor,
        now: Long,
    ) {
        when (action) {
            is KeyAction.Show -> page = action.page
            KeyAction.Shift -> shiftKey.press(now)
            KeyAction.Backspace -> backspace(editor)
            KeyAction.Space -> space(editor)
            KeyAction.Enter -> enter(editor)
            is KeyAction.Type -> type(if (shift == Shift.OFF) action.text else action.text.uppercase(), editor)
        }
        if (action !is KeyAction.Shift) shiftKey.fieldWants(editor.wantsCapital())
    }

    /** A suggestion was chosen. */
    fun choose(
        word: String,
        editor: Editor,
    ) {
        apply(Composer.choose(editor.before(Composer.LOOK), word), editor)
        ownSpace = editor.before(1) == " "
        shiftKey.typed()
        shiftKey.fieldWants(editor.wantsCapital())
    }

    /** The cursor or the text changed, perhaps by ourselves. */
    fun moved(editor: Editor) {
        val before = editor.before(Composer.LOOK)
        if (!before.endsWith(' ')) ownSpace = false
        collector.moved(before, editor.after(1))
        shiftKey.fieldWants(editor.wantsCapital())
    }

    /** The field is left. */
    fun finish() {
        collector.close()
        place = Field.UNKNOWN
    }

    /** What to ask the model; null where nothing is suggested. */
    fun request(editor: Editor): Request? =
        if (place.suggests &&
            !editor.hasSelection()
        ) {
            Composer.request(editor.before(Composer.LOOK))
        } else {
            null
        }

    /** How a suggestion is shown. */
    fun spelled(
        word: String,
        request: Request,
    ): String = if (shift == Shift.LOCKED) word.uppercase() else Composer.spelled(word, request.prefix, shift == Shift.ONCE)

    private fun type(
        text: String,
        editor: Editor,
    ) {
        val edit = Composer.type(editor.before(Composer.LOOK), text, ownSpace)
        apply(edit, editor)
        ownSpace = edit.delete > 0 && edit.insert.endsWith(' ')
        shiftKey.typed()
    }

    private fun space(editor: Editor) {
        val before = editor.before(Composer.LOOK)
        // the space is there already; a second press is the user's own
        if (ownSpace && before.endsWith(' ')) ownSpace = false else apply(if (prose) Composer.space(before) else Edit(0, " "), editor)
        if (page != Page.LETTERS && place.kind != Field.Kind.DIGITS) page = Page.LETTERS
    }

    private val prose: Boolean get() = place.suggests

    private fun backspace(editor: Editor) {
        ownSpace = false
        if (editor.hasSelection()) {
            collector.close()
            editor.edit(Edit(0, ""))
            return
        }
        val units = Graphemes.lastLength(editor.before(Composer.LOOK))
        if (units == 0) return
        editor.edit(Edit(units, ""))
        collector.deleted(units)
    }

    private fun enter(editor: Editor) {
        ownSpace = false
        collector.close()
        editor.enter()
    }

    private fun apply(
        edit: Edit,
        editor: Editor,
    ) {
        val before = editor.before(Composer.LOOK)
        if (editor.hasSelection()) collector.close()
        editor.edit(edit)
        if (!place.learns) return
        collector.deleted(edit.delete)
        collector.typed(before.dropLast(edit.delete), edit.insert)
    }
}
