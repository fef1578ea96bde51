package io.pflmobile.core.device

import io.pflmobile.core.errors.ServerProblemException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.errors.UnreachableException
import io.pflmobile.core.files.hex
import io.pflmobile.core.local.Status
import io.pflmobile.core.protocol.EvaluationReport
import io.pflmobile.core.protocol.RoundTask
import java.security.MessageDigest
import java.security.SecureRandom

/** Why a run of a device ended. */
public enum class Ended {
    /** As many updates were accepted as asked for. */
    ROUNDS,

    /** The federation trains no more. */
    DONE,

    /** It checked in once. */
    ONCE,

    /** The app wanted no further task. */
    UNTIL,

    /** The federation protects updates less than the policy asks for. */
    PRIVACY,
}

/**
 * What a run of a device did.
 *
 * @property ended why the run ended
 * @property rounds updates that the aggregator accepted
 * @property declined tasks without an update, by reason
 * @property dropped updates that could not be sent or were refused
 * @property bytesUp of bodies, failed tries included
 * @property bytesDown the same of answers
 */
public class Summary internal constructor(
    public val ended: Ended,
    public val rounds: Int,
    public val declined: Map<String, Int>,
    public val dropped: Int,
    public val bytesUp: Long,
    public val bytesDown: Long,
) {
    /** All numbers. */
    override fun toString(): String =
        "Summary(ended=$ended, rounds=$rounds, declined=$declined, dropped=$dropped, bytesUp=$bytesUp, bytesDown=$bytesDown)"
}

/** What a summary is made of. */
internal class Counts {
    var rounds = 0
    val declined = HashMap<String, Int>()
    var dropped = 0
}

/** Problems after which a task is over for this device, which goes on with the next. */
internal val OVER =
    setOf(
        "unknown-task",
        "task-expired",
        "round-closed",
        "too-stale",
        "not-found",
        "idempotency-key-reused",
        "already-uploaded",
        "update-of-another-task",
    )

/** Problems with what this device made: a bug or a model that diverged. The update is dropped. */
private val REFUSED =
    setOf(
        "malformed-update",
        "wrong-tensors",
        "update-not-finite",
        "update-too-large",
        "bad-report",
        "bad-request",
        "body-too-large",
        "invalid-request",
    )

/**
 * Sends what is finished, and remembers it until it is accepted.
 *
 * @param pipeline that made the updates
 * @param counts of what is sent
 * @param tell told what happens
 * @param clock seconds
 */
internal class Outbox(
    private val folder: DeviceFolder,
    private val client: Client,
    private val pipeline: Pipeline,
    private val counts: Counts,
    private val tell: (Event) -> Unit,
    private val clock: () -> Double,
) {
    /** Tasks of which nothing was sent yet. */
    private val fresh = HashSet<String>()

    /** Finish what a killed process left. */
    fun goOn() {
        folder.removeOrphans()
        val (found, damaged) = folder.pending()
        for (task in damaged) drop(task, "update", "its file in the queue is damaged")
        found.forEach { adopt(it) }
    }

    /** Whether the update of this task waits. */
    fun holds(task: String): Boolean = folder.pending().first.any { it.task == task }

    /**
     * Make the update safe first; then let the new personal state serve. An update with noise of the device is counted before anything
     * else: from here on it may be sent at any time.
     */
    fun put(
        task: RoundTask,
        deadline: Double,
        done: TaskResult,
    ) {
        val noise = task.privacy.localNoiseMultiplier
        if (task.privacy.clipNorm != null && noise > 0) folder.sent.add(noise)
        folder.spent.made(folder.membership?.device.orEmpty(), task.privacy)
        val pending =
            Pending(
                schemaVersion = SCHEMA_VERSION,
                task = task.id,
                round = task.round,
                url = task.updateUrl,
                key = hex(ByteArray(KEY_BYTES).also(SecureRandom()::nextBytes)),
                deadline = deadline,
                sha256 = hex(MessageDigest.getInstance("SHA-256").digest(done.update)),
                bytes = done.update.size.toLong(),
                privacy = task.privacy,
                reports = task.reports,
                evaluation = done.evaluation,
                adopts = done.adopts?.toLong(),
                insteadOf = folder.personal.current.toLong(),
                copies = done.copies,
                server = folder.membership?.server,
                device = folder.membership?.device,
            )
        folder.put(pending, done.update)
        fresh += task.id
        try {
            adopt(pending)
        } catch (_: StorageFullException) {
            // The update is safe, and the state serves later: it is tried again before the update is sent.
        }
        val report = done.report
        tell(
            Event.Finished(
                task.round,
                report.status == Status.ADOPTED,
                report.steps,
                report.seconds,
                report.before,
                report.after,
                done.protection.norm,
                done.protection.clipped,
            ),
        )
    }

    /**
     * Send everything that waits, if the policy still allows it: it may be stricter than when it was made. What was made for another
     * membership is dropped.
     *
     * @throws UnreachableException it goes on waiting
     */
    suspend fun flush() {
        for (waiting in folder.pending().first) {
            val pending = adopt(waiting)
            val what = if (pending.uploaded) "evaluation" else "update"
            if (isOfAnother(pending)) {
                drop(pending.task, what, "it was made for another membership", pending)
            } else if (clock() >= pending.deadline) {
                drop(pending.task, what, "its task has expired", pending)
            } else if (pending.uploaded || send(pending)) {
                report(pending)
            }
        }
    }

    private fun isOfAnother(pending: Pending): Boolean {
        val now = folder.membership
        return pending.device != null && (pending.device != now?.device || pending.server != now.server)
    }

    /** Send an update; whether it is accepted. */
    private suspend fun send(pending: Pending): Boolean {
        pipeline.refusal(pending.privacy, pending.reports, counted = true)?.let { why ->
            drop(pending.task, "update", why, pending)
            return false
        }
        val resume = !fresh.remove(pending.task)
        val state =
            try {
                upload(client, pending.url, folder.updatePath(pending.task), pending.key, resume)
            } catch (problem: ServerProblemException) {
                if (problem.code !in OVER + REFUSED) throw problem
                drop(pending.task, "update", "${problem.code}: ${problem.message}", pending)
                return false
            }
        counts.rounds++
        folder.spent.accepted(pending.bytes)
        folder.change(pending.copy(adopts = null, uploaded = true))
        tell(Event.Uploaded(pending.round, pending.bytes, state.duplicate))
        return true
    }

    private suspend fun report(pending: Pending) {
        val report = pending.evaluation
        if (report != null && pipeline.policy.mayReport(pending.privacy)) {
            try {
                client.report(pending.task, report)
            } catch (problem: ServerProblemException) {
                if (problem.code !in OVER + REFUSED) throw problem
                drop(pending.task, "evaluation", "${problem.code}: ${problem.message}")
                return
            }
            tell(reported(pending.round, report))
        }
        folder.remove(pending.task)
    }

    /**
     * Forget a task, and say so.
     *
     * @param what `update`, `evaluation` or `task`
     * @param why in words
     * @param pending what was in the queue
     */
    fun drop(
        task: String,
        what: String,
        why: String,
        pending: Pending? = null,
    ) {
        if (pending != null && !pending.uploaded) pipeline.takeBack(pending.copies, pending.insteadOf.toInt())
        folder.remove(task)
        counts.dropped++
        tell(Event.Dropped(task, what, why))
    }

    private fun adopt(pending: Pending): Pending {
        val adopts = pending.adopts ?: return pending
        val store = folder.personal
        // Else somebody reverted it meanwhile, or erased it.
        if (store.current.toLong() == pending.insteadOf && isThere(adopts.toInt())) store.adopt(adopts.toInt())
        return pending.copy(adopts = null).also(folder::change)
    }

    private fun isThere(version: Int): Boolean =
        try {
            folder.personal.read(version)
            true
        } catch (_: StateException) {
            false
        }

    private companion object {
        const val KEY_BYTES = 16

        fun reported(
            round: Long,
            report: EvaluationReport,
        ): Event.Reported {
            val (shared, own) = listOf(report.global, report.personalized).map { sums -> sums.mapValues { it.value.sum / it.value.weight } }
            return Event.Reported(round, shared, own, report.personalized.values.maxOf { it.weight })
        }
    }
}
