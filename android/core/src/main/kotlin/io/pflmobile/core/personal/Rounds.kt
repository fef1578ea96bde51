package io.pflmobile.core.personal

import io.pflmobile.core.device.Backoff
import io.pflmobile.core.device.Device
import io.pflmobile.core.device.DeviceFacts
import io.pflmobile.core.device.DeviceFolder
import io.pflmobile.core.device.Ended
import io.pflmobile.core.device.Event
import io.pflmobile.core.device.Membership
import io.pflmobile.core.device.Model
import io.pflmobile.core.device.ServeNotes
import io.pflmobile.core.device.leave
import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.errors.NotTheAggregatorException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.ServerProblemException
import io.pflmobile.core.errors.TooLargeOnTheWayException
import io.pflmobile.core.errors.UnreachableException
import io.pflmobile.core.local.Examples
import io.pflmobile.core.plan.Serve
import io.pflmobile.core.privacy.Limits
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.state.PersonalStateStore
import java.nio.file.Path
import kotlin.io.path.exists

/**
 * The part of a personal model that is a device of a federation. Its folder is opened when it is first needed, so that a damaged one keeps
 * nobody from the model. Whoever changes something holds the model's own lock.
 *
 * @param home where the device's folder lies, or will
 * @param state the model's
 */
internal class Rounds(
    private val home: Path,
    private val id: ModelId,
    private val state: PersonalStateStore,
    private val clock: () -> Double,
) : AutoCloseable {
    private var opened: DeviceFolder? = null
    private var closed = false

    @Synchronized
    private fun folder(): DeviceFolder {
        if (closed) throw closedModel()
        return opened ?: DeviceFolder(home, id, null, state).also { opened = it }
    }

    /** What was given away; null before the first time. */
    @Synchronized
    fun status(): RoundsStatus? {
        if (closed) throw closedModel()
        if (!home.exists()) return null
        return try {
            val folder = folder()
            val spent = folder.spent
            val own = folder.ownEpsilon(Limits.DEVICE_DELTA)
            val (promised, delta) = spent.promised
            val all = if (spent.unprotected > 0) Double.POSITIVE_INFINITY else own + promised
            val deltas = delta + if (own > 0) Limits.DEVICE_DELTA else 0.0
            RoundsStatus(
                folder.membership?.server,
                spent.rounds,
                spent.bytes,
                folder.waiting,
                spent.asked,
                PrivacySpent(all, deltas, own, promised, spent.unprotected),
                leaving = folder.toLeave.map { it.server },
            )
        } catch (error: PflException) {
            RoundsStatus(null, 0, 0, 0, null, PrivacySpent.UNKNOWN, error)
        }
    }

    private val notes = ServeNotes(home.resolve(DeviceFolder.SERVES))

    /** What predictions use of a version that a round made; null for any other. */
    fun serves(version: Int): Serve? = notes.of(version)

    /** Versions that are gone may have their numbers given anew. */
    fun keepServes() = notes.keep(state.numbers())

    /** Whether something is finished that only has to be sent. */
    val waits: Boolean get() = home.exists() && folder().waiting > 0

    /**
     * One check-in and its task, or so many accepted updates as [rounds] says. A membership at another server ends first.
     *
     * @param onlySend ask for no task
     */
    suspend fun takePart(
        federation: Federation,
        model: () -> Model,
        examples: Examples,
        test: Double,
        facts: DeviceFacts,
        rounds: Int?,
        onlySend: Boolean,
        onEvent: (Event) -> Unit,
    ): RoundsResult {
        var why = ""
        return try {
            val ready = model()
            val folder = folder()
            if (folder.membership.let { it != null && it.server != federation.server.trimEnd('/') }) folder.leaveLater()
            tellThoseLeft(federation, Backoff(attempts = 1))
            federation.client().use { client ->
                val device =
                    Device(
                        ready,
                        examples,
                        folder,
                        client,
                        federation.policy,
                        test,
                        facts,
                        federation.group,
                        federation.token,
                        federation.attest,
                        federation.patienceS,
                    ) { event ->
                        if (event is Event.Declined) why = event.why
                        onEvent(event)
                    }
                val summary = device.run(rounds, once = rounds == null) { onlySend }
                if (!onlySend) folder.spent.asked(clock())
                when {
                    summary.ended == Ended.PRIVACY -> RoundsResult.NotProtected(summary, why)
                    summary.rounds > 0 -> RoundsResult.TookPart(summary)
                    else -> RoundsResult.NoRound(summary)
                }
            }
        } catch (error: PflException) {
            failed(error)
        }
    }

    private fun failed(error: PflException): RoundsResult =
        when {
            passes(error) -> RoundsResult.Unreachable(error, opened?.waiting ?: 0)
            error is ServerProblemException -> RoundsResult.Refused(error)
            else -> RoundsResult.Failed(error)
        }

    private fun passes(error: PflException) =
        error is UnreachableException || error is NotTheAggregatorException || error is TooLargeOnTheWayException ||
            (error is ServerProblemException && error.passing)

    /** Ends the membership on this device; whether some aggregator is to be told. */
    @Synchronized
    fun end(): Boolean {
        if (!home.exists()) return false
        discard()
        folder().leaveLater()
        return folder().toLeave.isNotEmpty()
    }

    /** Tells the aggregators that were left, each with its own credential; nothing else waits for it. */
    suspend fun tell(federation: Federation): LeaveResult =
        when (val error = tellThoseLeft(federation, federation.backoff)) {
            null -> LeaveResult.Left
            else -> if (passes(error)) LeaveResult.Unreachable(error) else LeaveResult.Failed(error)
        }

    private suspend fun tellThoseLeft(
        federation: Federation,
        backoff: Backoff,
    ): PflException? {
        var fault: PflException? = null
        for (ended in folder().toLeave) {
            try {
                federation.clientOf(ended.server, backoff).use { leave(ended, it) }
                note(ended)
            } catch (error: PflException) {
                fault = fault ?: error
            }
        }
        return fault
    }

    @Synchronized
    private fun note(ended: Membership) {
        if (!closed) folder().left(ended)
    }

    /** What was made of examples that are to be forgotten is sent no more. */
    @Synchronized
    fun discard() {
        if (!home.exists()) return
        try {
            folder().discardWaiting()
        } catch (error: DeviceFolderException) {
            // what another uses, or what may be readable another time, is not thrown away
            if (!error.damaged) throw error
            erase()
        }
    }

    /** Makes an earlier version of the personal state serve, which what waits does not undo; returns its number. */
    @Synchronized
    fun revert(version: Int?): Int {
        if (!home.exists()) return state.revert(version)
        return try {
            folder().revert(version)
        } catch (error: DeviceFolderException) {
            if (!error.damaged) throw error
            state.revert(version) // nothing of it can be used
        }
    }

    /** Removes everything but how much was sent. */
    @Synchronized
    fun erase() {
        opened?.close()
        opened = null
        DeviceFolder.clear(home)
    }

    /** Nothing opens it afterwards. */
    @Synchronized
    override fun close() {
        closed = true
        opened?.close()
        opened = null
    }
}
