package io.pflmobile.sdk

import android.Manifest
import android.app.job.JobInfo
import android.content.Context
import android.content.pm.PackageManager
import android.os.PersistableBundle
import io.pflmobile.core.device.PrivacyPolicy
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.personal.Federation
import io.pflmobile.core.personal.LeaveResult
import io.pflmobile.core.personal.PersonalModel
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/**
 * Lets the system take part in rounds with a model when the phone has time and a network that costs nothing. The schedule outlives the
 * process and a restart of the phone. What the device keeps of the federation, its credential too, lies in the model's own folder, of
 * which there is no backup.
 *
 * The app's manifest has to ask for `android.permission.INTERNET`: this library does not, as most apps need none of it.
 */
public object RoundsScheduler {
    private const val FIRST_ID = 0x70670c00
    internal val jobs = Jobs(RoundsJobService::class.java, FIRST_ID)

    /**
     * How a job finds the federation of a model, by the name that the model was scheduled with. By default with the address, policy and
     * group of [schedule]. An app whose federation needs a token, a verdict of the platform or a pinned key sets this in
     * `Application.onCreate`: a job's own notes are no place for secrets. Null where the user takes part no more: the job asks nobody then.
     */
    @Volatile public var federationWith: ((Context, String) -> Federation?)? = null

    /**
     * Takes part in [federation] again and again: at most once in the interval of the constraints it asks for a task, and does it. The
     * same schedule goes on; another one of the same model is replaced. Call it at each start of the app of a user who agreed to it.
     *
     * @throws ConfigException the app may not use the network; or the model has an engine of the app's own and
     *   [PersonalizationScheduler.openWith] is not set; or the federation needs [federationWith], and that is not set
     * @throws StateException the system refuses the job, or the model was not opened by a context
     */
    public fun schedule(
        context: Context,
        model: PersonalModel,
        federation: Federation,
        constraints: PersonalizationConstraints = PersonalizationConstraints(unmetered = true),
    ) {
        val name = Openings.nameOf(model)
        if (context.checkSelfPermission(Manifest.permission.INTERNET) != PackageManager.PERMISSION_GRANTED) {
            throw ConfigException("the app may not use the network", "put android.permission.INTERNET into its manifest")
        }
        if (!canBeMade(federation)) {
            throw ConfigException(
                "a job in a new process cannot make the token, verdict or HTTP client of ${federation.server}",
                "set RoundsScheduler.federationWith in Application.onCreate",
            )
        }
        val extras = JobExtras.packed(context, name, model.options, constraints).apply { putFederation(federation) }
        val network = if (constraints.unmetered) JobInfo.NETWORK_TYPE_UNMETERED else JobInfo.NETWORK_TYPE_ANY
        jobs.put(context, name, constraints, network, extras)
    }

    /** Ends the schedule of a model; a round that runs as a job ends within one step. The device stays enrolled: see [leave]. */
    public fun cancel(
        context: Context,
        model: PersonalModel,
    ) {
        jobs.cancel(context, Openings.nameOf(model))
    }

    /**
     * Ends the schedule and the membership; see [PersonalModel.leave]. Where the aggregator cannot be reached, a job leaves as soon as there
     * is a network, and tries until it has; [cancel] ends that too.
     */
    public suspend fun leave(
        context: Context,
        model: PersonalModel,
        federation: Federation,
    ): LeaveResult {
        cancel(context, model)
        // before the first try, as the process may end in it
        if (canBeMade(federation)) leaveLater(context, model, federation)
        val result = model.leave(federation)
        if (result !is LeaveResult.Unreachable) cancel(context, model)
        return result
    }

    private fun leaveLater(
        context: Context,
        model: PersonalModel,
        federation: Federation,
    ) {
        val name = Openings.nameOf(model)
        val always =
            PersonalizationConstraints(charging = false, idle = false, unmetered = false, minBatteryPercent = 0, cool = false)
        val extras = JobExtras.packed(context, name, model.options, always)
        extras.putFederation(federation)
        extras.putBoolean(LEAVE, true)
        jobs.put(context, name, always, JobInfo.NETWORK_TYPE_ANY, extras)
    }

    /** Whether a job still has to tell the aggregator that the device left; see [leave]. */
    public fun isLeaving(
        context: Context,
        model: PersonalModel,
    ): Boolean = jobs.find(context, Openings.nameOf(model))?.let { isLeaving(it.extras) } == true

    internal fun isLeaving(extras: PersistableBundle): Boolean = extras.getBoolean(LEAVE)

    /** For what the next round of a model waits; empty where it only waits for the system. */
    public suspend fun whyWaiting(
        context: Context,
        model: PersonalModel,
    ): Set<Waiting> {
        val status = model.status()
        val job = jobs.find(context, Openings.nameOf(model))?.takeUnless { isLeaving(it.extras) }
        return waiting(context, status, job, status.rounds?.asked, lastJob(context, model))
    }

    /** How the last job of a model ended; null before the first, and after everything was erased. */
    public suspend fun lastJob(
        context: Context,
        model: PersonalModel,
    ): JobOutcome? = withContext(Dispatchers.IO) { JobNotes.of(context, Openings.nameOf(model)).outcome(JobNotes.ROUNDS) }

    /** Whether a job in a new process has all that the federation needs. */
    private fun canBeMade(federation: Federation) =
        (federation.token ?: federation.attest ?: federation.http) == null || federationWith != null

    /** Null where the app says that the user takes part no more. */
    internal fun federationOf(
        context: Context,
        extras: PersistableBundle,
        name: String,
    ): Federation? {
        val make = federationWith ?: return scheduled(extras)
        return make(context, name)
    }

    /** That of the membership which still has to be ended, also where the app knows of none any more. */
    internal fun federationToLeave(
        context: Context,
        extras: PersistableBundle,
        name: String,
    ): Federation = federationOf(context, extras, name) ?: scheduled(extras)

    private fun scheduled(extras: PersistableBundle) =
        Federation(
            extras.getString(SERVER).orEmpty(),
            PrivacyPolicy(
                extras.getBoolean("require"),
                extras.getBoolean("only_local"),
                extras.getDouble("min_noise"),
                extras.getDouble("max_epsilon"),
                extras.getDouble("max_delta"),
                extras.getBoolean("report"),
            ),
            extras.getString("group").orEmpty(),
            allowHttp = extras.getBoolean("allow_http"),
        )

    private fun PersistableBundle.putFederation(federation: Federation) {
        putString(SERVER, federation.server)
        putString("group", federation.group)
        putBoolean("allow_http", federation.allowHttp)
        val policy = federation.policy
        putBoolean("require", policy.require)
        putBoolean("only_local", policy.onlyLocal)
        putDouble("min_noise", policy.minNoise)
        putDouble("max_epsilon", policy.maxEpsilon)
        putDouble("max_delta", policy.maxDelta)
        putBoolean("report", policy.report)
    }

    private const val SERVER = "server"
    private const val LEAVE = "leave"
}
