package io.pflmobile.core.device

import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.files.AtomicFiles
import io.pflmobile.core.files.FolderLock
import io.pflmobile.core.files.Safetensors
import io.pflmobile.core.files.StrictBoolean
import io.pflmobile.core.files.StrictDouble
import io.pflmobile.core.files.StrictLong
import io.pflmobile.core.files.diskErrors
import io.pflmobile.core.files.hex
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.files.privateFolder
import io.pflmobile.core.files.readBytes
import io.pflmobile.core.files.strictJson
import io.pflmobile.core.protocol.Enrolled
import io.pflmobile.core.protocol.EvaluationReport
import io.pflmobile.core.protocol.TaskPrivacy
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.state.PersonalStateStore
import io.pflmobile.core.tensors.Tensor
import kotlinx.coroutines.sync.Mutex
import kotlinx.serialization.KSerializer
import kotlinx.serialization.Serializable
import java.io.IOException
import java.nio.file.Files
import java.nio.file.LinkOption
import java.nio.file.NoSuchFileException
import java.nio.file.Path
import java.security.MessageDigest
import kotlin.io.path.exists
import kotlin.io.path.name
import kotlin.io.path.nameWithoutExtension

/** Of the files in a device's folder. */
internal const val SCHEMA_VERSION = 1L

/**
 * A finished task in the queue.
 *
 * @property url where the update goes
 * @property key idempotency key of the upload
 * @property deadline when it is of no use any more, by this device's clock
 * @property sha256 of the update
 * @property bytes of the update
 * @property privacy of the task: what protects the update; for the policy of a later start
 * @property reports names of the numbers that go along
 * @property evaluation the report that goes after it; null for none
 * @property adopts version of the personal state that this task wrote and that is to serve; null for none
 * @property insteadOf the version that served before
 * @property copies names of the copies whose change is sent; taken back where the update is not accepted
 * @property uploaded whether the update is accepted, so that only the evaluation is left
 * @property server of the membership that it was made for; it goes to no other. Null in files of an earlier version
 * @property device likewise
 */
@Serializable
internal data class Pending(
    @Serializable(StrictLong::class) val schemaVersion: Long,
    val task: String,
    @Serializable(StrictLong::class) val round: Long,
    val url: String,
    val key: String,
    @Serializable(StrictDouble::class) val deadline: Double,
    val sha256: String,
    @Serializable(StrictLong::class) val bytes: Long,
    val privacy: TaskPrivacy,
    val reports: List<String>,
    val evaluation: EvaluationReport? = null,
    @Serializable(StrictLong::class) val adopts: Long? = null,
    @Serializable(StrictLong::class) val insteadOf: Long = 0,
    val copies: List<String>,
    @Serializable(StrictBoolean::class) val uploaded: Boolean = false,
    val server: String? = null,
    val device: String? = null,
) {
    init {
        require(schemaVersion == SCHEMA_VERSION) { "schema_version: $schemaVersion is not $SCHEMA_VERSION" }
        require((adopts ?: 0) in 0..Int.MAX_VALUE && insteadOf in 0..Int.MAX_VALUE) { "no number of a version" }
    }
}

/**
 * A device's place in a federation.
 *
 * @property server address of the aggregator
 * @property device its id there
 * @property credential what it proves itself with
 */
internal data class Membership(
    val server: String,
    val device: String,
    val credential: String,
)

@Serializable
private class MembershipFile(
    @Serializable(StrictLong::class) val schemaVersion: Long,
    val model: List<String>,
    val server: String,
    val device: String,
    val credential: String,
) {
    init {
        require(model.size == 3) { "model is not name, version and fingerprint" }
    }
}

@Serializable
private class LeavingFile(
    @Serializable(StrictLong::class) val schemaVersion: Long,
    val memberships: List<Leaving>,
)

@Serializable
private class Leaving(
    val server: String,
    val device: String,
    val credential: String,
)

@Serializable
private class UserFile(
    val user: String,
)

/**
 * What a device keeps: credential, personal state, downloaded values, finished updates that wait to be sent. Python and Kotlin open each
 * other's folders, one after the other.
 *
 *     FOLDER/lock              held while a process uses the folder, of Kotlin or of Python
 *     FOLDER/device.json       server, model, device id and credential; readable by the owner alone
 *     FOLDER/leaving.json      memberships that ended here and that the aggregator was not told of yet
 *     FOLDER/user.json         whose device it is, where one program serves several users
 *     FOLDER/personal/         the personal state, see [PersonalStateStore]
 *     FOLDER/sets/<sha256>     values as downloaded; `.part` while they arrive
 *     FOLDER/sent.json         what was sent under the device's own noise
 *     FOLDER/spent.json        what was sent in all, for a status screen
 *     FOLDER/serves.json       what predictions use of the versions of the personal state that tasks made; of Kotlin and Swift
 *     FOLDER/checkpoint        training under way, where the personal state lies elsewhere
 *     FOLDER/queue/<task>.update, <task>.json     a finished update and what is to be done with it
 *
 * Every file is replaced in one step, and an update is on the disk before its `.json` names it, so a process that is killed at any
 * moment leaves a folder to go on from.
 *
 * It must not be in a backup: what is restored would count less than was sent, and two phones would have one credential. On Android it lies
 * in `noBackupFilesDir`.
 *
 * @param directory made when missing, for its owner alone
 * @param model what the device trains; a folder of another model is refused
 * @param user whose device it is; a folder of another user is refused. Null where every folder has the same user, as on a phone
 * @throws DeviceFolderException in use by another process, damaged, or of another model or user
 * @throws io.pflmobile.core.errors.UnwritableException it cannot be written
 */
public class DeviceFolder internal constructor(
    directory: Path,
    private val model: ModelId,
    user: String?,
    shared: PersonalStateStore?,
) : AutoCloseable {
    public constructor(directory: Path, model: ModelId, user: String? = null) : this(directory, model, user, null)

    /** Where it lies. */
    public val directory: Path = directory.toAbsolutePath()

    /** The personal state. */
    public val personal: PersonalStateStore

    /** Where training of a task is kept. */
    internal val checkpoint: Path

    /** What was sent, for a status screen. */
    internal val spent: Spent

    /** What is served of the versions of the personal state that tasks made. */
    internal val serves = ServeNotes(this.directory.resolve(SERVES))

    internal var membership: Membership? = null
        private set

    /** Memberships that ended here and that their aggregators were not told of yet. */
    @Volatile
    internal var toLeave: List<Membership> = emptyList()
        private set

    internal val sent: SentNoise

    /** Held while a device runs in it. */
    internal val running = Mutex()

    private val files = AtomicFiles()
    private val sets = this.directory.resolve("sets")
    private val queue = this.directory.resolve("queue")
    private val lock: FolderLock

    // Only a personal model, whose folder Python does not open, tells a count that was lost from one that never began.
    private val counted = shared != null

    init {
        privateFolder(this.directory) { it in NAMES }
        for (folder in listOf(sets, queue)) privateFolder(folder) { true }
        lock = diskErrors(this.directory) { FolderLock.take(this.directory, 0, "lock") } ?: throw DeviceFolderException(
            "${this.directory} is in use by another process",
            mend = "one process for each device: wait for the other, or give another folder",
        )
        var whole = false
        try {
            val begun = counted && listOf(DEVICE, LEAVING).any { this.directory.resolve(it).exists() }
            sent = SentNoise(this.directory.resolve(SENT), begun || (counted && this.directory.resolve(SPENT).exists()))
            spent = Spent(this.directory.resolve(SPENT), begun || (counted && sent.updates > 0))
            toLeave = readToLeave()
            // with a state of its own, a new version of the bundle has taken that over, and the federation knows the old one only
            membership = readMembership(renew = shared != null)
            // killed between the two files
            if (membership in toLeave) forget()
            if (user != null) noteUser(user)
            personal = shared ?: PersonalStateStore(this.directory.resolve("personal"), model)
            checkpoint = if (shared == null) personal.checkpoint else this.directory.resolve("checkpoint")
            whole = true
        } finally {
            if (!whole) lock.close()
        }
    }

    /** Whether the device is enrolled in a federation. */
    public val enrolled: Boolean get() = membership != null

    /**
     * How many updates were sent under this device's own noise.
     */
    public val sentUnderOwnNoise: Long get() = sent.updates

    /** Epsilon at [delta] of all that was sent under this device's own noise, by its own count. */
    public fun ownEpsilon(delta: Double): Double = sent.epsilon(delta)

    /** How many finished updates or reports wait to be sent. */
    public val waiting: Int get() = list(queue).count(::isEntry)

    /** Unlocks it. */
    override fun close(): Unit = lock.close()

    // -- the credential

    /** Keep the credential; returns it. A count that is missing beside it was lost. */
    internal fun join(
        server: String,
        enrolled: Enrolled,
    ): Membership {
        val found = Membership(server, enrolled.device, enrolled.credential)
        val model = listOf(model.name, model.version, model.fingerprint)
        val content = MembershipFile(SCHEMA_VERSION, model, found.server, found.device, found.credential)
        if (counted) {
            sent.begin()
            spent.begin()
        }
        write(DEVICE, MembershipFile.serializer(), content)
        membership = found
        return found
    }

    /** Remove the credential. */
    internal fun forget() {
        files.delete(directory.resolve(DEVICE))
        membership = null
    }

    /** End the membership here, with what waits for it; its credential is kept to tell the aggregator, see [left]. */
    internal fun leaveLater() {
        discardWaiting()
        val ended = membership ?: return
        keepToLeave { it + ended }
        forget()
    }

    /** The aggregator of a membership in [toLeave] knows that it ended. */
    internal fun left(ended: Membership): Unit = keepToLeave { it - ended }

    @Synchronized
    private fun keepToLeave(change: (List<Membership>) -> List<Membership>) {
        val now = change(toLeave)
        if (now.isEmpty()) {
            files.delete(directory.resolve(LEAVING))
        } else {
            write(LEAVING, LeavingFile.serializer(), LeavingFile(SCHEMA_VERSION, now.map { Leaving(it.server, it.device, it.credential) }))
        }
        toLeave = now
    }

    private fun readToLeave(): List<Membership> {
        val path = directory.resolve(LEAVING)
        return try {
            read(path, LeavingFile.serializer())?.memberships.orEmpty().map { Membership(it.server, it.device, it.credential) }
        } catch (error: IOException) {
            throw unreadable(path, error)
        } catch (_: IllegalArgumentException) {
            emptyList() // nobody can leave with it
        }
    }

    /** @param renew a membership with another version of the bundle ends here, with what waited for its rounds */
    private fun readMembership(renew: Boolean): Membership? {
        val path = directory.resolve(DEVICE)
        val found =
            damaged(path, { "remove the file to enrol as a new device" }) { read(path, MembershipFile.serializer()) } ?: return null
        if (found.schemaVersion != SCHEMA_VERSION) {
            throw DeviceFolderException(
                "$path has schema ${found.schemaVersion}, this version reads $SCHEMA_VERSION",
                mend = "update the app",
            )
        }
        val (name, version, fingerprint) = found.model
        if (ModelId(name, version, fingerprint) != model) {
            if (renew) {
                val ended = Membership(found.server, found.device, found.credential)
                keepToLeave { it - ended + ended }
                clear(directory, LEAVING)
                return null
            }
            val differ = if (name == model.name) " (its tensors differ)" else ""
            throw DeviceFolderException(
                "$directory belongs to a device with model $name $version$differ",
                mend = "use its bundle, or another folder for this one",
            )
        }
        return Membership(found.server, found.device, found.credential)
    }

    private fun noteUser(user: String) {
        val path = directory.resolve("user.json")
        val found =
            damaged(path, { "remove it if the folder is '$user''s, else give another folder" }) { read(path, UserFile.serializer()) }
        if (found == null) {
            write("user.json", UserFile.serializer(), UserFile(user))
        } else if (found.user != user) {
            throw DeviceFolderException(
                "$directory holds the personal state of user '${found.user}', not of '$user'",
                mend = "give another folder for each user",
            )
        }
    }

    // -- downloaded values

    /** Where the values with this digest lie, or will. */
    internal fun setPath(sha256: String): Path = sets.resolve(sha256)

    /**
     * Downloaded values; null when they are not there. A damaged file is removed and counts as not there.
     *
     * @throws io.pflmobile.core.errors.NonFiniteException a value is NaN or infinite
     * @throws io.pflmobile.core.errors.TensorFileException what was sent is no safetensors file
     */
    internal fun loadSet(sha256: String): Map<String, Tensor>? {
        val path = setPath(sha256)
        val data =
            try {
                readBytes(path, Int.MAX_VALUE)
            } catch (_: NoSuchFileException) {
                return null
            } catch (error: IOException) {
                throw unreadable(path, error)
            }
        if (digest(data) != sha256) {
            files.delete(path)
            return null
        }
        return Safetensors.read(data, "set ${sha256.take(12)}...").tensors.also(Safetensors::checkFinite)
    }

    /** Remove all downloaded values but these. */
    internal fun keepSets(digests: Collection<String>) {
        for (path in list(sets)) {
            if (path.name.removeSuffix(".part") !in digests) files.delete(path)
        }
    }

    // -- the queue

    /**
     * Keep a finished update until it is sent; after this a crash does not lose it.
     *
     * @throws io.pflmobile.core.errors.StorageFullException the disk is full; the queue is as it was
     */
    internal fun put(
        pending: Pending,
        update: ByteArray,
    ) {
        files.write(updatePath(pending.task), update)
        change(pending)
    }

    /** Put [pending] in the place of what the queue has of its task. */
    internal fun change(pending: Pending) = write("queue/${pending.task}.json", Pending.serializer(), pending)

    /** Forget a task; no error when it is not there. */
    internal fun remove(task: String) {
        files.delete(queue.resolve("$task.json"))
        files.delete(updatePath(task))
    }

    /** Where the update of a task lies. */
    internal fun updatePath(task: String): Path = queue.resolve("$task.update")

    /** What waits to be sent, the oldest round first, and the tasks whose entries are damaged. */
    internal fun pending(): Pair<List<Pending>, List<String>> {
        val found = ArrayList<Pending>()
        val damaged = ArrayList<String>()
        val all = list(queue)
        for (path in all.filter(::isEntry)) {
            val entry =
                try {
                    read(path, Pending.serializer()) ?: continue
                } catch (error: IOException) {
                    // it may be there another time, so nothing is thrown away
                    throw unreadable(path, error)
                } catch (_: IllegalArgumentException) {
                    null
                }
            if (entry == null || entry.task != path.nameWithoutExtension || !(entry.uploaded || intact(entry))) {
                damaged += path.nameWithoutExtension
            } else {
                found += entry
            }
        }
        return found.sortedWith(compareBy({ it.round }, { it.task })) to damaged.sorted()
    }

    /**
     * Throw away what waits to be sent, and training of a task that is under way. Nothing of it leaves the device any more; copies that the
     * aggregator counts on get the values that it knows.
     */
    internal fun discardWaiting() {
        for (entry in pending().first.asReversed()) {
            if (!entry.uploaded) takeBack(personal, entry.copies, entry.insteadOf.toInt(), serves)
            remove(entry.task)
        }
        list(queue).forEach(files::delete)
        files.delete(checkpoint)
    }

    /**
     * Makes an earlier version of the personal state serve; returns its number. What a killed process was about to let serve no longer
     * will.
     *
     * @param version which; 0 for the shipped values; null for the one before the current
     * @throws io.pflmobile.core.errors.StateException there is no such version, or it is damaged
     */
    public fun revert(version: Int? = null): Int {
        pending().first.filter { it.adopts != null }.forEach { change(it.copy(adopts = null)) }
        return personal.revert(version)
    }

    /** Remove updates of a process that was killed before it could write their entries. */
    internal fun removeOrphans() {
        val all = list(queue)
        val known = all.filter(::isEntry).mapTo(HashSet()) { it.nameWithoutExtension }
        all.filter { it.name.endsWith(".update") && it.nameWithoutExtension !in known }.forEach(files::delete)
    }

    private fun isEntry(path: Path) = path.name.endsWith(".json") && !path.name.startsWith(".")

    private fun intact(entry: Pending): Boolean {
        val path = updatePath(entry.task)
        val data =
            try {
                readBytes(path, Int.MAX_VALUE)
            } catch (_: NoSuchFileException) {
                return false
            } catch (error: IOException) {
                throw unreadable(path, error)
            }
        return data.size.toLong() == entry.bytes && digest(data) == entry.sha256
    }

    // -- files

    private fun <T> write(
        name: String,
        form: KSerializer<T>,
        content: T,
    ) = files.write(directory.resolve(name), (strictJson.encodeToString(form, content) + "\n").encodeToByteArray())

    /** What a file of JSON holds; null where there is none. */
    private fun <T> read(
        path: Path,
        form: KSerializer<T>,
    ): T? =
        try {
            strictJson.decodeFromJsonElement(form, parseJson(readBytes(path)))
        } catch (_: NoSuchFileException) {
            null
        }

    private fun list(folder: Path): List<Path> = diskErrors(folder) { Files.newDirectoryStream(folder).use { it.toList() } }

    internal companion object {
        private const val LOCK = "lock"
        private const val SENT = "sent.json"
        private const val SPENT = "spent.json"
        private const val DEVICE = "device.json"
        private const val LEAVING = "leaving.json"
        private const val QUEUE = "queue"

        /** What only a device's folder holds. */
        internal const val SERVES = "serves.json"
        private val NAMES = setOf(LOCK, DEVICE, LEAVING, "user.json", SENT, SPENT, "personal", QUEUE)

        /** What is cleared first, as it could be sent, and last, as it says that there is something to clear. */
        private val FIRST = listOf(QUEUE)
        private val LAST = listOf(LEAVING, DEVICE)

        /**
         * Removes everything from a folder that no device uses but how much was sent: that cannot be taken back, so a budget must go on
         * from there. Works on a damaged folder too. Killed or failed on the way, it leaves nothing that could go out, and a membership
         * until the end; all that can be removed is.
         *
         * @param kept names of files that stay too
         */
        fun clear(
            directory: Path,
            vararg kept: String,
        ) {
            if (!directory.exists()) return
            val files = AtomicFiles()
            val stay = setOf(LOCK, SENT, SPENT, *kept)
            val faults = ArrayList<Throwable>()

            fun remove(path: Path) {
                runCatching {
                    diskErrors(path) {
                        if (!Files.isDirectory(path, LinkOption.NOFOLLOW_LINKS)) {
                            files.delete(path)
                        } else {
                            Files.newDirectoryStream(path).use { it.toList() }.forEach(::remove)
                            files.syncFolder(path)
                        }
                    }
                }.onFailure(faults::add)
            }
            val all = diskErrors(directory) { Files.newDirectoryStream(directory).use { it.toList() } }.filter { it.name !in stay }
            all.sortedBy { if (it.name in FIRST) -1 else LAST.indexOf(it.name) + 1 }.forEach(::remove)
            faults.firstOrNull()?.let { throw it }
            files.syncFolder(directory)
        }

        private fun digest(data: ByteArray) = hex(MessageDigest.getInstance("SHA-256").digest(data))

        internal fun unreadable(
            path: Path,
            error: IOException,
        ) = DeviceFolderException(
            "$path cannot be read: ${error.message}",
            mend = "check what is there and its permissions; if it is no file of this device, remove it",
            error,
        )

        private fun <T> damaged(
            path: Path,
            mend: () -> String,
            read: () -> T,
        ): T =
            try {
                read()
            } catch (error: IOException) {
                throw DeviceFolderException("$path is damaged: ${error.message}", mend(), error)
            } catch (error: IllegalArgumentException) {
                throw DeviceFolderException("$path is damaged: ${error.message}", mend(), error, damaged = true)
            }
    }
}
