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
public object OnnxRuntimeEngine : RuntimeEngine() {
    override val name: String get() = "onnxruntime"

    override val version: String get() = brought { OrtEnvironment.getEnvironment().version }

    override fun runtime(
        files: Map<String, Path>,
        programs: List<ProgramSpec>,
        threads: Int,
    ): OnnxRuntimePrograms = brought { OnnxRuntimePrograms(OrtEnvironment.getEnvironment(), files, threads) }

    private inline fun <T> brought(open: () -> T): T =
        broughtByTheApp("ONNX Runtime", "com.microsoft.onnxruntime:onnxruntime-android", open)
}

/** Programs are loaded when first used. What is the runtime's is counted, so that tests see that all of it is given back. */
internal class OnnxRuntimePrograms(
    private val environment: OrtEnvironment,
    private val files: Map<String, Path>,
    threads: Int,
) : ProgramRuntime<OnnxRuntimePrograms.Value> {
    override val name get() = OnnxRuntimeEngine.name

    private val loaded = HashMap<String, OrtSession>()
    private val rooms = Rooms { spec, buffer -> Value(tensor(spec, buffer), spec.signature, buffer) }

    private val options =
        counted(OrtSession.SessionOptions()).apply {
            // What goes wrong is thrown.
            setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL)
            // A thread that waits for work would keep a core busy.
            addConfigEntry("session.intra_op.allow_spinning", "0")
            setIntraOpNumThreads(threads)
            setInterOpNumThreads(1)
            if (Schedule.SCHEDULE in files) {
                // Blocks are run one after another to take little. Each part would keep the most that it ever took, and the Java API
                // has no arena for all of them. On a JVM a step of SmolLM2's shape (256 tokens, 4 bits) took 287 MB with an arena
                // for each part, 331 MB where these shrink after each run, and without any 173 MB in glibc's heap, in the same
                // time; 105 to 110 MB where large values are apart (in twice the time there), as Android's allocator has them.
                setCPUArenaAllocator(false)
                setMemoryPatternOptimization(false)
            }
        }

    /**
     * A tensor of the runtime.
     *
     * @property signature `float32[2, 3]`
     * @property room where its elements are, if that is memory of ours that is used again
     */
    class Value(
        val tensor: OnnxTensor,
        val signature: String,
        val room: ByteBuffer?,
    )

    override fun mapped(
        spec: TensorSpec,
        bytes: ByteBuffer,
    ) = Value(tensor(spec, bytes), spec.signature, null)

    override fun given(
        spec: TensorSpec,
        tensor: Tensor,
    ): Value = rooms.take(spec).also { tensor.putInto(checkNotNull(it.room).clear()) }

    override fun run(
        program: ProgramSpec,
        inputs: List<Value>,
    ): List<Value> {
        val session = loaded.getOrPut(program.name) { load(program) }
        val given = program.inputs.zip(inputs).associate { (spec, value) -> spec.name to value.tensor }
        val result = session.run(given, program.outputs.mapTo(LinkedHashSet()) { it.name })
        try {
            val outputs = program.outputs.map { result.get(it.name).get() as OnnxTensor }
            // Each is closed by itself, and not with the others.
            return outputs.map { Value(it, signature(it), null) }.onEach { counted(it.tensor) }
        } catch (
            // The outputs are of nobody yet.
            @Suppress("TooGenericExceptionCaught") error: Exception,
        ) {
            result.close()
            throw error
        }
    }

    override fun signature(value: Value) = value.signature

    override fun taken(value: Value) = copied(value.tensor)

    override fun drop(value: Value) = if (value.room == null) release(value.tensor) else rooms.put(value.signature, value)

    override fun free() {
        rooms.empty().forEach { release(it.tensor) }
        loaded.values.forEach { release(it) }
        loaded.clear()
        release(options)
    }

    private fun load(program: ProgramSpec): OrtSession {
        val path = fileFor(files, program.name)
        return try {
            counted(environment.createSession(path.toString(), options))
        } catch (error: OrtException) {
            throw EngineException("ONNX Runtime cannot load ${path.fileName}: ${error.message}", EXPORT_AGAIN, error)
        }
    }

    /** A tensor over memory of others, which the runtime reads where it lies. */
    private fun tensor(
        spec: TensorSpec,
        bytes: ByteBuffer,
    ): OnnxTensor {
        val shape = LongArray(spec.shape.size) { spec.shape[it].toLong() }
        return counted(OnnxTensor.createTensor(environment, bytes, shape, TYPES.getValue(spec.dtype)))
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

        private fun dtype(value: OnnxTensor): DType = checkNotNull(DTYPES[value.info.type]) { "an output of type ${value.info.type}" }

        private fun shape(value: OnnxTensor): List<Int> = value.info.shape.map { Math.toIntExact(it) }

        private fun signature(value: OnnxTensor) = "${dtype(value).wireName}${shape(value)}"

        private fun copied(value: OnnxTensor): Tensor {
            val shape = shape(value)
            return when (val dtype = dtype(value)) {
                // Each call of a buffer copies all of it.
                DType.FLOAT32 -> value.floatBuffer.let { from -> FloatTensor(FloatArray(from.remaining()).also { from.get(it) }, shape) }

                DType.INT64 -> value.longBuffer.let { from -> LongTensor(LongArray(from.remaining()).also { from.get(it) }, shape) }

                else -> value.byteBuffer.let { from -> RawTensor(dtype, ByteArray(from.remaining()).also { from.get(it) }, shape) }
            }
        }
    }
}
