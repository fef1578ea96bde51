package io.pflmobile.core.engines

import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.errors.EngineException
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.RawTensor
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.tensors.putInto
import org.pytorch.executorch.EValue
import org.pytorch.executorch.ExecutorchRuntimeException
import org.pytorch.executorch.Module
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.Path
import org.pytorch.executorch.DType as TheirDType
import org.pytorch.executorch.Tensor as TheirTensor

/**
 * ExecuTorch: one `.pte` with a method for each program, run by the official Android library, which the app brings:
 * `org.pytorch:executorch-android`. All modules of a process share its pool of threads.
 */
public object ExecuTorchEngine : RuntimeEngine() {
    override val name: String get() = "executorch"

    /** Null, as the runtime does not tell. */
    override val version: String? get() =
        // the class alone: loading programs is what loads the natives. A class that nothing is asked of would not be looked for
        brought { Module::class.java.name.let { null } }

    override fun runtime(
        files: Map<String, Path>,
        programs: List<ProgramSpec>,
        threads: Int,
    ): ExecuTorchPrograms = brought { ExecuTorchPrograms(fileFor(files, "model"), programs, threads) }

    private inline fun <T> brought(open: () -> T): T = broughtByTheApp("ExecuTorch", "org.pytorch:executorch-android", open)
}

/** Methods are loaded when first run, so `predict` alone does not pay for `gradients`. */
internal class ExecuTorchPrograms(
    path: Path,
    programs: List<ProgramSpec>,
    threads: Int,
) : ProgramRuntime<ExecuTorchPrograms.Value> {
    override val name get() = ExecuTorchEngine.name

    private val module: Module
    private val rooms = Rooms { spec, buffer -> Room(EValue.from(tensor(spec, buffer)), buffer) }

    init {
        val file = path.fileName
        module =
            try {
                Module.load(path.toString(), Module.LOAD_MODE_MMAP, threads)
            } catch (error: ExecutorchRuntimeException) {
                throw EngineException("ExecuTorch cannot load $file: ${error.message}", EXPORT_AGAIN, error)
            }
        val have = module.methods.toSet()
        val missing = (programs.map { it.name } - have).minOrNull()
        if (missing != null) {
            module.close()
            throw EngineException("$file has no method '$missing'; it has ${have.sorted()}", EXPORT_AGAIN)
        }
    }

    /** Memory that the runtime reads where it lies. */
    class Room(
        val value: EValue,
        val buffer: ByteBuffer,
    )

    /**
     * A constant, an input, or an output: that is memory of the method until it is run again, so it is copied.
     *
     * @property signature `float32[2, 3]`
     * @property room where the runtime reads it; none before an output is read
     * @property tensor of an output
     */
    class Value(
        val signature: String,
        var room: Room?,
        val tensor: Tensor?,
        val isConstant: Boolean = false,
    )

    override fun mapped(
        spec: TensorSpec,
        bytes: ByteBuffer,
    ) = Value(spec.signature, Room(EValue.from(tensor(spec, bytes)), bytes), null, isConstant = true)

    override fun given(
        spec: TensorSpec,
        tensor: Tensor,
    ) = Value(spec.signature, filled(spec, tensor), null)

    private fun filled(
        spec: TensorSpec,
        tensor: Tensor,
    ): Room = rooms.take(spec).also { tensor.putInto(it.buffer.clear()) }

    override fun run(
        program: ProgramSpec,
        inputs: List<Value>,
    ): List<Value> {
        val values =
            program.inputs.zip(inputs) { spec, value ->
                (value.room ?: filled(spec, checkNotNull(value.tensor)).also { value.room = it }).value
            }
        return module
            .execute(
                program.name,
                *values.toTypedArray(),
            ).map { it.toTensor() }
            .map(::copied)
            .map { Value(it.signature, null, it) }
    }

    override fun signature(value: Value) = value.signature

    override fun taken(value: Value): Tensor = checkNotNull(value.tensor)

    override fun drop(value: Value) {
        val room = value.room
        if (room != null && !value.isConstant) rooms.put(value.signature, room)
        value.room = null
    }

    override fun free() {
        rooms.empty()
        module.close()
    }

    companion object {
        private val DTYPES =
            mapOf(
                TheirDType.FLOAT to DType.FLOAT32,
                TheirDType.INT64 to DType.INT64,
                TheirDType.INT32 to DType.INT32,
                TheirDType.DOUBLE to DType.FLOAT64,
                TheirDType.HALF to DType.FLOAT16,
                TheirDType.INT8 to DType.INT8,
                TheirDType.UINT8 to DType.UINT8,
            )

        private fun tensor(
            spec: TensorSpec,
            buffer: ByteBuffer,
        ): TheirTensor {
            val shape = LongArray(spec.shape.size) { spec.shape[it].toLong() }
            return when (spec.dtype) {
                DType.FLOAT32 -> TheirTensor.fromBlob(buffer.asFloatBuffer(), shape)

                DType.INT64 -> TheirTensor.fromBlob(buffer.asLongBuffer(), shape)

                DType.INT32 -> TheirTensor.fromBlob(buffer.asIntBuffer(), shape)

                DType.FLOAT64 -> TheirTensor.fromBlob(buffer.asDoubleBuffer(), shape)

                DType.FLOAT16 -> TheirTensor.fromBlob(buffer.asShortBuffer(), shape)

                DType.INT8 -> TheirTensor.fromBlob(buffer, shape)

                DType.UINT8 -> TheirTensor.fromBlobUnsigned(buffer, shape)

                DType.BOOL, DType.INT16 -> throw EngineException(
                    "input '${spec.name}' is ${spec.dtype.wireName}, which the Android library of ExecuTorch cannot be given",
                    "let the model take float32 or int64, or export it for ONNX Runtime",
                )
            }
        }

        private fun copied(value: TheirTensor): Tensor {
            val dtype = checkNotNull(DTYPES[value.dtype()]) { "an output of type ${value.dtype()}" }
            val shape = value.shape().map { Math.toIntExact(it) }
            return when (dtype) {
                DType.FLOAT32 -> FloatTensor(value.dataAsFloatArray, shape)
                DType.INT64 -> LongTensor(value.dataAsLongArray, shape)
                else -> RawTensor(dtype, bytes(value, dtype), shape)
            }
        }

        private fun bytes(
            value: TheirTensor,
            dtype: DType,
        ): ByteArray {
            val bytes = ByteBuffer.allocate(Math.toIntExact(value.numel()) * dtype.bytes).order(ByteOrder.LITTLE_ENDIAN)
            when (dtype) {
                DType.INT32 -> bytes.asIntBuffer().put(value.dataAsIntArray)
                DType.FLOAT64 -> bytes.asDoubleBuffer().put(value.dataAsDoubleArray)
                DType.FLOAT16 -> bytes.asShortBuffer().put(value.dataAsShortArray)
                DType.UINT8 -> bytes.put(value.dataAsUnsignedByteArray)
                else -> bytes.put(value.dataAsByteArray)
            }
            return bytes.array()
        }
    }
}
