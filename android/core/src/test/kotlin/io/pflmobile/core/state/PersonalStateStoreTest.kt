package io.pflmobile.core.state

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.Damage
import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.files.Disk
import io.pflmobile.core.files.DyingDisk
import io.pflmobile.core.files.FolderLock
import io.pflmobile.core.files.FullDisk
import io.pflmobile.core.files.RealDisk
import io.pflmobile.core.files.fromHex
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.sameBits
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.double
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.attribute.PosixFilePermissions
import kotlin.io.path.createDirectory
import kotlin.io.path.listDirectoryEntries
import kotlin.io.path.name
import kotlin.io.path.readBytes
import kotlin.io.path.writeBytes
import kotlin.io.path.writeText
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNull
import kotlin.test.assertTrue

class PersonalStateStoreTest {
    @TempDir
    lateinit var folder: Path

    private val model = ModelId("toy", "1", "ab".repeat(32))

    private fun store(
        disk: Disk = RealDisk,
        keep: Int = 5,
        at: Path = folder.resolve("state"),
    ) = PersonalStateStore(at, model, keep, { 1.7e9 }, disk, 0)

    private fun state(value: Float) =
        PersonalState(
            mapOf("a" to FloatTensor(floatArrayOf(value), listOf(1)), "n" to LongTensor(longArrayOf(7), listOf())),
            mapOf("mine" to mapOf("a:b" to FloatTensor(floatArrayOf(-value), listOf(1)))),
            listOf("zoë"),
            mapOf("loss" to value.toDouble(), "none" to Double.NaN),
        )

    private fun value(loaded: Loaded) = (loaded.state?.tensors?.get("a") as FloatTensor?)?.values?.single()

    private fun names() =
        folder
            .resolve("state")
            .listDirectoryEntries()
            .map { it.name }
            .toSet()

    @Test
    fun `Python's file is read, and written byte for byte`() {
        val want = Vectors.read("state.json")
        val file = Vectors.folder.resolve("state.safetensors")
        val found = StateFile.read(file)
        assertEquals(want.texts("model"), listOf(found.model.name, found.model.version, found.model.fingerprint))
        assertEquals(want.texts("words"), found.state.words)
        assertEquals(want.getValue("parent").jsonPrimitive.int, found.parent)
        assertEquals(want.getValue("metrics").jsonObject.mapValues { it.value.jsonPrimitive.double }, found.state.metrics)
        for ((name, tensor) in want.getValue("tensors").jsonObject) {
            assertTrue(Vectors.tensor(tensor).sameBits(found.state.tensors.getValue(name)), name)
        }
        val copy =
            want
                .getValue("copies")
                .jsonObject
                .getValue("mine")
                .jsonObject
                .getValue("a")
        assertTrue(
            Vectors.tensor(copy).sameBits(
                found.state.copies
                    .getValue("mine")
                    .getValue("a"),
            ),
        )
        assertContentEquals(file.readBytes(), found.encode())
    }

    private fun JsonObject.texts(name: String) = getValue(name).jsonArray.map { it.jsonPrimitive.content }

    @Test
    fun `folders of Python, damaged in every way, give what they give there`() {
        val vectors = Vectors.read("states.json")
        val about = vectors.getValue("about").jsonObject
        val (name, version, fingerprint) = about.texts("model")
        val cases = vectors.getValue("cases").jsonArray.map { it.jsonObject }
        val others =
            cases.mapIndexedNotNull { index, case ->
                val where = folder.resolve("$index").createDirectory()
                for ((file, data) in about.getValue("folder").jsonObject) {
                    where.resolve(file).writeBytes(checkNotNull(fromHex(data.jsonPrimitive.content)))
                }
                case.getValue("steps").jsonArray.forEach { Damage.apply(it.jsonObject, where) }
                val store = PersonalStateStore(where, ModelId(name, version, fingerprint))
                case["carry_over"]?.jsonObject?.let { carry ->
                    fun said(name: String) = carry[name]?.jsonPrimitive?.boolean == true
                    store.carryOver(said("same_weights"), said("discard"))
                }
                val want = case.getValue("outcome").jsonObject
                val found = outcome(store, case.getValue("outcome").jsonObject, "ask" in case)
                if (found == null) null else "${case["name"]}: $found, not $want"
            }
        assertEquals(emptyList(), others)
        assertTrue(cases.size > 70)
    }

    /** What differs from what is wanted; null for nothing. */
    private fun outcome(
        store: PersonalStateStore,
        want: JsonObject,
        blocked: Boolean,
    ): String? =
        try {
            if (blocked) {
                val words = store.blocked()
                want["hides"]
                    ?.jsonObject
                    .orEmpty()
                    .entries
                    .find { words.hides(it.key) != it.value.jsonPrimitive.boolean }
                    ?.toString()
                    ?: if ("hides" in want) null else "no error"
            } else {
                val found = store.load()
                val state = found.state ?: PersonalState(emptyMap())
                val tensors = state.tensors.keys + state.copies.flatMap { (copy, values) -> values.keys.map { "$copy:$it" } }
                val all =
                    mapOf<String, Any>(
                        "version" to found.version,
                        "warned" to found.warnings.map { listOf(it.version, it.used) },
                        "words" to state.words,
                        "metrics" to state.metrics.keys.sorted(),
                        "tensors" to tensors.sorted(),
                    )
                if (all == want.mapValues { plain(it.value) }) null else all.toString()
            }
        } catch (error: PflException) {
            if (want["code"]?.jsonPrimitive?.content == error.code) null else error.toString()
        }

    private fun plain(value: JsonElement): Any =
        when (value) {
            is JsonPrimitive -> if (value.isString) value.content else value.int
            else -> value.jsonArray.map(::plain)
        }

    @Test
    fun `the fingerprint is Python's`() {
        Bundle.open(Vectors.folder.resolve("bundles/small.pflb")).use {
            val id = ModelId.of(it.manifest)
            assertEquals(
                Vectors
                    .read("states.json")
                    .getValue("about")
                    .jsonObject
                    .texts("small"),
                listOf(id.name, id.version, id.fingerprint),
            )
        }
    }

    @Test
    fun `versions are saved, listed, reverted to and pruned`() {
        val store = store(keep = 2)
        assertNull(store.load().state)
        for (n in 1..4) assertEquals(n, store.save(state(n.toFloat())))
        assertEquals(listOf(3, 4), store.versions().map { it.version })
        assertEquals(VersionInfo(4, 3, 1.7e9, mapOf("loss" to 4.0), true), store.versions().last())
        val loaded = store.load()
        assertEquals(4f, value(loaded))
        assertEquals(
            -4f,
            (
                loaded.state!!
                    .copies
                    .getValue("mine")
                    .getValue("a:b") as FloatTensor
            ).values.single(),
        )
        assertEquals(3, store.revert())
        assertEquals(3f, value(store.load()))
        assertEquals(5, store.save(state(5f)))
        assertEquals(listOf(3, 4, 5), store.versions().map { it.version })
        assertEquals(3, store.revert())
        store.reset()
        assertNull(store.load().state)
        assertFailsWith<StateException> { store.revert() }
        assertFailsWith<StateException> { store.revert(99) }
        assertEquals(5, store.revert(5))
        assertEquals(5f, value(store.load()))
        val written = store.write(state(6f))
        assertEquals(5f, value(store.load()))
        store.adopt(written)
        assertEquals(6f, value(store.load()))
        assertFailsWith<StateException> { store.adopt(7) }
        for (file in folder.resolve("state").listDirectoryEntries()) {
            assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(file)), file.name)
        }
    }

    @Test
    fun `a process killed at any step keeps a whole state, old or new`() {
        var step = 1
        while (true) {
            val at = folder.resolve("$step")
            store(keep = 1, at = at).run { repeat(3) { save(state(it + 1f)) } }
            val disk = DyingDisk(step)
            val done =
                try {
                    store(disk, keep = 1, at = at).save(state(4f))
                    true
                } catch (_: DyingDisk.Killed) {
                    false
                }
            val after = store(keep = 1, at = at)
            val loaded = after.load()
            assertEquals(emptyList(), loaded.warnings, "step $step")
            assertTrue(value(loaded) in if (done) setOf(4f) else setOf(3f, 4f), "step $step")
            // Another training goes on from there, and nothing is left of the one before.
            val number = after.save(state(9f))
            assertEquals(9f, value(after.load()), "step $step")
            assertTrue(after.versions().all { it.problem == null })
            assertTrue(after.versions().size <= 2, "step $step: ${after.versions()}")
            assertTrue(number >= 4)
            val left = at.listDirectoryEntries().map { it.name }.filter { it.endsWith(".tmp") }
            assertEquals(emptyList(), left, "step $step")
            if (done) break
            step++
        }
        // Two files of six steps each, and what is pruned.
        assertTrue(step >= 13, "$step steps")
    }

    @Test
    fun `a process killed while it rewrites or erases can do so again`() {
        val changes = listOf<(PersonalStateStore) -> Unit>({ it.rewrite { _ -> state(0f) } }, { it.erase() })
        changes.forEachIndexed { index, change ->
            var step = 1
            do {
                val at = folder.resolve("$index-$step")
                store(at = at).run { repeat(3) { save(state(it + 1f)) } }
                at.resolve("000009.safetensors").writeText("damaged")
                at.resolve("checkpoint").writeText("")
                val done =
                    try {
                        change(store(DyingDisk(step), at = at))
                        true
                    } catch (_: DyingDisk.Killed) {
                        false
                    }
                assertTrue(value(store(at = at).load()) in setOf(null, 0f, 1f, 3f), "step $step")
                change(store(at = at))
                step++
            } while (!done)
        }
    }

    @Test
    fun `a full disk keeps the last good state`() {
        store().save(state(1f))
        val size = folder.resolve("state/000001.safetensors").readBytes().size
        for (room in listOf(0, 1, size - 1, size, size + 1)) {
            assertFailsWith<StorageFullException> { store(FullDisk(room)).save(state(2f)) }
            assertEquals(1f, value(store().load()), "room for $room")
        }
        store(FullDisk(size + 2)).save(state(2f))
        assertEquals(2f, value(store().load()))
    }

    @Test
    fun `NaN is not written`() {
        val store = store()
        store.save(state(1f))
        assertFailsWith<NonFiniteException> { store.save(state(Float.NaN)) }
        assertEquals(1f, value(store.load()))
        assertEquals(setOf("CURRENT", "000001.safetensors", FolderLock.NAME), names())
    }

    @Test
    fun `another who changes the state is waited for, then named`() {
        val one = store()
        val held = one.hold()
        assertFailsWith<StateException> { store().save(state(1f)) }
        one.save(state(1f))
        assertFailsWith<StateException> { store().reset() }
        held.close()
        held.close()
        assertEquals(2, store().save(state(2f)))
    }

    @Test
    fun `forgotten words are not saved again, and rewriting leaves nothing of them`() {
        val store = store()
        repeat(2) { store.save(state(it + 1f)) }
        store.block(listOf("zoë"))
        assertTrue(store().blocked().hides("zoë's"))
        assertFailsWith<StateException> { store.save(state(3f)) }
        folder.resolve("state/000009.safetensors").writeText("damaged")
        folder.resolve("state/checkpoint").writeText("work")
        folder.resolve("state/.000001.safetensors.0123456789ab.tmp").writeText("zoë")
        val before = store.versions().filter { it.problem == null }
        assertEquals(listOf(1, 2), store.rewrite { PersonalState(it.tensors, it.copies, emptyList(), it.metrics) })
        assertEquals(before, store.versions())
        assertEquals(emptyList(), store.load().state!!.words)
        assertEquals(setOf("CURRENT", "000001.safetensors", "000002.safetensors", "FORGOTTEN", FolderLock.NAME), names())
        store.erase()
        assertEquals(setOf(FolderLock.NAME), names())
        assertNull(store.load().state)
    }
}
