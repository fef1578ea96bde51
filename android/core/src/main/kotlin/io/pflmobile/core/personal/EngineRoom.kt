package io.pflmobile.core.personal

import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.engines.Session
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.tensors.Tensor
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock
import kotlin.coroutines.CoroutineContext

/**
 * The engine, loaded when it is first needed and closed when it was idle for a while. One call runs at a time, in the order in which
 * they came: a suggestion waits for one step of training at most.
 *
 * @param idleMs 0 closes it after each use
 * @param context where idling is waited for
 */
internal class EngineRoom(
    private val idleMs: Long,
    context: CoroutineContext,
    private val load: () -> Session,
) : AutoCloseable {
    private val scope = CoroutineScope(context + SupervisorJob())
    private val turn = ReentrantLock(true)
    private var session: Session? = null
    private var users = 0
    private var uses = 0L
    private var closed = false

    /** Whether the engine's memory is in use. */
    val isOpen: Boolean get() = synchronized(this) { session != null }

    /** What [block] gives; the session is not closed meanwhile. */
    inline fun <T> use(block: (Session) -> T): T {
        val session = enter()
        try {
            return block(session)
        } finally {
            leave()
        }
    }

    @PublishedApi
    internal fun enter(): Session =
        synchronized(this) {
            if (closed) throw closedModel()
            val found = session ?: InTurn(load(), turn).also { session = it }
            users++
            uses++
            found
        }

    @PublishedApi
    internal fun leave() {
        synchronized(this) {
            users--
            if (users > 0) return
            if (closed || idleMs == 0L) return free()
            val now = uses
            scope.launch {
                delay(idleMs)
                synchronized(this@EngineRoom) { if (users == 0 && uses == now) free() }
            }
        }
    }

    private fun free() {
        session?.close()
        session = null
    }

    /** Frees the engine, after the calls that are under way. */
    override fun close() {
        synchronized(this) {
            closed = true
            if (users == 0) free()
        }
        scope.cancel()
    }

    private class InTurn(
        private val session: Session,
        private val turn: ReentrantLock,
    ) : Session {
        override val name: String get() = session.name
        override val programs: Map<String, ProgramSpec> get() = session.programs

        override fun run(
            program: String,
            inputs: Map<String, Tensor>,
        ): Map<String, Tensor> = turn.withLock { session.run(program, inputs) }

        override fun close() = session.close()
    }
}

internal fun closedModel() = StateException("the personal model is closed", "open it again")
