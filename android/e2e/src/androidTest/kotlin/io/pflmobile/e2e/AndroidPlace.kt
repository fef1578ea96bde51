package io.pflmobile.e2e

import android.content.Context
import android.content.res.AssetManager
import android.os.Process
import android.util.Log
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.personal.ModelOptions
import io.pflmobile.core.personal.PersonalModel
import io.pflmobile.scenarios.Place
import io.pflmobile.scenarios.damaged
import io.pflmobile.sdk.open
import java.io.File

/**
 * An app on Android that uses the SDK: SQLite, the Keystore, files without backup.
 *
 * @property scenario gives the model its name, so that each scenario has a user of its own
 */
internal class AndroidPlace(
    private val context: Context,
    private val scenario: String,
    override val engine: Engine,
    override val aggregator: String?,
) : Place {
    private val home = File(context.noBackupFilesDir, "scenarios/$scenario").apply { mkdirs() }

    override suspend fun open(
        name: String,
        options: ModelOptions,
    ): PersonalModel = PersonalModel.open(context, bundle(name).path, options)

    override fun kill() {
        // what started it tells this end from any other by the line
        Log.i("pfl-scenario", "this process kills itself, as the scenario has it")
        Process.killProcess(Process.myPid())
        Thread.sleep(Long.MAX_VALUE)
    }

    /** Under one name, as an app's newer bundle has the name of the older. */
    private fun bundle(name: String): File {
        val file = File(home, "$scenario.pflb")
        val bytes = asset(context, "bundles/${if (name == DAMAGED) SOUND else name}.pflb")
        file.writeBytes(if (name == DAMAGED) damaged(bytes) else bytes)
        return file
    }

    private companion object {
        const val DAMAGED = "damaged"
        const val SOUND = "tiny"
    }
}

/** A file of the test's own assets: `bundles` and `scenarios`. */
internal fun asset(
    context: Context,
    name: String,
): ByteArray = context.assets.open(name, AssetManager.ACCESS_STREAMING).use { it.readBytes() }
