package io.pflmobile.keyboard.learning

import android.text.InputType
import android.view.inputmethod.EditorInfo

/**
 * What the keyboard may do in a field, from what the app says of it. The numbers are Android's and are compiled in, so that this is
 * tested on any JVM.
 *
 * @property kind what is typed into it
 * @property learns whether what is typed there may be learned
 * @property suggests whether words are suggested
 * @property multiline whether enter begins a new line
 */
internal data class Field(
    val kind: Kind,
    val learns: Boolean,
    val suggests: Boolean,
    val multiline: Boolean,
) {
    enum class Kind { TEXT, ADDRESS, URL, DIGITS, SECRET }

    companion object {
        /** A field that nothing is known of. */
        val UNKNOWN: Field = Field(Kind.TEXT, learns = false, suggests = false, multiline = false)

        /** Variations where people write to people; names, addresses, filters and whatever comes later are not learned from. */
        private val PROSE =
            setOf(
                InputType.TYPE_TEXT_VARIATION_NORMAL,
                InputType.TYPE_TEXT_VARIATION_EMAIL_SUBJECT,
                InputType.TYPE_TEXT_VARIATION_SHORT_MESSAGE,
                InputType.TYPE_TEXT_VARIATION_LONG_MESSAGE,
                InputType.TYPE_TEXT_VARIATION_WEB_EDIT_TEXT,
            )

        private val SECRETS =
            setOf(
                InputType.TYPE_TEXT_VARIATION_PASSWORD,
                InputType.TYPE_TEXT_VARIATION_VISIBLE_PASSWORD,
                InputType.TYPE_TEXT_VARIATION_WEB_PASSWORD,
            )

        private val ADDRESSES = setOf(InputType.TYPE_TEXT_VARIATION_EMAIL_ADDRESS, InputType.TYPE_TEXT_VARIATION_WEB_EMAIL_ADDRESS)

        /**
         * Of an `EditorInfo`.
         *
         * @param incognito whether the user asked that nothing be learned
         */
        fun of(
            inputType: Int,
            imeOptions: Int,
            incognito: Boolean,
        ): Field {
            if (inputType and InputType.TYPE_MASK_CLASS != InputType.TYPE_CLASS_TEXT) {
                return if (inputType == InputType.TYPE_NULL) UNKNOWN else UNKNOWN.copy(kind = Kind.DIGITS)
            }
            val variation = inputType and InputType.TYPE_MASK_VARIATION
            val kind =
                when (variation) {
                    in SECRETS -> Kind.SECRET
                    in ADDRESSES -> Kind.ADDRESS
                    InputType.TYPE_TEXT_VARIATION_URI -> Kind.URL
                    else -> Kind.TEXT
                }
            val suggests = kind == Kind.TEXT && inputType and InputType.TYPE_TEXT_FLAG_NO_SUGGESTIONS == 0
            val forbidden = incognito || imeOptions and EditorInfo.IME_FLAG_NO_PERSONALIZED_LEARNING != 0
            val multiline = inputType and InputType.TYPE_TEXT_FLAG_MULTI_LINE != 0
            return Field(kind, suggests && variation in PROSE && !forbidden, suggests, multiline)
        }
    }
}
