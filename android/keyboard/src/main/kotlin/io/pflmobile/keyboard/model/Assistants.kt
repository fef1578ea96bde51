package io.pflmobile.keyboard.model

import android.content.Context
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock

/** The one model of the process: service and settings share it, as two would write the same files. */
internal object Assistants {
    /** How it is opened; a test puts another one here. */
    var open: suspend (Context) -> Assistant = { SdkAssistant.open(it) }

    private val lock = Mutex()
    private var opened: Assistant? = null

    /** Opens it the first time. */
    suspend fun of(context: Context): Assistant = lock.withLock { opened ?: open(context.applicationContext).also { opened = it } }

    /** Forgets what is open, for tests. */
    fun reset() {
        opened = null
    }
}
