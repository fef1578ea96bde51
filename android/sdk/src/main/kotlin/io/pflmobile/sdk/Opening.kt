package io.pflmobile.sdk

import android.content.Context
import android.content.res.AssetManager
import io.pflmobile.core.errors.DataException
import io.pflmobile.core.errors.MissingFileException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.errors.UnwritableException
import io.pflmobile.core.local.ExampleStore
import io.pflmobile.core.personal.ModelOptions
import io.pflmobile.core.personal.PersonalModel
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withContext
import java.io.File
import java.io.FileNotFoundException
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.StandardCopyOption
import java.util.concurrent.ConcurrentHashMap

/**
 * Opens the model of a bundle, with what was learned before. All of it stays in the app's folder without backup; examples are encrypted
 * under a key of the Android Keystore. Service, settings and jobs of a process that open the same one share it; each closes it once, or
 * nobody does.
 *
 * @param name of a bundle in the app's assets, or the absolute path of a `.pflb` file or folder. What comes with the app is trusted; for
 *   a file, pin a key. The last part of the name without its ending says which model it is: a newer bundle keeps it
 * @throws io.pflmobile.core.errors.PflException as [PersonalModel.Companion.open] of the core says
 */
public suspend fun PersonalModel.Companion.open(
    context: Context,
    name: String,
    options: ModelOptions = ModelOptions(),
): PersonalModel = Openings.open(context.applicationContext ?: context, name, options)

/**
 * Removes everything that was kept for a bundle, also where it is too damaged to be opened, and ends the schedules of its jobs.
 *
 * @param name as it was opened
 * @throws StateException it is open, in this process or another; erase it by [PersonalModel.eraseEverything]
 * @throws UnwritableException something cannot be removed
 */
public suspend fun PersonalModel.Companion.erase(
    context: Context,
    name: String,
): Unit = Openings.erase(context.applicationContext ?: context, name)

internal object Openings {
    private const val ROOT = "pfl"
    private const val BUNDLE = "bundle"
    private val lock = Mutex()

    /** The names by which folders were opened in this process. */
    private val names = ConcurrentHashMap<Path, String>()

    /** Whose key encrypts the examples of a folder. */
    @Volatile internal var wrappingKey: (String) -> WrappingKey = ::KeystoreKey

    /** Opens an asset; a test has others. */
    @Volatile internal var asset: (Context, String) -> InputStream = ::assetOf

    fun nameOf(model: PersonalModel): String =
        names[model.folder] ?: throw StateException(
            "the model in ${model.folder} was not opened by a context",
            "open it with PersonalModel.open(context, name)",
        )

    suspend fun open(
        context: Context,
        name: String,
        options: ModelOptions,
    ): PersonalModel {
        var counted: PersonalModel? = null
        try {
            return lock.withLock {
                withContext(Dispatchers.IO) {
                    val folder = folderOf(context, name)
                    val file = File(name)
                    val ships = !file.isAbsolute
                    val source = if (ships) unpacked(context, name, folder.resolve(BUNDLE)) else file.toPath()
                    val trusted = options.copy(trusted = options.trusted || ships)
                    val model =
                        PersonalModel.open(source, folder, trusted) { home ->
                            val seal = DataKey(home.resolve("examples.key").toFile(), wrappingKey(aliasOf(home)))
                            val store = SqliteExampleStore(context, home.resolve("examples.db").toFile(), options.retention, seal)
                            object : ExampleStore by store {
                                override fun eraseAll(): Int {
                                    val erased = store.eraseAll()
                                    // else the next job would enrol the device anew
                                    RoundsScheduler.jobs.cancel(context, name)
                                    JobNotes.of(context, name).erase()
                                    return erased
                                }
                            }
                        }
                    names[model.folder] = name
                    model.also { counted = it }
                }
            }
        } catch (error: CancellationException) {
            // nobody gets it, so nobody would close it
            counted?.close()
            throw error
        }
    }

    suspend fun erase(
        context: Context,
        name: String,
    ) {
        lock.withLock {
            withContext(Dispatchers.IO) {
                val folder = folderOf(context, name)
                val there = Files.exists(folder)
                // the files first: the Keystore may not answer
                if (there) PersonalModel.erase(folder)
                for (jobs in listOf(PersonalizationScheduler.jobs, RoundsScheduler.jobs)) jobs.cancel(context, name)
                if (there) wrappingKey(aliasOf(folder)).destroy()
            }
        }
    }

    fun folderOf(
        context: Context,
        name: String,
    ): Path {
        val base = File(name).name.removeSuffix(".pflb").replace(Regex("[^A-Za-z0-9._-]"), "_")
        if (base.isEmpty() || base.all { it == '.' }) throw DataException("'$name' is no name of a bundle", "give one like keyboard.pflb")
        return File(File(context.noBackupFilesDir, ROOT), base).toPath()
    }

    private fun aliasOf(folder: Path) = "io.pflmobile.${folder.fileName}"

    /** The asset as a file, which is written again after each update of the app. */
    private fun unpacked(
        context: Context,
        name: String,
        folder: Path,
    ): Path {
        val updated = context.packageManager.getPackageInfo(context.packageName, 0).lastUpdateTime
        val file = folder.resolve("$updated.pflb")
        if (Files.exists(file)) return file
        val temporary = folder.resolve("new")
        try {
            Files.createDirectories(folder)
            asset(context, name).use { from ->
                FileOutputStream(temporary.toFile()).use { to ->
                    from.copyTo(to)
                    // the name must not be on the disk before the bytes
                    to.fd.sync()
                }
            }
            Files.newDirectoryStream(folder).use { old -> old.filter { it != temporary }.forEach(Files::delete) }
            Files.move(temporary, file, StandardCopyOption.ATOMIC_MOVE)
        } catch (error: FileNotFoundException) {
            throw MissingFileException("there is no asset '$name'", "put the bundle into src/main/assets, or give an absolute path", error)
        } catch (error: IOException) {
            Files.deleteIfExists(temporary)
            throw storageError("the bundle '$name' cannot be copied", error)
        }
        return file
    }
}

private fun assetOf(
    context: Context,
    name: String,
): InputStream = context.assets.open(name, AssetManager.ACCESS_STREAMING)

/** Java keeps the system's message and not its number. */
internal fun storageError(
    what: String,
    error: IOException,
): Exception =
    if (listOf("ENOSPC", "No space left", "EDQUOT").any { it in error.message.orEmpty() }) {
        StorageFullException("no space left: $what", "free some space", error)
    } else {
        UnwritableException("$what: ${error.message}", "check the app's storage", error)
    }
