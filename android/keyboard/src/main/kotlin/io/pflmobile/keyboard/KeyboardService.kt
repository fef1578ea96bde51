package io.pflmobile.keyboard

import android.inputmethodservice.InputMethodService
import android.os.SystemClock
import android.view.View
import android.view.inputmethod.EditorInfo
import android.widget.LinearLayout
import io.pflmobile.core.errors.PflException
import io.pflmobile.keyboard.keys.KeyAction
import io.pflmobile.keyboard.keys.KeyLayout
import io.pflmobile.keyboard.learning.Field
import io.pflmobile.keyboard.model.Assistant
import io.pflmobile.keyboard.model.Assistants
import io.pflmobile.keyboard.model.Preferences
import io.pflmobile.keyboard.text.Composer
import io.pflmobile.keyboard.view.KeyboardView
import io.pflmobile.keyboard.view.Labels
import io.pflmobile.keyboard.view.SuggestionStrip
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

/** The input method: keys, three suggestions of the personal model, and learning from what is typed. */
public class KeyboardService : InputMethodService() {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)
    private val typist = Typist(::learn)
    private var keys: KeyboardView? = null
    private var strip: SuggestionStrip? = null
    private var asked: Job? = null
    private var field = Field.UNKNOWN

    override fun onCreateInputView(): View {
        val strip = SuggestionStrip(this).also { it.onWord = ::choose }
        val keys = KeyboardView(this, Labels(resources)).also { it.onKey = ::press }
        this.strip = strip
        this.keys = keys
        show()
        return LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            addView(strip, LinearLayout.LayoutParams(LinearLayout.LayoutParams.MATCH_PARENT, LinearLayout.LayoutParams.WRAP_CONTENT))
            addView(keys, LinearLayout.LayoutParams(LinearLayout.LayoutParams.MATCH_PARENT, LinearLayout.LayoutParams.WRAP_CONTENT))
        }
    }

    /** The keys would hide a text that is typed on its side otherwise. */
    override fun onEvaluateFullscreenMode(): Boolean = false

    override fun onStartInput(
        attribute: EditorInfo?,
        restarting: Boolean,
    ) {
        super.onStartInput(attribute, restarting)
        val now = attribute?.let { Field.of(it.inputType, it.imeOptions, Preferences(this).incognito) } ?: Field.UNKNOWN
        // an app may restart input at every word; what is typed goes on
        if (restarting && now == field) return
        Assistants.tryAgain()
        // a field that turns secret while it is typed in
        if (restarting) typist.change(now)
        field = now
        typist.start(now, editor())
    }

    override fun onStartInputView(
        editorInfo: EditorInfo?,
        restarting: Boolean,
    ) {
        super.onStartInputView(editorInfo, restarting)
        keys?.labels?.enterAction = editorInfo?.let(ConnectedEditor::enterAction) ?: EditorInfo.IME_ACTION_NONE
        // the user may have come back from the settings
        val incognito = Preferences(this).incognito
        editorInfo?.let { field = Field.of(it.inputType, it.imeOptions, incognito).also(typist::change) }
        show()
        suggest()
    }

    override fun onUpdateSelection(
        oldSelStart: Int,
        oldSelEnd: Int,
        newSelStart: Int,
        newSelEnd: Int,
        candidatesStart: Int,
        candidatesEnd: Int,
    ) {
        super.onUpdateSelection(oldSelStart, oldSelEnd, newSelStart, newSelEnd, candidatesStart, candidatesEnd)
        editor()?.let(typist::moved)
        show()
        suggest()
    }

    override fun onFinishInput() {
        asked?.cancel()
        typist.finish()
        field = Field.UNKNOWN
        strip?.show(emptyList())
        super.onFinishInput()
    }

    override fun onDestroy() {
        typist.finish()
        scope.cancel()
        super.onDestroy()
    }

    private fun editor(): Editor? {
        val connection = currentInputConnection ?: return null
        return ConnectedEditor(connection, currentInputEditorInfo ?: return null)
    }

    private fun press(action: KeyAction) {
        typist.press(action, editor() ?: return, SystemClock.uptimeMillis())
        show()
        suggest()
    }

    private fun choose(word: String) {
        typist.choose(word, editor() ?: return)
        show()
        suggest()
    }

    private fun show() {
        keys?.show(KeyLayout.rows(typist.page, typist.beside), typist.shift)
    }

    /** Asks for words; a question that is overtaken by the next is dropped. */
    private fun suggest() {
        asked?.cancel()
        val request = editor()?.let(typist::request)
        val note = if (field.learns) "" else getString(R.string.learning_off)
        if (request == null) {
            strip?.show(emptyList(), note)
            return
        }
        asked =
            scope.launch {
                val words =
                    withModel {
                        if (request.prefix.isEmpty()) {
                            suggest(
                                request.context,
                                CHOICE,
                            )
                        } else {
                            complete(request.context, request.prefix, CHOICE)
                        }
                    }.orEmpty()
                val shown = Composer.completions(words, request.prefix, SHOWN).map { typist.spelled(it, request) }
                strip?.show(shown, note)
            }
    }

    private fun learn(text: String) {
        // not cut short when the keyboard goes away
        KEEPING.launch { withModel { remember(text) } }
    }

    /** Without a model the keys still type. */
    private suspend fun <T> withModel(use: suspend Assistant.() -> T): T? =
        try {
            Assistants.of(this).use()
        } catch (_: PflException) {
            null
        }

    private companion object {
        const val SHOWN = 3

        /** Of so many words some are punctuation. */
        const val CHOICE = 12
        val KEEPING = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)
    }
}
