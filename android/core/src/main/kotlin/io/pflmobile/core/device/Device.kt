package io.pflmobile.core.device

import io.pflmobile.core.errors.DeviceException
import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.errors.EngineException
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.NotTheAggregatorException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.ProtocolException
import io.pflmobile.core.errors.ServerProblemException
import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.errors.TensorFileException
import io.pflmobile.core.errors.UnreachableException
import io.pflmobile.core.local.Examples
import io.pflmobile.core.privacy.Noise
import io.pflmobile.core.protocol.Attestation
import io.pflmobile.core.protocol.CheckIn
import io.pflmobile.core.protocol.CheckInStatus
import io.pflmobile.core.protocol.Decline
import io.pflmobile.core.protocol.DeclineReason
import io.pflmobile.core.protocol.Download
import io.pflmobile.core.protocol.Enrolment
import io.pflmobile.core.protocol.Facts
import io.pflmobile.core.protocol.FederationInfo
import io.pflmobile.core.protocol.RoundTask
import io.pflmobile.core.tensors.Tensor
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.delay
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.withContext

/**
 * What a device tells at check-in, so that it is asked only when it can; none of it identifies a person.
 *
 * @property platform for instance `android-15`; at most 40 characters
 * @property idle whether nobody uses the device
 * @property charging whether it charges
 * @property unmetered whether its network costs nothing
 * @property freeBytes on the disk; null is not told
 */
public class DeviceFacts(
    public val platform: String = "",
    public val idle: Boolean = true,
    public val charging: Boolean = true,
    public val unmetered: Boolean = true,
    public val freeBytes: Long? = null,
)

/** Makes a verdict of the platform (Play Integrity), where a federation asks for one. */
public fun interface Attest {
    /**
     * A verdict that is bound to the challenge.
     *
     * @param kinds of which the federation takes one
     */
    public suspend fun attest(
        challenge: String,
        kinds: List<String>,
    ): Verdict

    /**
     * What the platform said.
     *
     * @property kind one of those that were asked for, for instance `play-integrity`
     * @property verdict the token, which the aggregator has checked by the platform
     */
    public class Verdict(
        public val kind: String,
        public val verdict: String,
    )
}

/**
 * One device of a federation: enrol, send what waits, check in, train, repeat.
 *
 *     val model = Model.open(bundle, session)             // runs the golden batch
 *     DeviceFolder(files, model.id).use { folder ->
 *         Client("https://pfl.example.org").use { client ->
 *             Device(model, Examples.Texts(texts), folder, client).run(rounds = 3)
 *         }
 *     }
 *
 * A process may be killed and the network may be lost at any moment: a task that was begun is given out again and trained again from the
 * same state, an update that is finished waits in the folder, and sending it twice counts once. One call at a time.
 *
 * @param model checked programs
 * @param examples of the user, oldest first
 * @param folder what the device keeps
 * @param client the aggregator
 * @param policy what must protect updates; by default something must
 * @param test share of the examples, the newest, for evaluation reports; never trained on
 * @param facts told at check-in
 * @param group the device's group, where the federation has groups
 * @param token for enrolment, where one is needed
 * @param attest makes the platform's verdict, where one is needed
 * @param patienceS seconds that the aggregator may be out of reach; null is for ever
 * @param onEvent told what happens, on a thread for computing
 */
public class Device internal constructor(
    private val model: Model,
    examples: Examples,
    private val folder: DeviceFolder,
    private val client: Client,
    policy: PrivacyPolicy,
    test: Double,
    facts: DeviceFacts,
    private val group: String,
    private val token: String?,
    private val attest: Attest?,
    private val patienceS: Double?,
    private val onEvent: (Event) -> Unit,
    private val clock: () -> Double,
    noise: Noise?,
    private val dispatcher: CoroutineDispatcher,
) {
    public constructor(
        model: Model,
        examples: Examples,
        folder: DeviceFolder,
        client: Client,
        policy: PrivacyPolicy = PrivacyPolicy(),
        test: Double = 0.2,
        facts: DeviceFacts = DeviceFacts(),
        group: String = "",
        token: String? = null,
        attest: Attest? = null,
        patienceS: Double? = null,
        onEvent: (Event) -> Unit = {},
    ) : this(
        model,
        examples,
        folder,
        client,
        policy,
        test,
        facts,
        group,
        token,
        attest,
        patienceS,
        onEvent,
        { System.currentTimeMillis() / 1000.0 },
        null,
        Dispatchers.Default,
    )

    private val pipeline =
        Pipeline(model, examples, folder.personal, folder.sent, policy, test, 20, noise, folder.checkpoint, folder.spent, folder.serves) {
            folder.membership?.device
        }
    private val facts =
        Facts(model.engine, facts.platform.take(MOST_FACT), SDK, facts.idle, facts.charging, facts.unmetered, facts.freeBytes)
    private val counts = Counts()
    private val outbox = Outbox(folder, client, pipeline, counts, onEvent, clock)

    /** Failures in a row, and when they began. */
    private var offline: Pair<Int, Double>? = null

    /**
     * Take part. A cancelled coroutine stops within one step, after a checkpoint; the task stays this device's until its deadline.
     *
     * @param rounds end after so many accepted updates; null: when the federation trains no more
     * @param once check in once; do the task if there is one, and wait for none
     * @param until asked between tasks; true ends
     * @throws ServerProblemException the aggregator will not have this device (revoked, enrolment refused, another model)
     * @throws UnreachableException out of reach for longer than `patienceS`; what is finished waits in the folder
     * @throws NotTheAggregatorException something else answers at the address, or at a part of it. Where the aggregator was heard from
     *   before and no longer is, the network may have changed, as a phone's does: then only after `patienceS`, but with [once] at once
     * @throws io.pflmobile.core.errors.TooLargeOnTheWayException something between does not let the update pass; it waits in the folder
     * @throws EngineException this device cannot train
     * @throws ProtocolException the aggregator's answer is none of this protocol
     * @throws DeviceException the federation trains another model, or asks for an attestation that there is none of
     * @throws DeviceFolderException the folder belongs to a device of another server, or is damaged
     */
    public suspend fun run(
        rounds: Int? = null,
        once: Boolean = false,
        until: () -> Boolean = { false },
    ): Summary =
        withContext(dispatcher) {
            if (!folder.running.tryLock()) {
                throw DeviceFolderException("a device runs in ${folder.directory} already", mend = "wait until it has ended")
            }
            try {
                val ended = takePart(rounds, once, until)
                Summary(ended, counts.rounds, counts.declined.toMap(), counts.dropped, client.traffic.up.get(), client.traffic.down.get())
            } finally {
                folder.running.unlock()
            }
        }

    private suspend fun takePart(
        rounds: Int?,
        once: Boolean,
        until: () -> Boolean,
    ): Ended {
        outbox.goOn()
        var joined = false
        var asked = false
        var blocked = 0 // times in a row that a part of the address alone was not the aggregator's
        while (true) {
            currentCoroutineContext().ensureActive()
            try {
                if (!joined) {
                    join()
                    joined = true
                }
                outbox.flush()
                if (rounds != null && counts.rounds >= rounds) return Ended.ROUNDS
                if (once && asked) return Ended.ONCE
                if (until()) return Ended.UNTIL
                val ended = step(once)
                asked = true
                offline = null
                blocked = 0
                if (ended != null) return ended
            } catch (error: NotTheAggregatorException) {
                if (once || !client.reached) throw error
                blocked = if (answers()) blocked + 1 else 0
                if (blocked > 1) throw error // the first time, a sign-in may have been in between
                waitOffline(error)
            } catch (error: DeviceException) {
                if (!Client.passing(error)) throw error
                waitOffline(error)
            }
        }
    }

    /**
     * Fetch the newest shared values and measure them on the test part; nothing of it is sent.
     *
     * @throws UnreachableException they could not be fetched
     * @throws ServerProblemException the same
     * @throws io.pflmobile.core.errors.NoExamplesException there is nothing to measure on
     */
    public suspend fun measure(): Event.Measured =
        withContext(dispatcher) {
            join()
            val latest = client.latest()
            val values = latest.sets["global"] ?: throw ProtocolException("the version has no set 'global'", mend = AGGREGATOR)
            val sums = pipeline.measureShared(fetch("global", values))
            val means = sums.mapValues { (_, sum) -> sum.first / sum.second }
            Event.Measured(latest.version, means, sums.values.maxOf { it.second }).also(onEvent)
        }

    /**
     * Give the credential back; the personal state stays.
     *
     * @throws UnreachableException the aggregator still has the device
     * @throws ServerProblemException the same
     */
    public suspend fun leave() {
        withContext(dispatcher) { leave(folder, client) }
    }

    // -- joining

    private suspend fun join() {
        val info = client.federation()
        if (info.bundle != model.bundle) {
            val differ = if (info.bundle.name == model.id.name) " (its tensors differ)" else ""
            throw DeviceException(
                "the federation trains ${info.bundle.name} ${info.bundle.version}, this device has ${model.id.name} " +
                    "${model.id.version}$differ",
                mend = "give the device the federation's bundle",
            )
        }
        val known = folder.membership
        known?.let { checkServer(folder, client, it) }
        val membership =
            known ?: folder.join(client.server, client.enrol(Enrolment(model.bundle, token, group, attested(info))))
        client.credential = membership.credential
        onEvent(Event.Joined(membership.device, known != null))
    }

    private suspend fun attested(info: FederationInfo): Attestation? {
        if (info.attestation.isEmpty()) return null
        val attest =
            attest ?: throw DeviceException(
                "the federation asks for an attestation (${info.attestation.joinToString()})",
                mend = "run on a platform that gives one, or ask the operator for a federation without",
            )
        val challenge = client.challenge().challenge
        val found = attest.attest(challenge, info.attestation)
        return Attestation(found.kind, challenge, found.verdict)
    }

    // -- a task

    /** Check in, and do what the answer says; why this was the last time, if it was. */
    private suspend fun step(once: Boolean): Ended? {
        val asked = clock()
        val answer = client.checkIn(CheckIn(model.bundle, pipeline.trainingExamples(), facts))
        return when (answer.status) {
            CheckInStatus.DONE -> {
                Ended.DONE
            }

            CheckInStatus.WAIT -> {
                val seconds = maxOf(answer.retryAfterS ?: 0.0, LEAST_WAIT_S)
                onEvent(Event.Waiting(seconds, answer.reason?.wireName.orEmpty()))
                if (!once) delay(millis(seconds))
                null
            }

            CheckInStatus.TASK -> {
                val task =
                    answer.task ?: throw ProtocolException("the check-in gave a task that is missing", mend = AGGREGATOR)
                offline = null
                carryOut(task, asked + task.expiresInS)
            }
        }
    }

    private suspend fun carryOut(
        task: RoundTask,
        deadline: Double,
    ): Ended? {
        onEvent(Event.Assigned(task.round, task.version))
        if (outbox.holds(task.id)) {
            delay(millis(1.0)) // it is finished; only sending is left
            return null
        }
        try {
            pipeline.accept(task)
            val done =
                pipeline.carryOut(task, sets(task), stop = { clock() >= deadline }) { at ->
                    onEvent(Event.Stepped(at.step, at.of, at.loss))
                } ?: throw DeclineTask(DeclineReason.TOO_SLOW, "the task's time is over")
            currentCoroutineContext().ensureActive() // nothing of it is kept where a control of the user stopped it
            outbox.put(task, deadline, done)
        } catch (_: OutOfMemoryError) {
            decline(task, DeclineReason.OUT_OF_MEMORY, "there is not enough memory for the task")
        } catch (declined: DeclineTask) {
            decline(task, declined.reason, declined.why)
            if (declined.reason == DeclineReason.PRIVACY) return Ended.PRIVACY // the next task would be no better
        } catch (error: StorageFullException) {
            decline(task, DeclineReason.STORAGE, error.message)
        } catch (problem: ServerProblemException) {
            if (problem.code !in OVER) throw problem
            outbox.drop(task.id, "task", problem.message)
        } catch (error: EngineException) {
            decline(task, DeclineReason.ENGINE, error.message)
            throw error
        }
        return null
    }

    /** Download what the plan reads, each digest once. */
    private suspend fun sets(task: RoundTask): Map<String, Map<String, Tensor>> {
        if ("global" !in task.sets) throw ProtocolException("the task names no set 'global'", mend = AGGREGATOR)
        folder.keepSets(task.sets.values.map { it.sha256 })
        return task.sets.mapValues { (name, what) ->
            if (what.bytes > model.mostSetBytes) {
                throw DeclineTask(DeclineReason.PLAN, "the set '$name' has ${what.bytes} bytes, more than the model can")
            }
            try {
                fetch(name, what)
            } catch (error: TensorFileException) {
                throw DeclineTask(DeclineReason.PLAN, error.message)
            } catch (error: NonFiniteException) {
                throw DeclineTask(DeclineReason.PLAN, error.message)
            }
        }
    }

    private suspend fun fetch(
        name: String,
        what: Download,
    ): Map<String, Tensor> {
        val cached = folder.loadSet(what.sha256)
        if (cached == null) download(client, what, folder.setPath(what.sha256))
        val values =
            cached ?: folder.loadSet(what.sha256)
                ?: throw StorageFullException("the set '$name' vanished from the disk", mend = "check the disk")
        model.checkSet(name, values)
        onEvent(Event.Downloaded(name, what.bytes, cached != null))
        return values
    }

    private suspend fun decline(
        task: RoundTask,
        reason: DeclineReason,
        why: String,
    ) {
        val word = reason.name.lowercase()
        onEvent(Event.Declined(task.round, word, why))
        counts.declined.merge(word, 1, Int::plus)
        try {
            client.decline(task.id, Decline(reason))
        } catch (problem: ServerProblemException) {
            if (problem.code !in OVER) throw problem
        }
    }

    // -- waiting

    /** Whether the aggregator does, at the address that needs no credential. */
    private suspend fun answers(): Boolean =
        try {
            client.federation()
            true
        } catch (_: UnreachableException) {
            false
        } catch (_: ServerProblemException) {
            false
        } catch (_: NotTheAggregatorException) {
            false
        }

    private suspend fun waitOffline(error: PflException) {
        val (failures, since) = offline ?: (0 to clock())
        if (patienceS != null && clock() - since >= patienceS) throw error
        offline = failures + 1 to since
        val told = (error as? UnreachableException)?.retryAfterS ?: (error as? ServerProblemException)?.retryAfterS
        val seconds = client.pause(failures + 1, told)
        onEvent(Event.Offline(seconds, error.message))
        delay(millis(seconds))
    }

    private companion object {
        const val SDK = "pfl-mobile-kotlin/0.1.0"
        const val MOST_FACT = 40
        const val LEAST_WAIT_S = 0.05
        const val AGGREGATOR = "update the aggregator"
    }
}

/** Problems that say that the aggregator does not know the credential. */
private val GONE = setOf("unauthorized", "device-revoked")

/**
 * Gives the credential of a folder back; whether there was one.
 *
 * @throws UnreachableException the aggregator still has the device
 * @throws ServerProblemException the same
 * @throws DeviceFolderException the credential is of another server
 */
internal suspend fun leave(
    folder: DeviceFolder,
    client: Client,
): Boolean {
    val membership = folder.membership ?: return false
    checkServer(folder, client, membership)
    leave(membership, client)
    folder.forget()
    return true
}

/**
 * Tells the aggregator that a membership ended.
 *
 * @param client of the membership's server
 * @throws UnreachableException the aggregator still has the device
 * @throws ServerProblemException the same
 */
internal suspend fun leave(
    membership: Membership,
    client: Client,
) {
    client.credential = membership.credential
    try {
        client.leave()
    } catch (problem: ServerProblemException) {
        // it left already, and the answer was lost
        if (problem.code !in GONE) throw problem
    }
}

private fun checkServer(
    folder: DeviceFolder,
    client: Client,
    membership: Membership,
) {
    if (membership.server == client.server) return
    throw DeviceFolderException(
        "${folder.directory} belongs to a device of ${membership.server}",
        mend = "give another folder for another server; the credential goes to its own only",
    )
}
