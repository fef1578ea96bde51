package io.pflmobile.scenarios

import io.pflmobile.core.engines.Engine
import io.pflmobile.core.personal.ModelOptions
import io.pflmobile.core.personal.PersonalModel

/** Where a scenario is carried out: a JVM, or Android. */
internal interface Place {
    /** Runs the programs. */
    val engine: Engine

    /** Address of the aggregator; null where there is none. */
    val aggregator: String?

    /** Opens the user's model of a bundle; all have one folder, as a newer bundle has the same. */
    suspend fun open(
        name: String,
        options: ModelOptions,
    ): PersonalModel

    /** Ends the process at once, as the system does. */
    fun kill()
}

/** A quarter of the bytes changed: a single one may lie between two entries, where nothing reads it. */
internal fun damaged(bundle: ByteArray): ByteArray =
    bundle.clone().also { for (place in it.size / 4 until it.size / 2) it[place] = (it[place] + 1).toByte() }
