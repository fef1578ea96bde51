package io.pflmobile.core.engines

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.bundle.VerificationKey
import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.engines.Schedule.Companion.CONSTANTS
import io.pflmobile.core.engines.Schedule.Companion.SCHEDULE
import io.pflmobile.core.errors.EngineException
import io.pflmobile.core.errors.InvalidManifestException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.tensors.sameBits
import kotlinx.serialization.json.jsonObject
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.io.TempDir
import java.nio.ByteBuffer
import java.nio.file.Path
import kotlin.io.path.readBytes
import kotlin.io.path.writeBytes
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

/** A bundle whose blocks repeat, and so are in it once. */
class ScheduledSessionTest {
    @TempDir
    lateinit var folder: Path

    private val bundle =
        Bundle.open(
            Vectors.folder.resolve("bundles/blocks"),
            VerificationKey.parse(
                text(
                    Vectors
                        .read("bundles.json")
                        .getValue("keys")
                        .jsonObject
                        .getValue("right"),
                ),
            ),
        )
    private val files = bundle.engineFiles("onnxruntime")
    private val programs = bundle.manifest.programs
    private val inputs = bundle.golden().getValue("gradients").inputs

    @AfterEach
    fun `nothing of the runtime is left`() {
        assertEquals(0, OnnxRuntimePrograms.open.get())
    }

    private fun <T> session(
        engine: Engine = OnnxRuntimeEngine,
        use: (Session) -> T,
    ): T = openSession(bundle, listOf(engine)).use(use)

    @Test
    fun `blocks that repeat are one part, and the golden calls give what PyTorch gave`() {
        val schedule = Schedule.parse(files.getValue(SCHEDULE).readBytes(), programs)
        val calls = schedule.programs.getValue("gradients").calls
        assertTrue(calls.groupBy { it.part.name }.values.any { it.size > 1 })
        val report = session { goldenCheck(bundle, it) }
        report.require()
        assertTrue(report.worstRelErr < 1e-5, "$report")
    }

    @Test
    fun `no call leaves more behind than the one before, and outputs are the caller's`() =
        session { session ->
            val first = session.run("gradients", inputs)
            val kept = first.mapValues { (it.value as FloatTensor).copy() }
            val held = OnnxRuntimePrograms.open.get()
            repeat(3) { for ((name, value) in session.run("gradients", inputs)) assertTrue(value.sameBits(kept.getValue(name)), name) }
            for ((name, value) in first) assertTrue(value.sameBits(kept.getValue(name)), name)
            assertEquals(held, OnnxRuntimePrograms.open.get())
        }

    @Test
    fun `any other engine runs schedules too`() {
        // It is not known by this library.
        val other = object : Engine by OnnxRuntimeEngine {}
        val ours = session { it.run("gradients", inputs) }
        val theirs = session(other) { session -> session.run("gradients", inputs).also { goldenCheck(bundle, session).require() } }
        for ((name, value) in ours) assertTrue(value.sameBits(theirs.getValue(name)), name)
    }

    private fun refusal(vararg changed: Pair<String, Path>) =
        assertFailsWith<EngineException> {
            scheduled(OnnxRuntimeEngine, files + changed, programs, 1).use { it.run("gradients", inputs) }
        }

    private fun written(
        name: String,
        content: ByteArray,
    ): Path = folder.resolve(name).also { it.writeBytes(content) }

    @Test
    fun `files that are damaged or gone are named`() {
        val constants = files.getValue(CONSTANTS).readBytes()
        val short = refusal(CONSTANTS to written("constants.bin", constants.dropLast(1).toByteArray()))
        assertTrue("has ${constants.size - 1} bytes" in short.message, short.message)
        assertTrue("file of constants" in refusal(CONSTANTS to folder.resolve("gone")).message)
        assertTrue("the schedule" in refusal(SCHEDULE to folder.resolve("gone")).message)
        val without = assertFailsWith<EngineException> { scheduled(OnnxRuntimeEngine, files - CONSTANTS, programs, 1) }
        assertTrue("'constants'" in without.message)
        val other =
            written(
                "schedule.json",
                files
                    .getValue(SCHEDULE)
                    .readBytes()
                    .decodeToString()
                    .replace("pfl-schedule", "pfl")
                    .toByteArray(),
            )
        assertFailsWith<InvalidManifestException> { scheduled(OnnxRuntimeEngine, files + (SCHEDULE to other), programs, 1) }
    }

    @Test
    fun `a part that fails is named with its call and program`() {
        val schedule = Schedule.parse(files.getValue(SCHEDULE).readBytes(), programs)
        val call = schedule.programs.getValue("gradients").calls[1]
        val damaged = refusal(call.part.name to written("damaged.onnx", ByteArray(9)))
        assertTrue("call 1 of program 'gradients', part '${call.part.name}'" in damaged.message, damaged.message)
        val others = schedule.parts.filter { it.outputs.map(TensorSpec::shape) != call.part.outputs.map(TensorSpec::shape) }
        refusal(call.part.name to files.getValue(others.first().name))
    }

    /** Adds, and counts what it holds when a call is done. */
    private class Adding(
        val fails: String? = null,
    ) : ProgramRuntime<FloatArray> {
        val peak = ArrayList<Int>()
        var freed = false
        private val alive = java.util.Collections.newSetFromMap(java.util.IdentityHashMap<FloatArray, Boolean>())

        private fun new(value: FloatArray) = value.also { alive += it }

        override val name = "adding"

        override fun mapped(
            spec: TensorSpec,
            bytes: ByteBuffer,
        ) = new(FloatArray(2).also { bytes.asFloatBuffer().get(it) })

        override fun given(
            spec: TensorSpec,
            tensor: Tensor,
        ) = new((tensor as FloatTensor).values.copyOf())

        override fun run(
            program: ProgramSpec,
            inputs: List<FloatArray>,
        ): List<FloatArray> {
            assertTrue(alive.containsAll(inputs))
            if (program.name == fails) error("boom")
            val sum = FloatArray(2) { at -> inputs.map { it[at] }.sum() }
            if (program.name == "wide") return listOf(new(FloatArray(3)), new(sum))
            return program.outputs.map { new(sum.copyOf()) }.also { peak += alive.size }
        }

        override fun signature(value: FloatArray) = "float32[${value.size}]"

        override fun taken(value: FloatArray) = FloatTensor(value, listOf(2)).also { assertTrue(value in alive) }

        override fun drop(value: FloatArray) {
            assertTrue(alive.remove(value), "it was dropped before")
        }

        override fun free() {
            assertTrue(alive.isEmpty())
            freed = true
        }
    }

    private fun two(name: String) = TensorSpec(name, listOf(2), DType.FLOAT32)

    private fun program(
        name: String,
        inputs: List<String>,
        vararg outputs: String,
    ) = ProgramSpec(name, inputs.map(::two), outputs.map(::two))

    private fun chain(
        length: Int,
        part: String = "add",
    ): Pair<Schedule, ProgramSpec> {
        val bundle = program("all", listOf("x"), "last", "again", "back", "constant")
        val calls =
            (0 until length).joinToString(",") {
                val from = if (it == 0) "input:x" else "value:${2 * it - 2}"
                """{"part":"$part","inputs":["$from","constant:c"],"outputs":[${2 * it},${2 * it + 1}]}"""
            }

        fun spec(name: String) = """{"name":"$name","shape":[2],"dtype":"float32"}"""
        val text =
            """{"schema_version":1,"kind":"pfl-schedule",
            "parts":[{"name":"$part","inputs":[${spec("a")},${spec("b")}],"outputs":[${spec("y")},${spec("z")}]}],
            "constants":{"c":{"shape":[2],"dtype":"float32","offset":64}},
            "programs":{"all":{"calls":[$calls],"outputs":["value:${2 * length - 2}","value:${2 * length - 2}","input:x","constant:c"]}}}"""
        return Schedule.parse(text.toByteArray(), listOf(bundle)) to bundle
    }

    private fun constants(schedule: Schedule): Map<String, ByteBuffer> {
        val content =
            ByteBuffer
                .allocate(72)
                .order(java.nio.ByteOrder.LITTLE_ENDIAN)
                .putFloat(64, 1f)
                .putFloat(68, 10f)
        return mapped(written("c.bin", content.array()), schedule.constants.values)
    }

    @Test
    fun `a value is dropped after its last reader, and what is given is of the caller`() {
        val (schedule, bundle) = chain(9)
        val runtime = Adding()
        val session = ScheduledSession(runtime, schedule, constants(schedule), listOf(bundle))
        val x = FloatTensor(floatArrayOf(1f, 2f), listOf(2))
        val found = session.run("all", mapOf("x" to x))
        val want = mapOf("last" to listOf(10f, 92f), "again" to listOf(10f, 92f), "back" to listOf(1f, 2f), "constant" to listOf(1f, 10f))
        assertEquals(want, found.mapValues { (_, value) -> (value as FloatTensor).values.toList() })
        val arrays = (found.values + x).map { (it as FloatTensor).values }
        arrays.forEachIndexed { at, one -> arrays.drop(at + 1).forEach { assertTrue(one !== it) } }
        // The constant, the input, which is an output too, what is read, and two results.
        assertEquals(listOf(5), runtime.peak.drop(1).distinct())
        session.close()
        assertTrue(runtime.freed)
    }

    @Test
    fun `what a call leaves is dropped when the next one fails`() {
        for ((fails, part) in listOf("add" to "add", null to "wide")) {
            val (schedule, bundle) = chain(3, part)
            val runtime = Adding(fails)
            ScheduledSession(runtime, schedule, constants(schedule), listOf(bundle)).use { session ->
                val error =
                    assertFailsWith<EngineException> { session.run("all", mapOf("x" to FloatTensor(FloatArray(2), listOf(2)))) }
                assertTrue("call 0 of program 'all', part '$part'" in error.message, error.message)
                assertEquals(fails == null, error is TensorMismatchException)
            }
            assertTrue(runtime.freed)
        }
    }

    @Test
    fun `a file too large for one buffer is mapped in pieces`() {
        val content = ByteArray(1000) { it.toByte() }
        val path = written("large.bin", content)
        val entries =
            listOf(0, 128, 64, 512, 128).mapIndexed {
                at,
                offset,
                ->
                ConstantEntry(TensorSpec("c$at", listOf(60 + at), DType.UINT8), offset.toLong())
            }
        for (most in listOf(64L, 100L, 200L, 1000L)) {
            val found = mapped(path, entries, most)
            for (entry in entries) {
                val bytes = ByteArray(entry.bytes.toInt()).also { found.getValue(entry.spec.name).duplicate().get(it) }
                assertContentEquals(content.copyOfRange(entry.offset.toInt(), entry.offset.toInt() + bytes.size), bytes)
                assertTrue(found.getValue(entry.spec.name).isDirect)
            }
        }
        val error = assertFailsWith<EngineException> { mapped(path, entries, 63) }
        assertTrue("'c4' has 64 bytes" in error.message, error.message)
    }
}
