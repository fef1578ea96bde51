package io.pflmobile.sdk

import android.content.Context
import android.os.PersistableBundle
import io.pflmobile.core.bundle.VerificationKey
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.ExecuTorchEngine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.local.Retention
import io.pflmobile.core.personal.ModelOptions

/** What a job needs in a new process: which model, how it is opened, and when it may run. Nothing in it is secret. */
internal object JobExtras {
    fun nameOf(extras: PersistableBundle): String? = extras.getString(NAME)

    fun constraintsOf(extras: PersistableBundle) =
        PersonalizationConstraints(
            extras.getBoolean("charging"),
            extras.getBoolean("idle"),
            extras.getBoolean("unmetered"),
            extras.getInt("battery"),
            extras.getBoolean("cool"),
            extras.getInt("hours"),
        )

    /** @throws io.pflmobile.core.errors.StateException words are blocked, and it is not known any more which */
    fun optionsOf(
        context: Context,
        extras: PersistableBundle,
    ): ModelOptions {
        fun long(name: String) = if (extras.containsKey(name)) extras.getLong(name) else null
        val byName = ENGINES.associateBy { it.name }
        return ModelOptions(
            extras.getString("key")?.let(VerificationKey::parse),
            extras.getBoolean("trusted"),
            extras.getStringArray("engines").orEmpty().mapNotNull { byName[it] },
            extras.getInt("threads"),
            Retention(
                long("max_examples")?.toInt(),
                if (extras.containsKey("max_age")) extras.getDouble("max_age") else null,
                long("max_bytes"),
            ),
            if (extras.getBoolean("blocked")) JobNotes.of(context, nameOf(extras).orEmpty()).blockedWords() else emptySet(),
            extras.getDouble("test"),
            extras.getLong("checkpoint_every"),
            extras.getLong("engine_idle_ms"),
            extras.getBoolean("discard_other_state"),
        )
    }

    /** Which words are blocked goes to a file in the model's folder: the system shows a job's extras to whoever has a cable. */
    fun packed(
        context: Context,
        name: String,
        options: ModelOptions,
        constraints: PersonalizationConstraints,
    ): PersistableBundle {
        val own = options.engines.filterNot { it in ENGINES }
        if (own.isNotEmpty() && PersonalizationScheduler.openWith == null) {
            throw ConfigException(
                "a job in a new process cannot make the engine '${own.first().name}'",
                "set PersonalizationScheduler.openWith in Application.onCreate",
            )
        }
        JobNotes.of(context, name).block(options.blockedWords)
        return PersistableBundle().apply {
            putString(NAME, name)
            putLong(UPDATED, updated(context))
            putBoolean("charging", constraints.charging)
            putBoolean("idle", constraints.idle)
            putBoolean("unmetered", constraints.unmetered)
            putInt("battery", constraints.minBatteryPercent)
            putBoolean("cool", constraints.cool)
            putInt("hours", constraints.everyHours)
            options.key?.let { putString("key", it.hex) }
            putBoolean("trusted", options.trusted)
            putStringArray("engines", options.engines.map { it.name }.toTypedArray())
            putInt("threads", options.threads)
            options.retention.maxExamples?.let { putLong("max_examples", it.toLong()) }
            options.retention.maxAge?.let { putDouble("max_age", it) }
            options.retention.maxBytes?.let { putLong("max_bytes", it) }
            putBoolean("blocked", options.blockedWords.isNotEmpty())
            putDouble("test", options.test)
            putLong("checkpoint_every", options.checkpointEvery)
            putLong("engine_idle_ms", options.engineIdleMs)
            putBoolean("discard_other_state", options.discardOtherState)
        }
    }

    /** Whether the app was updated since: its options may be others now. */
    fun isOutdated(
        context: Context,
        extras: PersistableBundle,
    ): Boolean = extras.getLong(UPDATED) != updated(context)

    private fun updated(context: Context) = context.packageManager.getPackageInfo(context.packageName, 0).lastUpdateTime

    private const val NAME = "name"
    private const val UPDATED = "updated"
    private val ENGINES: List<Engine> = listOf(ExecuTorchEngine, OnnxRuntimeEngine)
}
