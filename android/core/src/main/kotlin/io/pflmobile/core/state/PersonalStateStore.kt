package io.pflmobile.core.state

import io.pflmobile.core.errors.StateException
import io.pflmobile.core.files.AtomicFiles
import io.pflmobile.core.files.Disk
import io.pflmobile.core.files.FolderLock
import io.pflmobile.core.files.RealDisk
import io.pflmobile.core.files.diskErrors
import io.pflmobile.core.files.privateFolder
import io.pflmobile.core.files.readBytes
import io.pflmobile.core.text.BlockList
import java.io.IOException
import java.nio.file.Files
import java.nio.file.NoSuchFileException
import java.nio.file.Path
import kotlin.io.path.exists
import kotlin.io.path.isRegularFile
import kotlin.io.path.name

/**
 * One saved version.
 *
 * @property version its number
 * @property parent the version that was current when it was saved
 * @property created seconds since 1970
 * @property metrics measured at its adoption
 * @property current whether it serves now
 * @property problem why it cannot be used; null when it is good
 */
public data class VersionInfo(
    val version: Int,
    val parent: Int,
    val created: Double,
    val metrics: Map<String, Double>,
    val current: Boolean,
    val problem: String? = null,
)

/**
 * The personal state on disk: numbered versions, one of them current, each swap atomic. Python and Kotlin open each other's folders.
 *
 *     FOLDER/CURRENT              the number of the adopted version; 0 or no file: the shipped values
 *     FOLDER/000007.safetensors   a version
 *     FOLDER/checkpoint           training under way
 *     FOLDER/FORGOTTEN            words that must not be learned again
 *
 * A version is written and flushed before CURRENT names it, so a process killed at any moment leaves the last good state. Every version
 * carries a digest of all it holds. A damaged current version is never used: [load] falls back to the version before it and says so.
 *
 * One thread at a time; other processes are kept out by [hold].
 *
 * @param folder made when missing, for its owner alone
 * @param model what the states must belong to
 * @param keep how many versions stay; the current one and its parent always do
 * @param clock seconds since 1970
 * @throws io.pflmobile.core.errors.UnwritableException the folder cannot be made
 */
public class PersonalStateStore internal constructor(
    folder: Path,
    private val model: ModelId,
    keep: Int,
    private val clock: () -> Double,
    disk: Disk,
    private val waitMs: Long,
) : StateStore {
    public constructor(
        folder: Path,
        model: ModelId,
        keep: Int = 5,
        clock: () -> Double = { System.currentTimeMillis() / 1000.0 },
    ) : this(folder, model, keep, clock, RealDisk, WAIT_MS)

    /** Where the state lies. */
    public val folder: Path = folder.toAbsolutePath()

    private val keep = maxOf(keep, 1)
    private val files = AtomicFiles(disk)
    private var lock: FolderLock? = null
    private var holding = 0

    init {
        privateFolder(this.folder) { it in NAMES || VERSION.matches(it) }
    }

    override fun hold(): AutoCloseable {
        if (holding == 0) {
            lock = diskErrors(folder) { FolderLock.take(folder, waitMs) } ?: throw StateException(
                "the personal state in $folder is in use by another process",
                "wait until that has ended, or give another folder",
            )
        }
        holding++
        var open = true
        return AutoCloseable {
            if (open) {
                open = false
                if (--holding == 0) lock?.close()
            }
        }
    }

    /**
     * Number of the adopted version; 0 = the shipped values.
     *
     * @throws StateException the file that says so is damaged
     */
    public val current: Int
        get() {
            val text =
                try {
                    String(readBytes(folder.resolve(CURRENT), 100), Charsets.ISO_8859_1).trim()
                } catch (_: NoSuchFileException) {
                    return 0
                } catch (error: IOException) {
                    throw damagedPointer(error.message)
                }
            if (!POINTER.matches(text)) throw damagedPointer("'${text.take(20)}'")
            return text.toInt()
        }

    override fun save(state: PersonalState): Int =
        hold().use {
            prune(current) // a process killed before it could prune leaves versions behind
            val version = write(state)
            pointTo(version)
            prune(version)
            version
        }

    override fun write(state: PersonalState): Int =
        hold().use {
            val blocked = blocked()
            if (state.words.any(blocked::hides)) {
                throw StateException("a word of this state was forgotten while it was trained; it is not saved", "train again")
            }
            val now = current
            val version = maxOf(numbers().maxOrNull() ?: 0, now) + 1
            files.write(path(version), StateFile(model, state, now, clock()).encode())
            version
        }

    /**
     * Makes a version current that [write] made.
     *
     * @throws StateException there is no such version; nothing changes
     */
    public fun adopt(version: Int) {
        hold().use {
            if (version !in numbers()) throw StateException("there is no version $version to adopt", "write it first")
            pointTo(version)
            prune(version)
        }
    }

    /**
     * A saved version, current or not.
     *
     * @throws StateException there is no such version, or it is damaged or of another model
     */
    public fun read(version: Int): PersonalState = file(version).state

    override fun load(): Loaded {
        val first = current
        var version = first
        val problems = ArrayList<Pair<Int, String>>()
        while (version != 0) {
            try {
                val state = file(version).state
                return Loaded(state, version, problems.map { (number, message) -> StateWarning(number, message, version) })
            } catch (error: DamagedStateException) {
                problems += version to error.message
                version = before(version)
            }
        }
        if (problems.isEmpty()) return Loaded(null, 0)
        throw StateException(
            "no usable personal state in $folder: version $first: ${problems.first().second}",
            "call reset() to go back to the shipped values, or restore the folder from a backup",
        )
    }

    /** All saved versions, oldest first, damaged ones with their problem. Another thread may save one meanwhile. */
    public fun versions(): List<VersionInfo> {
        val serves =
            try {
                current
            } catch (_: StateException) {
                -1 // load() reports it; the versions can still be listed
            }
        return numbers().mapNotNull { number ->
            try {
                val found = file(number)
                VersionInfo(number, found.parent, found.created, found.state.metrics, number == serves)
            } catch (error: StateException) {
                if (path(number).exists()) VersionInfo(number, 0, 0.0, emptyMap(), number == serves, error.message) else null
            }
        }
    }

    /**
     * Makes an earlier version current; returns its number.
     *
     * @param version which; 0 for the shipped values; null for the one before the current
     * @throws StateException there is no such version, or it is damaged; nothing changes
     */
    public fun revert(version: Int? = null): Int =
        hold().use {
            val wanted =
                version ?: run {
                    if (current == 0) throw StateException("the shipped values serve; nothing is before them", "give a version")
                    before(current)
                }
            if (wanted != 0) {
                if (wanted !in numbers()) {
                    val known = numbers().joinToString().ifEmpty { "none" }
                    throw StateException("there is no version $wanted", "saved versions: $known; 0 = shipped")
                }
                file(wanted)
            }
            pointTo(wanted)
            wanted
        }

    /** Goes back to the shipped values; the versions stay and can be reverted to. */
    public fun reset() {
        hold().use { pointTo(0) }
    }

    override fun blocked(): BlockList {
        val path = folder.resolve(FORGOTTEN)
        val data =
            try {
                readBytes(path)
            } catch (_: NoSuchFileException) {
                return BlockList.empty()
            } catch (error: IOException) {
                throw StateException("cannot read $path: ${error.message}", "check that the file may be read", error)
            }
        return BlockList.fromJson(data, path.toString())
    }

    /** Never learn these words (pieces of the tokenizer) again; what was learned is taken out by [rewrite]. */
    public fun block(words: Iterable<String>) {
        hold().use { files.write(folder.resolve(FORGOTTEN), blocked().plus(words).toJson()) }
    }

    /**
     * Puts `change(state)` in the place of every version, under the same number, parent and time.
     *
     * Nothing of what was there before stays: a checkpoint, versions that are damaged and leftovers of killed processes are removed.
     * (The system may keep the bytes of removed files until it needs their place.)
     *
     * @return numbers of the versions
     * @throws StateException a version is of another model or newer, or none that should serve can be used; nothing changes
     * @throws io.pflmobile.core.errors.StorageFullException the disk is full; some versions may be as before. Call again once there is
     *   space
     */
    public fun rewrite(change: (PersonalState) -> PersonalState): List<Int> =
        hold().use {
            val serves = load().version
            val found = LinkedHashMap<Int, StateFile>()
            for (number in numbers()) {
                try {
                    found[number] = file(number)
                } catch (_: DamagedStateException) {
                    continue
                }
            }
            files.delete(checkpoint)
            if (serves != current) pointTo(serves)
            for ((number, old) in found) {
                files.write(path(number), StateFile(model, change(old.state), old.parent, old.created).encode())
            }
            numbers().filterNot { it in found }.forEach { files.delete(path(it)) }
            diskErrors(folder) { files.removeStale(path(0), ofAll = true) }
            files.syncFolder(folder)
            found.keys.toList()
        }

    /** Deletes every version, checkpoint and forgotten word: nothing personal is left. */
    public fun erase() {
        hold().use {
            // The pointer first, as nothing serves without it; no file is written, as the disk may be full.
            files.delete(folder.resolve(CURRENT))
            list().filter { it.isRegularFile() && it.name != FolderLock.NAME }.forEach(files::delete)
            files.syncFolder(folder)
        }
    }

    /**
     * Takes over what an earlier version of the same bundle learned. Versions with the same fingerprint are rewritten under this model's
     * id, each in one step, so that a process killed on the way goes on with the rest.
     *
     * @param sameWeights whether an equal fingerprint says that the frozen weights are equal; else the tensors may be the same by chance
     * @param discard removes versions that do not fit, rather than leaving them to be refused; forgotten words stay
     * @return whether any was removed
     * @throws io.pflmobile.core.errors.StorageFullException the disk is full; call again once there is space
     */
    internal fun carryOver(
        sameWeights: Boolean,
        discard: Boolean,
    ): Boolean =
        hold().use {
            val gone = ArrayList<Int>()
            for (number in numbers()) {
                val found =
                    try {
                        StateFile.read(path(number))
                    } catch (_: StateException) {
                        continue // load() reports it
                    }
                if (found.model == model) continue
                if (sameWeights && found.model == model.copy(version = found.model.version)) {
                    files.write(path(number), StateFile(model, found.state, found.parent, found.created).encode())
                } else if (discard) {
                    gone += number
                }
            }
            if (gone.isEmpty()) return@use false
            if (current in gone) pointTo(0)
            files.delete(checkpoint)
            gone.forEach { files.delete(path(it)) }
            true
        }

    /** Where training under way is kept. */
    internal val checkpoint: Path get() = folder.resolve("checkpoint")

    private fun file(version: Int): StateFile {
        val path = path(version)
        val found = StateFile.read(path)
        if (found.model != model) {
            val of = "model ${found.model.name} ${found.model.version}, not to ${model.name} ${model.version}"
            val other = if (found.model.name == model.name && found.model.version == model.version) " (its tensors differ)" else ""
            throw StateException("$path belongs to $of$other", "use the bundle it was trained with, or another folder for this one")
        }
        return found
    }

    /** The version to go back to: the parent, else the newest older one, else 0. */
    private fun before(version: Int): Int {
        val older = numbers().filter { it < version }
        val newest = older.maxOrNull() ?: 0
        val parent =
            try {
                file(version).parent
            } catch (_: StateException) {
                return newest
            }
        return if (parent == 0 || parent in older) parent else newest
    }

    private fun list(): List<Path> = diskErrors(folder) { Files.newDirectoryStream(folder).use { it.toList() } }

    /** Numbers of the saved versions, damaged ones too. */
    internal fun numbers(): List<Int> =
        list()
            .mapNotNull {
                VERSION
                    .matchEntire(it.name)
                    ?.groupValues
                    ?.get(1)
                    ?.toInt()
            }.sorted()

    private fun path(version: Int): Path = folder.resolve(version.toString().padStart(6, '0') + ".safetensors")

    private fun pointTo(version: Int) = files.write(folder.resolve(CURRENT), "$version\n".encodeToByteArray())

    private fun prune(current: Int) {
        val numbers = numbers()
        val safe = setOf(current, if (current == 0) 0 else before(current)) + numbers.takeLast(keep)
        numbers.filterNot { it in safe }.forEach { files.delete(path(it)) }
    }

    private fun damagedPointer(why: String?) =
        StateException("${folder.resolve(CURRENT)} is damaged: $why", "call revert(VERSION) with one of versions(), or reset()")

    private companion object {
        const val CURRENT = "CURRENT"
        const val FORGOTTEN = "FORGOTTEN"
        const val WAIT_MS = 2000L
        val NAMES = setOf(CURRENT, "checkpoint", "user.json", FolderLock.NAME)
        val POINTER = Regex("[0-9]{1,9}")
        val VERSION = Regex("([0-9]{1,9})\\.safetensors")
    }
}
