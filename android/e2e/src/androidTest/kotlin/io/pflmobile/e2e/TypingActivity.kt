package io.pflmobile.e2e

import android.app.Activity
import android.os.Bundle
import android.text.InputType
import android.view.inputmethod.EditorInfo
import android.widget.EditText
import android.widget.LinearLayout

/** Two fields: what is sent from the first may be learned, the second forbids it. */
public class TypingActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(
            LinearLayout(this).apply {
                orientation = LinearLayout.VERTICAL
                fitsSystemWindows = true
                addView(field(MESSAGE, 0))
                addView(field(PRIVATE, EditorInfo.IME_FLAG_NO_PERSONALIZED_LEARNING))
            },
        )
    }

    private fun field(
        name: String,
        options: Int,
    ): EditText =
        EditText(this).apply {
            contentDescription = name
            inputType = InputType.TYPE_CLASS_TEXT
            imeOptions = EditorInfo.IME_ACTION_SEND or options
            setOnEditorActionListener { view, action, _ ->
                if (action == EditorInfo.IME_ACTION_SEND) view.text = ""
                action == EditorInfo.IME_ACTION_SEND
            }
        }

    internal companion object {
        const val MESSAGE = "message"
        const val PRIVATE = "private"
    }
}
