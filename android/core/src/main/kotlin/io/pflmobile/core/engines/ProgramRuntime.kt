package io.pflmobile.core.engines

import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.tensors.Tensor
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.Path

/**
 * Loaded programs whose inputs and outputs stay the runtime's own until they are asked for, so that what one program gives another can
 * take. Not for several threads at once.
 *
 * @param V a tensor of the runtime; whoever got one drops it
 */
internal interface ProgramRuntime<V : Any> {
    /** The engine's name. */
    val name: String

    /** A value over memory that nobody changes, which is read where it lies. */
    fun mapped(
        spec: TensorSpec,
        bytes: ByteBuffer,
    ): V

    /** A value with a copy of a tensor. */
    fun given(
        spec: TensorSpec,
        tensor: Tensor,
    ): V

    /**
     * Runs a program on values in the order of its inputs.
     *
     * @return its outputs in their order
     * @throws Exception the runtime's own
     */
    fun run(
        program: ProgramSpec,
        inputs: List<V>,
    ): List<V>

    /** `float32[2, 3]` */
    fun signature(value: V): String

    /** The tensor of an output of a program, which is the caller's to keep; to be asked for once. */
    fun taken(value: V): Tensor

    /** Gives a value back. */
    fun drop(value: V)

    /** Frees what is left; called once, when all values are dropped. */
    fun free()
}

/** An engine of this library, whose programs can be run on the runtime's own tensors. */
public abstract class RuntimeEngine internal constructor() : Engine {
    final override fun open(
        files: Map<String, Path>,
        programs: List<ProgramSpec>,
        threads: Int,
    ): Session = session(runtime(files, programs, threads), programs)

    private fun <V : Any> session(
        runtime: ProgramRuntime<V>,
        programs: List<ProgramSpec>,
    ) = ProgramSession(runtime, programs)

    /** Loads programs, as [open] does. */
    internal abstract fun runtime(
        files: Map<String, Path>,
        programs: List<ProgramSpec>,
        threads: Int,
    ): ProgramRuntime<*>
}

/** The programs of a runtime as they are. */
private class ProgramSession<V : Any>(
    private val runtime: ProgramRuntime<V>,
    programs: List<ProgramSpec>,
) : EngineSession(runtime.name, programs) {
    override fun execute(
        program: ProgramSpec,
        inputs: List<Tensor>,
    ): List<Tensor> {
        val held = ArrayList<V>()
        try {
            program.inputs.zip(inputs) { spec, tensor -> held += runtime.given(spec, tensor) }
            val outputs = runtime.run(program, held.toList())
            held += outputs
            return outputs.map(runtime::taken)
        } finally {
            held.forEach(runtime::drop)
        }
    }

    override fun free() = runtime.free()
}

/** Rooms for tensors, used again: what a call takes has the forms of the call before. */
internal class Rooms<R : Any>(
    private val make: (TensorSpec, ByteBuffer) -> R,
) {
    private val spare = HashMap<String, ArrayDeque<R>>()

    /** A room of the form. */
    fun take(spec: TensorSpec): R =
        spare[spec.signature]?.removeLastOrNull()
            ?: make(spec, ByteBuffer.allocateDirect(spec.shape.fold(spec.dtype.bytes, Int::times)).order(ByteOrder.nativeOrder()))

    /** The room is of nobody any more. */
    fun put(
        signature: String,
        room: R,
    ) {
        spare.getOrPut(signature) { ArrayDeque() }.addLast(room)
    }

    /** All rooms that are not taken; they are no longer here. */
    fun empty(): List<R> = spare.values.flatten().also { spare.clear() }
}
