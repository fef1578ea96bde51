package io.pflmobile.keyboard.model

import android.content.Context

/** What the user chose about the keyboard itself. */
internal class Preferences(
    context: Context,
) {
    private val stored = context.getSharedPreferences("keyboard", Context.MODE_PRIVATE)

    /** Whether nothing is learned of what is typed. */
    var incognito: Boolean
        get() = stored.getBoolean(INCOGNITO, false)
        set(value) = stored.edit().putBoolean(INCOGNITO, value).apply()

    private companion object {
        const val INCOGNITO = "incognito"
    }
}
