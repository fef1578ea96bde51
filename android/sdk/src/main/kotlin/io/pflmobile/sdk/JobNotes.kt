package io.pflmobile.sdk

import android.content.Context
import android.util.AtomicFile
import io.pflmobile.core.errors.StateException
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject
import java.io.File
import java.io.IOException

/**
 * How the last job of a model ended. A job that the phone took back before its end is none.
 *
 * @property began seconds since 1970
 * @property ended likewise
 * @property code a word for how it ended (`adopted`, `kept`, `took-part`, `no-round`, ...); of a failure that of its
 *   [io.pflmobile.core.errors.PflException], or the name of the exception's class
 * @property failed whether it failed; the next one tries again
 */
public data class JobOutcome(
    val began: Double,
    val ended: Double,
    val code: String,
    val failed: Boolean,
) {
    /** When what was done at [last] began: a long job must not push the next one further and further away. */
    internal fun since(last: Double?): Double? = if (last != null && last in began..ended) began else last
}

/** What jobs keep in a model's folder: how they ended, and which words are blocked, as everybody with a cable can list the system's jobs. */
internal class JobNotes(
    private val folder: File,
) {
    /** How the last job of a kind ended; null before the first, or where nobody can read it any more. */
    fun outcome(kind: String): JobOutcome? =
        try {
            JSONObject(file(kind).readFully().decodeToString()).run {
                JobOutcome(getDouble("began"), getDouble("ended"), getString("code"), getBoolean("failed"))
            }
        } catch (_: IOException) {
            null
        } catch (_: JSONException) {
            null
        }

    fun ended(
        kind: String,
        outcome: JobOutcome,
    ) {
        val content = JSONObject()
        content
            .put("began", outcome.began)
            .put("ended", outcome.ended)
            .put("code", outcome.code)
            .put("failed", outcome.failed)
        try {
            // where the model was erased there is nothing to note
            if (folder.isDirectory) write(kind, content.toString())
        } catch (_: IOException) {
            // a full disk: the job ended all the same
        }
    }

    /** Forgets how jobs ended. */
    fun erase() {
        for (kind in listOf(PERSONALIZATION, ROUNDS)) file(kind).delete()
    }

    /** @throws StateException they are not there */
    fun blockedWords(): Set<String> =
        try {
            JSONArray(file(BLOCKED).readFully().decodeToString()).let { all -> List(all.length(), all::getString).toSet() }
        } catch (error: IOException) {
            throw lost(error)
        } catch (error: JSONException) {
            throw lost(error)
        }

    /** @throws io.pflmobile.core.errors.PflException the storage takes no file */
    fun block(words: Set<String>) {
        try {
            if (words.isEmpty()) file(BLOCKED).delete() else write(BLOCKED, JSONArray(words.sorted()).toString())
        } catch (error: IOException) {
            throw storageError("the blocked words cannot be kept for jobs", error)
        }
    }

    private fun lost(error: Exception) =
        StateException("the words that a job must not learn are not there any more", "schedule it again", error)

    private fun file(name: String) = AtomicFile(File(folder, "job-$name.json"))

    private fun write(
        name: String,
        content: String,
    ) {
        val file = file(name)
        val stream = file.startWrite()
        try {
            stream.write(content.encodeToByteArray())
        } catch (error: IOException) {
            file.failWrite(stream)
            throw error
        }
        file.finishWrite(stream)
    }

    companion object {
        const val PERSONALIZATION = "personalization"
        const val ROUNDS = "rounds"
        private const val BLOCKED = "blocked"

        /** @param name by which the model was opened */
        fun of(
            context: Context,
            name: String,
        ) = JobNotes(Openings.folderOf(context, name).toFile())
    }
}
