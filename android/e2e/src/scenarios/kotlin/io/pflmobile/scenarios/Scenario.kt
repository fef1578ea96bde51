package io.pflmobile.scenarios

import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive

/** Who carries out the steps of a scenario and checks what they give. */
internal interface User {
    /**
     * Does one step.
     *
     * @throws AssertionError it gives something else than it says
     */
    suspend fun carryOut(step: JsonObject)

    /** Ends as a process does that the system has no complaint about. */
    suspend fun close()
}

/**
 * What `federation.py` serves.
 *
 * @property alone the phone is its only device, and adds the noise itself; else there is one of Python as well
 */
internal data class Served(
    val bundle: String,
    val alone: Boolean,
)

/** One file of `conformance/scenarios`, read. */
internal class Scenario(
    json: String,
) {
    private val steps: List<JsonObject> =
        Json
            .parseToJsonElement(json)
            .jsonObject
            .getValue("steps")
            .jsonArray
            .map { it.jsonObject }

    /** What one process after the other does; each but the first begins with `restart`. */
    val parts: List<List<JsonObject>> =
        steps.fold(listOf(emptyList())) { parts, step ->
            if (word(step, "do") == "restart") parts + listOf(listOf(step)) else parts.dropLast(1) + listOf(parts.last() + step)
        }

    /** The federation that must be there before the first process; null where none is needed. */
    val served: Served? =
        steps.firstOrNull { word(it, "do") == SERVE }?.let { step ->
            Served(word(step, "bundle"), step["alone"]?.jsonPrimitive?.boolean ?: false)
        }

    /** Whether the system ends the process of a part. */
    fun isKilled(part: Int): Boolean = parts[part].any { step -> KILLS.any { it in step } }

    /**
     * Carries out one part.
     *
     * @param user of these steps, told the bundle that was open before; null for a new user
     * @throws AssertionError a step gives something else than the scenario says; the message names the step
     */
    suspend fun carryOut(
        part: Int,
        user: (bundle: String?) -> User,
    ) {
        val before = parts.take(part).flatten()
        val opened = before.lastOrNull { "bundle" in it && "refused" !in it && word(it, "do") != SERVE }
        val acting = user(opened?.let { word(it, "bundle") })
        try {
            for ((index, step) in parts[part].withIndex()) {
                try {
                    acting.carryOut(step)
                } catch (error: AssertionError) {
                    throw AssertionError("step ${before.size + index}, $step: ${error.message}", error)
                }
            }
        } finally {
            acting.close()
        }
    }

    private companion object {
        const val SERVE = "serve"
        val KILLS = listOf("kill_after", "kill_at")
    }
}

/** The content of a JSON string or number. */
internal fun word(element: JsonElement): String = element.jsonPrimitive.content

/** The same of a field that must be there. */
internal fun word(
    step: JsonObject,
    field: String,
): String = word(step.getValue(field))
