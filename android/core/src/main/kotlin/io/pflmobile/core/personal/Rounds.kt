package io.pflmobile.core.personal

import io.pflmobile.core.device.Device
import io.pflmobile.core.device.DeviceFacts
import io.pflmobile.core.device.DeviceFolder
import io.pflmobile.core.device.Ended
import io.pflmobile.core.device.Event
import io.pflmobile.core.device.Model
import io.pflmobile.core.device.leave
import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.errors.NotTheAggregatorException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.ServerProblemException
import io.pflmobile.core.errors.TooLargeOnTheWayException
import io.pflmobile.core.errors.UnreachableException
import io.pflmobile.core.local.Examples
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

    @Synchronized
    private fun folder(): DeviceFolder = opened ?: DeviceFolder(home, id, null, state).also { opened = it }

    /** What was given away; null before the first time. */
    fun status(): RoundsStatus? {
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
            )
        } catch (error: PflException) {
            RoundsStatus(null, 0, 0, 0, null, PrivacySpent(), error)
        }
    }

    /** One check-in and its task, or so many accepted updates as [rounds] says. */
    suspend fun takePart(
        federation: Federation,
        model: () -> Model,
        examples: Examples,
        test: Double,
        facts: DeviceFacts,
        rounds: Int?,
        onEvent: (Event) -> Unit,
    ): RoundsResult {
        var why = ""
        return try {
            val folder = folder()
            val ready = model()
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
                val summary = device.run(rounds, once = rounds == null)
                folder.spent.asked(clock())
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

    suspend fun leave(federation: Federation): LeaveResult =
        try {
            if (!home.exists()) {
                LeaveResult.NotThere
            } else {
                discard()
                val there = federation.client().use { leave(folder(), it) }
                if (there) LeaveResult.Left else LeaveResult.NotThere
            }
        } catch (error: PflException) {
            if (passes(error)) LeaveResult.Unreachable(error) else LeaveResult.Failed(error)
        }

    /** What was made of examples that are to be forgotten is sent no more. */
    fun discard() {
        if (!home.exists()) return
        try {
            folder().discardWaiting()
        } catch (_: DeviceFolderException) {
            erase()
        }
    }

    /** Removes everything but how much was sent. */
    fun erase() {
        close()
        DeviceFolder.clear(home)
    }

    @Synchronized
    override fun close() {
        opened?.close()
        opened = null
    }
}
