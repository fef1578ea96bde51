package io.pflmobile.core.personal

import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.Session
import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.local.Example
import io.pflmobile.core.local.ExampleStore
import io.pflmobile.core.local.Payload
import io.pflmobile.core.tensors.Tensor
import java.nio.file.Path

/** Examples that outlive the model which opened them, as a file would; [room] is how many still fit on the disk. */
class InMemoryExamples(
    var room: Int = Int.MAX_VALUE,
) : ExampleStore {
    private val kept = ArrayList<Example>()

    /** Thrown where all are to be erased. */
    var fault: Exception? = null
    private var last = 0L
    var closings = 0
        private set

    @Synchronized
    override fun add(payload: Payload): Long {
        if (room == 0) throw StorageFullException("the disk is full", "free some space")
        room--
        kept += Example(++last, 0.0, Payload.decode(payload.kind, payload.encode()))
        return last
    }

    @Synchronized
    override fun examples(newest: Int?): List<Example> = if (newest == null) kept.toList() else kept.takeLast(newest)

    @Synchronized
    override fun count(): Int = kept.size

    @Synchronized
    override fun erase(ids: Collection<Long>): Int = kept.size.also { kept.removeAll { it.id in ids } } - kept.size

    @Synchronized
    override fun eraseAll(): Int {
        fault?.let { throw it }
        return kept.size.also { kept.clear() }
    }

    override fun close() {
        closings++
    }
}

/** The ONNX Runtime engine, counting what is open and what was run; [before] is asked before each run. */
class CountingEngine(
    private val before: (String) -> Unit = {},
) : Engine {
    var open = 0
        private set
    var openings = 0
        private set
    val runs = ArrayList<String>()

    override val name get() = OnnxRuntimeEngine.name

    override fun open(
        files: Map<String, Path>,
        programs: List<ProgramSpec>,
        threads: Int,
    ): Session {
        val session = OnnxRuntimeEngine.open(files, programs, threads)
        open++
        openings++
        return object : Session by session {
            override fun run(
                program: String,
                inputs: Map<String, Tensor>,
            ): Map<String, Tensor> {
                before(program)
                synchronized(runs) { runs += program }
                return session.run(program, inputs)
            }

            override fun close() {
                open--
                session.close()
            }
        }
    }
}
