package io.pflmobile.core.engines

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtSession
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.errors.EngineException
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.RawTensor
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.tensors.putInto
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.Path
import java.util.concurrent.atomic.AtomicInteger

/**
 * ONNX Runtime: one `.onnx` per program beside a shared weight file, run by the stock inference runtime. The app brings it:
 * `com.microsoft.onnxruntime:onnxruntime-android`, or `onnxruntime` on a desktop.
 */
public object OnnxRuntimeEngine : Engine {
    override val name: String get() = "onnxruntime"

    override val version: String get() = brought { OrtEnvironment.getEnvironment().version }

    override fun open(
        files: Map<String, Path>,
        programs: List<ProgramSpec>,
        threads: Int,
    ): Session = brought { OnnxRuntimeSession(OrtEnvironment.getEnvironment(), files, programs, threads) }

    private inline fun <T> brought(open: () -> T): T =
        broughtByTheApp("ONNX Runtime", "com.microsoft.onnxruntime:onnxruntime-android", open)
}

/** Programs are loaded when first used. What is the runtime's is counted, so that tests see that all of it is given back. */
internal class OnnxRuntimeSession(
    private val environment: OrtEnvironment,
    private val files: Map<String, Path>,
    programs: List<ProgramSpec>,
    threads: Int,
) : EngineSession(OnnxRuntimeEngine.name, programs) {
    private val loaded = HashMap<String, Loaded>()

    private val options =
        counted(OrtSession.SessionOptions()).apply {
            // What goes wrong is thrown.
            setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL)
            // A thread that waits for work would keep a core busy.
            addConfigEntry("session.intra_op.allow_spinning", "0")
            setIntraOpNumThreads(threads)
            setInterOpNumThreads(1)
        }

    override fun execute(
        program: ProgramSpec,
        inputs: List<Tensor>,
    ): List<Tensor> = loaded.getOrPut(program.name) { load(program) }.run(inputs)

    override fun free() {
        loaded.values.forEach { it.close() }
        loaded.clear()
        release(options)
    }

    private fun load(program: ProgramSpec): Loaded {
        val path = fileFor(files, program.name)
        val session =
            try {
                counted(environment.createSession(path.toString(), options))
            } catch (error: OrtException) {
                throw EngineException("ONNX Runtime cannot load ${path.fileName}: ${error.message}", EXPORT_AGAIN, error)
            }
        return Loaded(session, program, environment)
    }

    /** A program with room for its inputs, which the runtime reads where it lies. */
    private class Loaded(
        private val session: OrtSession,
        private val program: ProgramSpec,
        environment: OrtEnvironment,
    ) : AutoCloseable {
        private val inputs = program.inputs.map { Input(it, environment) }
        private val tensors = inputs.associate { it.name to it.tensor }
        private val names = program.outputs.mapTo(LinkedHashSet()) { it.name }

        fun run(values: List<Tensor>): List<Tensor> {
            inputs.zip(values) { input, value -> input.fill(value) }
            return counted(session.run(tensors, names)).let { result ->
                try {
                    program.outputs.map { copied(result.get(it.name).get() as OnnxTensor) }
                } finally {
                    release(result)
                }
            }
        }

        override fun close() {
            inputs.forEach { it.close() }
            release(session)
        }
    }

    private class Input(
        spec: TensorSpec,
        environment: OrtEnvironment,
    ) : AutoCloseable {
        val name = spec.name
        private val buffer: ByteBuffer =
            ByteBuffer.allocateDirect(spec.shape.fold(spec.dtype.bytes, Int::times)).order(ByteOrder.nativeOrder())
        val tensor: OnnxTensor =
            counted(OnnxTensor.createTensor(environment, buffer, spec.shape.map { it.toLong() }.toLongArray(), TYPES.getValue(spec.dtype)))

        fun fill(value: Tensor) {
            buffer.clear()
            value.putInto(buffer)
        }

        override fun close() = release(tensor)
    }

    companion object {
        /** Objects of the runtime that are not closed. */
        val open = AtomicInteger()

        private val TYPES =
            mapOf(
                DType.BOOL to OnnxJavaType.BOOL,
                DType.UINT8 to OnnxJavaType.UINT8,
                DType.INT8 to OnnxJavaType.INT8,
                DType.INT16 to OnnxJavaType.INT16,
                DType.FLOAT16 to OnnxJavaType.FLOAT16,
                DType.INT32 to OnnxJavaType.INT32,
                DType.FLOAT32 to OnnxJavaType.FLOAT,
                DType.FLOAT64 to OnnxJavaType.DOUBLE,
                DType.INT64 to OnnxJavaType.INT64,
            )
        private val DTYPES = TYPES.entries.associate { (ours, theirs) -> theirs to ours }

        private fun <T : AutoCloseable> counted(resource: T): T = resource.also { open.incrementAndGet() }

        private fun release(resource: AutoCloseable) {
            open.decrementAndGet()
            resource.close()
        }

        private fun copied(value: OnnxTensor): Tensor {
            val dtype = checkNotNull(DTYPES[value.info.type]) { "an output of type ${value.info.type}" }
            val shape = value.info.shape.map { Math.toIntExact(it) }
            return when (dtype) {
                // Each call of a buffer copies all of it.
                DType.FLOAT32 -> value.floatBuffer.let { from -> FloatTensor(FloatArray(from.remaining()).also { from.get(it) }, shape) }

                DType.INT64 -> value.longBuffer.let { from -> LongTensor(LongArray(from.remaining()).also { from.get(it) }, shape) }

                else -> value.byteBuffer.let { from -> RawTensor(dtype, ByteArray(from.remaining()).also { from.get(it) }, shape) }
            }
        }
    }
}
