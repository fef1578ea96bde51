package io.pflmobile.core.engines

import io.pflmobile.core.bundle.OBTAIN_AGAIN
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.engines.Schedule.Companion.CONSTANTS
import io.pflmobile.core.engines.Schedule.Companion.SCHEDULE
import io.pflmobile.core.errors.EngineException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.files.openRegular
import io.pflmobile.core.files.readBytes
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.tensors.copied
import io.pflmobile.core.tensors.tensorOf
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import java.nio.file.Path

/**
 * A session of an engine's files, through their schedule where they have one.
 *
 * @throws io.pflmobile.core.errors.SchemaVersionException the schedule is of a newer schema
 * @throws io.pflmobile.core.errors.InvalidManifestException it is damaged, or not of these programs
 * @throws EngineException the engine refuses the files, or they cannot be read
 */
internal fun scheduled(
    engine: Engine,
    files: Map<String, Path>,
    programs: List<ProgramSpec>,
    threads: Int,
): Session {
    val path = files[SCHEDULE] ?: return engine.open(files, programs, threads)
    val schedule = Schedule.parse(readOrRefuse("the schedule") { readBytes(path) }, programs)
    val constants =
        if (schedule.constants.isEmpty()) {
            emptyMap()
        } else {
            readOrRefuse("the file of constants") { mapped(fileFor(files, CONSTANTS), schedule.constants.values) }
        }
    return if (engine is RuntimeEngine) {
        session(engine.runtime(files, schedule.parts, threads), schedule, constants, programs)
    } else {
        val own = files - SCHEDULE - CONSTANTS
        session(SessionRuntime(engine.open(own, schedule.parts, threads)), schedule, constants, programs)
    }
}

private fun <V : Any> session(
    runtime: ProgramRuntime<V>,
    schedule: Schedule,
    constants: Map<String, ByteBuffer>,
    programs: List<ProgramSpec>,
): Session = ScheduledSession(runtime, schedule, constants, programs)

private inline fun <T> readOrRefuse(
    what: String,
    read: () -> T,
): T =
    try {
        read()
    } catch (error: IOException) {
        throw EngineException("cannot read $what: ${error.message}", OBTAIN_AGAIN, error)
    }

/**
 * The constants by name, mapped. One buffer has less than 2^31 bytes, so a larger file is mapped in pieces, each as large as whole
 * constants allow.
 *
 * @throws EngineException the file is shorter than the schedule says, or one of them is too large for a buffer
 */
internal fun mapped(
    path: Path,
    constants: Collection<ConstantEntry>,
    most: Long = Int.MAX_VALUE.toLong(),
): Map<String, ByteBuffer> =
    openRegular(path).use { file ->
        val size = file.size()
        for (entry in constants) {
            val end = entry.offset + entry.bytes
            if (end > size) {
                throw EngineException("the file of constants has $size bytes, and '${entry.spec.name}' ends at $end", OBTAIN_AGAIN)
            }
            if (entry.bytes > most) {
                throw EngineException(
                    "constant '${entry.spec.name}' has ${entry.bytes} bytes, and no buffer of this system has more than $most",
                    "export the model with smaller tensors, for instance its embedding in two halves",
                )
            }
        }
        val found = HashMap<String, ByteBuffer>()
        val left = ArrayDeque(constants.sortedBy { it.offset })
        while (left.isNotEmpty()) {
            val start = left.first().offset
            val piece = ArrayList<ConstantEntry>()
            while (left.isNotEmpty() && left.first().let { it.offset + it.bytes - start } <= most) piece += left.removeFirst()
            val bytes = file.map(FileChannel.MapMode.READ_ONLY, start, piece.maxOf { it.offset + it.bytes } - start)
            for (entry in piece) {
                bytes.limit((entry.offset - start + entry.bytes).toInt()).position((entry.offset - start).toInt())
                found[entry.spec.name] = bytes.slice().order(ByteOrder.LITTLE_ENDIAN)
            }
        }
        found
    }

/**
 * Programs that are calls of parts. An input is converted when a call first reads it, a value is dropped after its last reader, and
 * constants stay in the mapped file.
 */
internal class ScheduledSession<V : Any>(
    private val runtime: ProgramRuntime<V>,
    private val schedule: Schedule,
    private val mapped: Map<String, ByteBuffer>,
    programs: List<ProgramSpec>,
) : EngineSession(runtime.name, programs) {
    private val constants = HashMap<Reference, V>()

    init {
        try {
            for ((name, bytes) in mapped) {
                constants[Reference.Constant(name)] = runtime.mapped(schedule.constants.getValue(name).spec, bytes)
            }
        } catch (
            // Whatever it is, nobody else knows of the runtime.
            @Suppress("TooGenericExceptionCaught") error: Throwable,
        ) {
            free()
            throw error
        }
    }

    override fun execute(
        program: ProgramSpec,
        inputs: List<Tensor>,
    ): List<Tensor> {
        val course = schedule.programs.getValue(program.name)
        val given = program.inputs.zip(inputs).associateBy { (spec, _) -> Reference.Input(spec.name) }
        val values = HashMap<Reference, V>()
        try {
            course.calls.forEachIndexed { number, call ->
                val read =
                    call.inputs.map { reference ->
                        constants[reference] ?: values.getOrPut(reference) {
                            val (spec, tensor) = given.getValue(reference as Reference.Input)
                            runtime.given(spec, tensor)
                        }
                    }
                val made = called(program, number, call, read)
                call.outputs.zip(made) { reference, value -> values[reference] = value }
                for (reference in course.drops[number]) values.remove(reference)?.let(runtime::drop)
            }
            val taken = HashMap<Reference, Tensor>()
            return course.outputs.map { reference ->
                taken[reference]?.copied() ?: output(reference, values, given).also { taken[reference] = it }
            }
        } finally {
            values.values.forEach(runtime::drop)
        }
    }

    private fun called(
        program: ProgramSpec,
        number: Int,
        call: Call,
        inputs: List<V>,
    ): List<V> {
        fun place() = "call $number of program '${program.name}', part '${call.part.name}'"
        val made =
            try {
                runtime.run(call.part, inputs)
            } catch (error: TensorMismatchException) {
                throw TensorMismatchException("${place()}: ${error.message}", error.mend, error)
            } catch (error: EngineException) {
                throw EngineException("${place()}: ${error.message}", error.mend, error)
            } catch (
                // The exceptions of the runtimes share no base.
                @Suppress("TooGenericExceptionCaught") error: Exception,
            ) {
                throw EngineException(
                    "engine '$name' failed in ${place()}: ${error.message ?: error.javaClass.simpleName}",
                    "run `pfl verify` on the bundle; if it fails too, export it again",
                    error,
                )
            }
        val (found, want) = made.map(runtime::signature) to call.part.outputs.map { it.signature }
        if (found != want) {
            made.forEach(runtime::drop)
            throw TensorMismatchException("${place()} gave $found, the schedule says $want", EXPORT_AGAIN)
        }
        return made
    }

    private fun output(
        reference: Reference,
        values: Map<Reference, V>,
        given: Map<Reference.Input, Pair<TensorSpec, Tensor>>,
    ): Tensor =
        when (reference) {
            is Reference.Input -> given.getValue(reference).second.copied()
            is Reference.Constant -> tensorOf(schedule.constants.getValue(reference.name).spec, mapped.getValue(reference.name))
            is Reference.Value -> runtime.taken(values.getValue(reference))
        }

    override fun free() {
        constants.values.forEach(runtime::drop)
        constants.clear()
        runtime.free()
    }
}

private fun tensorOf(
    spec: TensorSpec,
    bytes: ByteBuffer,
) = tensorOf(spec.dtype, spec.shape, bytes.duplicate().order(bytes.order()))

/** The programs of any other engine: values are tensors, and constants are copied for each call. */
private class SessionRuntime(
    private val session: Session,
) : ProgramRuntime<() -> Tensor> {
    override val name get() = session.name

    override fun mapped(
        spec: TensorSpec,
        bytes: ByteBuffer,
    ): () -> Tensor = { tensorOf(spec, bytes) }

    override fun given(
        spec: TensorSpec,
        tensor: Tensor,
    ): () -> Tensor = { tensor }

    override fun run(
        program: ProgramSpec,
        inputs: List<() -> Tensor>,
    ): List<() -> Tensor> {
        val found = session.run(program.name, program.inputs.zip(inputs).associate { (spec, value) -> spec.name to value() })
        return program.outputs.map { spec -> found.getValue(spec.name).let { { it } } }
    }

    override fun signature(value: () -> Tensor) = value().signature

    override fun taken(value: () -> Tensor) = value()

    override fun drop(value: () -> Tensor) = Unit

    override fun free() = session.close()
}
