package io.pflmobile.keyboard.model

import android.content.Context
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Deferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.async

/** The one model of the process: service and settings share it, as two would write the same files. */
internal object Assistants {
    /** How it is opened; a test puts another one here. */
    var open: suspend (Context) -> Assistant = { SdkAssistant.open(it) }

    /** Of no caller: whoever stops waiting leaves the opening alone. It begins at once, and goes on where the model does. */
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Unconfined)
    private var opening: Deferred<Assistant>? = null

    /** Opens it the first time; a failure stays one until [tryAgain]. */
    suspend fun of(context: Context): Assistant = begun(context.applicationContext).await()

    @Synchronized
    private fun begun(context: Context): Deferred<Assistant> = opening ?: scope.async { open(context) }.also { opening = it }

    /** Forgets that it could not be opened, as often as is worth a try: a key is not, a field is. */
    @Synchronized
    fun tryAgain() {
        if (opening?.isCancelled == true) opening = null
    }

    /** Forgets what is open, for tests. */
    @Synchronized
    fun reset() {
        opening = null
    }
}
