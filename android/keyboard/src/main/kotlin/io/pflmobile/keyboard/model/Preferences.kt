package io.pflmobile.keyboard.model

import android.content.Context
import io.pflmobile.keyboard.R

/** What the user chose about the keyboard itself. */
internal class Preferences(
    private val context: Context,
) {
    private val stored = context.getSharedPreferences("keyboard", Context.MODE_PRIVATE)

    /** Whether nothing is learned of what is typed. */
    var incognito: Boolean
        get() = stored.getBoolean(INCOGNITO, false)
        set(value) = stored.edit().putBoolean(INCOGNITO, value).apply()

    /** Whether the user takes part in rounds with other phones; on the disk at once, as jobs of another process ask it. */
    var rounds: Boolean
        get() = stored.getBoolean(ROUNDS, false)
        set(value) {
            stored.edit().putBoolean(ROUNDS, value).commit()
        }

    /** Address of the rounds' server: what was set, or else the build's; empty where there is none. */
    var server: String
        get() = stored.getString(SERVER, null) ?: context.getString(R.string.rounds_server)
        set(value) = stored.edit().putString(SERVER, value).apply()

    private companion object {
        const val INCOGNITO = "incognito"
        const val ROUNDS = "rounds"
        const val SERVER = "server"
    }
}
