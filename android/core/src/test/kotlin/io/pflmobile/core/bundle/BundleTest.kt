package io.pflmobile.core.bundle

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.errors.MissingFileException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.TamperedBundleException
import io.pflmobile.core.errors.UnknownNameException
import io.pflmobile.core.tensors.DType
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.contentOrNull
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Path
import kotlin.io.path.copyTo
import kotlin.io.path.createDirectory
import kotlin.io.path.exists
import kotlin.io.path.listDirectoryEntries
import kotlin.io.path.readBytes
import kotlin.io.path.writeBytes
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertNull
import kotlin.test.assertTrue

class BundleTest {
    @TempDir
    lateinit var folder: Path

    private val vectors = Vectors.read("bundles.json")
    private val small = Vectors.folder.resolve("bundles/small.pflb")

    private fun key(name: String) =
        VerificationKey.parse(
            vectors
                .getValue("keys")
                .jsonObject
                .getValue(name)
                .jsonPrimitive.content,
        )

    @Test
    fun `every damage has Python's code`() {
        val cases = vectors.getValue("cases").jsonArray.map { it.jsonObject }
        val others =
            cases.mapIndexedNotNull { index, case ->
                val want =
                    case
                        .getValue("code")
                        .takeUnless { it is JsonNull }
                        ?.jsonPrimitive
                        ?.content
                val found = code(case, folder.resolve("$index").createDirectory())
                if (found == want) null else "${case["bundle"]}, ${case["name"]}: $found, not $want"
            }
        assertEquals(emptyList(), others)
        assertTrue(cases.size > 300)
    }

    private fun code(
        case: JsonObject,
        where: Path,
    ): String? {
        val base = where.resolve("it")
        if (case.getValue("bundle").jsonPrimitive.content == "small") Damage.unpackSmall(base) else small.copyTo(base)
        case.getValue("steps").jsonArray.forEach { Damage.apply(it.jsonObject, base) }
        val cache = where.resolve("cache").createDirectory()
        val code =
            try {
                Bundle
                    .open(
                        base,
                        case["key"]?.jsonPrimitive?.let { key(it.content) },
                        case["require"]?.jsonPrimitive?.boolean ?: false,
                        cache,
                        case["max_bytes"]?.jsonPrimitive?.long ?: Bundle.MAX_BYTES,
                    ).use {
                        when (case["ask"]?.jsonPrimitive?.contentOrNull) {
                            "values" -> it.values()
                            "golden" -> it.golden()
                            "plan" -> it.planJson()
                        }
                    }
                null
            } catch (error: PflException) {
                error.code
            }
        assertEquals(emptyList(), cache.listDirectoryEntries(), "left behind by ${case["name"]}")
        return code
    }

    @Test
    fun `a zip is unpacked, and removed when the bundle is closed`() {
        val done = mutableListOf<Long>()
        val bundle = Bundle.open(small, key("right"), cacheFolder = folder, progress = { _, bytes, _ -> done += bytes })
        assertTrue(bundle.pinned)
        assertEquals(key("right").hex, bundle.signedBy)
        assertEquals(bundle.manifest.measured.totalBytes, done.last())
        assertEquals("{}", bundle.tokenizer()?.decodeToString())
        assertEquals(setOf("a.lora_A", "é"), bundle.values().keys)
        assertEquals(
            listOf(3, 2),
            bundle
                .golden()
                .getValue("gradients")
                .inputs
                .getValue("a.lora_A")
                .shape,
        )
        val program = bundle.engineFiles("onnxruntime").getValue("gradients")
        assertContentEquals("no program".toByteArray(), program.readBytes())
        bundle.close()
        bundle.close()
        assertFalse(program.exists())
        assertEquals(emptyList(), folder.listDirectoryEntries())
    }

    @Test
    fun `a manifest says what is in it`() {
        Bundle.open(small).use {
            assertFalse(it.pinned)
            val manifest = it.manifest
            assertEquals(EncoderEntry.Text(4, 2, 10, 2), manifest.encoder)
            assertEquals(DeviceTensor("é", Role.GROUP, "team", listOf(2), DType.FLOAT32, TensorUpdate.ASSIGN, null), manifest.tensors[1])
            assertEquals(Limits(maxExamples = 100), manifest.limits)
            assertEquals(TaskEntry(TaskKind.TOKENS, listOf("top1"), 12), manifest.task)
            assertEquals(listOf("tokens", "weight"), manifest.batchInputs("gradients").map { spec -> spec.name })
            assertEquals("plan.json", manifest.plan)
            val error = assertFailsWith<UnknownNameException> { manifest.program("gradient") }
            assertTrue("gradients" in error.mend)
            assertFailsWith<MissingFileException> { it.path("manifest.json") }
        }
    }

    @Test
    fun `what is changed after the opening is noticed`() {
        val base = folder.resolve("it").also(Damage::unpackSmall)
        Bundle.open(base).use { bundle ->
            val file = bundle.path("tensors.safetensors")
            val data = file.readBytes()
            file.writeBytes(data.copyOf().also { it[data.size - 1] = 1 })
            assertFailsWith<TamperedBundleException> { bundle.values() }
            assertFailsWith<TamperedBundleException> { bundle.golden() }
        }
        assertTrue(base.exists(), "a folder that is no copy stays")
    }

    @Test
    fun `a listener that throws ends the reading and leaves nothing`() {
        class Stop : Exception()
        assertFailsWith<Stop> { Bundle.open(small, cacheFolder = folder, progress = { _, _, _ -> throw Stop() }) }
        assertEquals(emptyList(), folder.listDirectoryEntries())
    }

    @Test
    fun `a real bundle of Python opens`() {
        Bundle.open(Vectors.folder.resolve("bundles/arrays"), key("right")).use {
            assertEquals(setOf("gradients", "evaluate", "predict"), it.golden().keys)
            assertNull(it.tokenizer())
        }
    }
}
