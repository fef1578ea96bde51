package io.pflmobile.core.device

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.assertDouble
import io.pflmobile.core.conformance.text
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.files.Safetensors
import io.pflmobile.core.files.fromHex
import io.pflmobile.core.files.hex
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.protocol.Bodies
import io.pflmobile.core.protocol.Enrolled
import io.pflmobile.core.protocol.TaskPrivacy
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.tensors.FloatTensor
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.booleanOrNull
import kotlinx.serialization.json.contentOrNull
import kotlinx.serialization.json.double
import kotlinx.serialization.json.doubleOrNull
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.attribute.PosixFilePermissions
import java.security.MessageDigest
import kotlin.io.path.exists
import kotlin.io.path.listDirectoryEntries
import kotlin.io.path.name
import kotlin.io.path.readText
import kotlin.io.path.writeText
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNull
import kotlin.test.assertTrue

/** What a device decides by itself, by the vectors that Python writes. */
class DeviceVectorsTest {
    @TempDir
    lateinit var folder: Path

    private val privacy = Vectors.read("privacy.json")
    private val device = Vectors.read("device.json")

    private fun policy(settings: JsonObject): PrivacyPolicy {
        fun number(name: String) = settings[name]?.jsonPrimitive?.double

        fun flag(name: String) = settings[name]?.jsonPrimitive?.boolean
        val default = PrivacyPolicy()
        return PrivacyPolicy(
            flag("require") ?: default.require,
            flag("only_local") ?: default.onlyLocal,
            number("min_noise") ?: default.minNoise,
            number("max_epsilon") ?: default.maxEpsilon,
            number("max_delta") ?: default.maxDelta,
            flag("report") ?: default.report,
        )
    }

    @Test
    fun `policies refuse tasks in the same words`() {
        val policies = privacy.getValue("policies").jsonObject.mapValues { policy(it.value.jsonObject) }
        privacy.getValue("cases").jsonArray.map { it.jsonObject }.forEachIndexed { number, case ->
            val task = Bodies.decode(TaskPrivacy.serializer(), case.getValue("privacy").toString().encodeToByteArray(), "a task")
            val reports = case.getValue("reports").jsonArray.map { text(it) }
            val sent = SentNoise(folder.resolve("$number.json"))
            case.getValue("sent").jsonArray.forEach { sent.add(it.jsonPrimitive.double) }
            for ((name, verdict) in case.getValue("verdicts").jsonObject) {
                fun said(field: String) = verdict.jsonObject.getValue(field).jsonPrimitive
                val policy = policies.getValue(name)
                assertEquals(said("refusal").contentOrNull, policy.refusal(task, reports, sent), "$name: $case")
                assertEquals(said("refusal_counted").contentOrNull, policy.refusal(task, reports, sent, counted = true), "$name: $case")
                assertEquals(said("may_report").booleanOrNull, policy.mayReport(task), "$name: $case")
            }
        }
    }

    @Test
    fun `policies that protect less than they seem to are refused`() {
        for (case in privacy.getValue("settings").jsonArray.map { it.jsonObject }) {
            val settings = case.getValue("settings").jsonObject
            if (case.getValue("refused").jsonPrimitive.boolean) {
                assertFailsWith<ConfigException>("$case") { policy(settings) }
            } else {
                policy(settings)
            }
        }
    }

    @Test
    fun `pauses grow, with jitter, and are bounded`() {
        for (case in device.getValue("pauses").jsonArray.map { it.jsonObject }) {
            val given = case.getValue("backoff").jsonObject
            val default = Backoff()
            val backoff =
                Backoff(
                    firstS = given["first_s"]?.jsonPrimitive?.double ?: default.firstS,
                    mostS = given["most_s"]?.jsonPrimitive?.double ?: default.mostS,
                )
            val told = case.getValue("told_s").jsonPrimitive.doubleOrNull
            val found = backoff.pause(case.getValue("failures").jsonPrimitive.int, told, case.getValue("u").jsonPrimitive.double)
            assertDouble(case.getValue("pause_s"), found, "$case")
        }
    }

    @Test
    fun `Retry-After is read as seconds or a date`() {
        for (case in device.getValue("retry_after").jsonArray.map { it.jsonObject }) {
            val found = retryAfter(text(case.getValue("header")), case.getValue("now").jsonPrimitive.double)
            assertEquals(case.getValue("seconds").jsonPrimitive.doubleOrNull, found, "$case")
        }
    }

    @Test
    fun `what was sent is counted on the disk`() {
        val path = folder.resolve("sent.json")
        val sent = SentNoise(path)
        assertEquals(0.0, sent.epsilon(1e-6))
        assertEquals(false, path.exists())
        sent.add(8.0)
        assertEquals(sent.epsilon(1e-6), SentNoise(path).epsilon(1e-6))
        assertEquals(1, SentNoise(path).updates)
        sent.add(1e-200)
        assertTrue(SentNoise(path).epsilon(1e-6) > 1e100)
        val counts =
            listOf("1, 1, 0", "1, -1, 1", "1, 1.5, 1", "1, 1, -1", "2, 1, 1").map {
                val (version, updates, inverse) = it.split(", ")
                """{"schema_version":$version,"updates":$updates,"inverse_squares":$inverse}"""
            }
        for (text in listOf("", "{}", "[]") + counts) {
            path.writeText(text)
            assertFailsWith<DeviceFolderException>(text) { SentNoise(path) }
        }
        Files.delete(path)
        Files.createDirectory(path)
        assertFailsWith<DeviceFolderException> { SentNoise(path) }
    }

    private fun kept() = device.getValue("folder").jsonObject

    private fun restored(): Path {
        val place = folder.resolve("device")
        Files.createDirectories(place.resolve("queue"))
        for ((name, content) in kept().getValue("files").jsonObject) place.resolve(name).writeText(text(content))
        val update = kept().getValue("update").jsonObject
        Files.write(place.resolve(text(update.getValue("name"))), fromHex(text(update.getValue("hex")))!!)
        return place
    }

    private val model get() =
        kept()
            .getValue("model")
            .jsonArray
            .map { text(it) }
            .let { (a, b, c) -> ModelId(a, b, c) }

    @Test
    fun `a folder of Python's is opened, and written alike`() {
        val place = restored()
        DeviceFolder(place, model, text(kept().getValue("user"))).use { found ->
            val membership = kept().getValue("membership").jsonObject.mapValues { text(it.value) }
            assertEquals(
                membership,
                found.membership!!.let {
                    mapOf(
                        "server" to it.server,
                        "device" to it.device,
                        "credential" to it.credential,
                    )
                },
            )
            val (pending, damaged) = found.pending()
            assertEquals(emptyList(), damaged)
            val entry = pending.single()
            assertEquals(text(kept().getValue("pending").jsonObject.getValue("key")), entry.key)
            val sent = kept().getValue("sent").jsonObject
            assertEquals(
                sent
                    .getValue("updates")
                    .jsonPrimitive.int
                    .toLong(),
                found.sentUnderOwnNoise,
            )
            assertEquals(sent.getValue("epsilon").jsonPrimitive.double, found.ownEpsilon(sent.getValue("delta").jsonPrimitive.double), 1e-8)

            found.change(entry)
            found.join(membership.getValue("server"), Enrolled(membership.getValue("device"), membership.getValue("credential")))
        }
        for ((name, content) in kept().getValue("files").jsonObject) {
            assertEquals(parseJson(text(content)), parseJson(place.resolve(name).readText()), name)
        }
        for (name in listOf("device.json", "queue/${"0123456789abcdef".repeat(2)}.json")) {
            assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(place.resolve(name))), name)
        }
    }

    @Test
    fun `a folder is of one process, model and user`() {
        val place = restored()
        DeviceFolder(place, model).use {
            assertFailsWith<DeviceFolderException> { DeviceFolder(place, model) }
        }
        assertFailsWith<DeviceFolderException> { DeviceFolder(place, model.copy(version = "2")) }
        assertFailsWith<DeviceFolderException> { DeviceFolder(place, model, "bob") }
        DeviceFolder(place, model).use { it.forget() }
        DeviceFolder(place, model.copy(version = "2")).close()
        place.resolve("device.json").writeText("{}")
        assertFailsWith<DeviceFolderException> { DeviceFolder(place, model) }
    }

    @Test
    fun `a damaged entry of the queue is found, and leftovers are removed`() {
        val place = restored()
        DeviceFolder(place, model).use { found ->
            val entry = found.pending().first.single()
            found.put(entry.copy(task = "b".repeat(32), round = 1), "other".encodeToByteArray())
            assertEquals(listOf(entry.task) to listOf("b".repeat(32)), found.pending().let { (good, bad) -> good.map { it.task } to bad })
            place.resolve("queue/${"c".repeat(32)}.update").writeText("of a killed process")
            place.resolve("queue/${"d".repeat(32)}.json").writeText("{")
            assertEquals(3, found.waiting)
            assertEquals(listOf("b".repeat(32), "d".repeat(32)), found.pending().second)
            assertTrue(found.updatePath("c".repeat(32)).exists(), "it may be one that is just being written")
            found.removeOrphans()
            assertEquals(false, place.resolve("queue/${"c".repeat(32)}.update").exists())
            found.pending().second.forEach(found::remove)
            assertEquals(listOf(entry), found.pending().first)
            found.change(entry.copy(uploaded = true))
            Files.delete(found.updatePath(entry.task))
            assertEquals(1, found.waiting)
        }
    }

    @Test
    fun `downloaded values are what their digest says, or not there`() {
        val place = restored()
        DeviceFolder(place, model).use { found ->
            val data = Safetensors.write(mapOf("a" to FloatTensor(floatArrayOf(1f, 2f), listOf(2))))
            val digest = hex(MessageDigest.getInstance("SHA-256").digest(data))
            assertNull(found.loadSet(digest))
            Files.write(found.setPath(digest), data)
            assertEquals(listOf(2), found.loadSet(digest)!!.getValue("a").shape)
            Files.write(found.setPath(digest), data + 0)
            assertNull(found.loadSet(digest))
            assertEquals(false, found.setPath(digest).exists())
            Files.write(found.setPath(digest).resolveSibling("$digest.part"), data)
            Files.write(found.setPath("e".repeat(64)), data)
            found.keepSets(listOf(digest))
            assertEquals(listOf("$digest.part"), place.resolve("sets").listDirectoryEntries().map { it.name })
        }
    }
}
