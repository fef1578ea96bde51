package io.pflmobile.sdk

import android.content.ContentValues
import android.content.Context
import android.database.DatabaseErrorHandler
import android.database.sqlite.SQLiteDatabase
import android.database.sqlite.SQLiteException
import android.database.sqlite.SQLiteFullException
import android.database.sqlite.SQLiteOpenHelper
import android.os.SystemClock
import android.provider.Settings
import io.pflmobile.core.errors.DataException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.local.Example
import io.pflmobile.core.local.ExampleStore
import io.pflmobile.core.local.Payload
import io.pflmobile.core.local.Retention
import java.io.File

/**
 * A moment, by clocks of which one may be set.
 *
 * @property wall seconds since 1970, as the phone believes
 * @property sinceBoot seconds since the phone started, sleep included
 * @property boot how often it started
 */
internal data class Moment(
    val wall: Double,
    val sinceBoot: Double,
    val boot: Int,
)

internal fun now(context: Context) =
    Moment(
        System.currentTimeMillis() / MILLIS,
        SystemClock.elapsedRealtime() / MILLIS,
        Settings.Global.getInt(context.contentResolver, Settings.Global.BOOT_COUNT, 0),
    )

private const val MILLIS = 1000.0

/**
 * The user's examples in SQLite, each encrypted by [seal]; what is erased is overwritten.
 *
 * Ages are not differences of the wall clock, which the user or a network may set to anything. The store counts the seconds that it
 * has seen go by: while the phone runs by the clock that cannot be set, over a restart by the wall clock, but never backwards and at most
 * half of the age limit at once. So a wrong date never makes everything look old.
 *
 * @param file of the database; made with the first example
 * @param clock the present moment
 */
internal class SqliteExampleStore(
    context: Context,
    private val file: File,
    private val retention: Retention,
    private val seal: DataKey,
    private val clock: () -> Moment = { now(context) },
) : ExampleStore {
    private var closed = false
    private val keepDamaged = DatabaseErrorHandler { } // the system's own one removes the file
    private val helper =
        object : SQLiteOpenHelper(context, file.path, null, VERSION, keepDamaged) {
            init {
                setWriteAheadLoggingEnabled(false) // its log would keep what was erased
            }

            override fun onConfigure(db: SQLiteDatabase) {
                for (pragma in listOf("journal_mode = TRUNCATE", "secure_delete = ON", "synchronous = FULL")) {
                    db.rawQuery("PRAGMA $pragma", null).use { it.moveToFirst() }
                }
            }

            override fun onCreate(db: SQLiteDatabase) {
                db.execSQL(
                    """CREATE TABLE examples (
                        id INTEGER PRIMARY KEY AUTOINCREMENT,
                        created REAL NOT NULL,
                        aged REAL NOT NULL,
                        kind TEXT NOT NULL CHECK (kind IN ('text', 'arrays')),
                        bytes INTEGER NOT NULL,
                        payload BLOB NOT NULL
                    )""",
                )
                db.execSQL("CREATE TABLE clock (aged REAL NOT NULL, wall REAL NOT NULL, since_boot REAL NOT NULL, boot INTEGER NOT NULL)")
            }

            override fun onUpgrade(
                db: SQLiteDatabase,
                old: Int,
                new: Int,
            ) = Unit

            override fun onDowngrade(
                db: SQLiteDatabase,
                old: Int,
                new: Int,
            ): Unit = throw StateException("the examples in $file are of version $old, newer than $new", "update the app")
        }

    /** For tests. */
    internal val database: SQLiteDatabase get() = helper.writableDatabase

    init {
        try {
            if (file.exists()) transaction { db -> applyLimits(db, aged(db)) }
        } catch (error: PflException) {
            helper.close()
            throw error
        }
    }

    @Synchronized
    override fun add(payload: Payload): Long? {
        val plain = payload.encode()
        if (plain.size > MOST_BYTES) {
            throw DataException("the example has ${plain.size} bytes, more than $MOST_BYTES", "remember a smaller part")
        }
        // the limit would take all older ones first
        val sealed = seal.seal(plain, payload.kind)
        return transaction { db ->
            val aged = aged(db)
            val row =
                ContentValues().apply {
                    put("created", clock().wall)
                    put("aged", aged)
                    put("kind", payload.kind)
                    put("bytes", plain.size)
                    put("payload", sealed)
                }
            val id = db.insertOrThrow("examples", null, row)
            applyLimits(db, aged)
            id.takeIf { number(db, "SELECT COUNT(*) FROM examples WHERE id = $id") == 1L }
        }
    }

    @Synchronized
    override fun examples(newest: Int?): List<Example> =
        reading(emptyList()) { db ->
            if (retention.maxAge != null) transaction { applyLimits(it, aged(it)) }
            val found = ArrayList<Example>()
            val lost = ArrayList<Long>()
            val query = "SELECT id, created, kind, payload FROM examples ORDER BY id DESC LIMIT ${newest ?: -1}"
            db.rawQuery(query, null).use { rows ->
                while (rows.moveToNext()) {
                    val kind = rows.getString(2)
                    val plain = seal.open(rows.getBlob(3), kind)
                    if (plain ==
                        null
                    ) {
                        lost += rows.getLong(0)
                    } else {
                        found += Example(rows.getLong(0), rows.getDouble(1), Payload.decode(kind, plain))
                    }
                }
            }
            // nobody can ever read them again
            if (lost.isNotEmpty()) erase(lost)
            found.asReversed()
        }

    @Synchronized
    override fun count(): Int = reading(0) { number(it, "SELECT COUNT(*) FROM examples").toInt() }

    @Synchronized
    override fun erase(ids: Collection<Long>): Int {
        if (ids.isEmpty() || !file.exists()) return 0
        return transaction { db -> ids.sumOf { db.delete("examples", "id = ?", arrayOf("$it")) } }
    }

    @Synchronized
    override fun eraseAll(): Int {
        val count =
            try {
                count()
            } catch (_: StateException) {
                0 // damaged: all the more a reason to remove it
            }
        helper.close()
        // the file first: the Keystore may not answer
        if (file.exists() && !SQLiteDatabase.deleteDatabase(file)) {
            throw StateException("$file cannot be removed", "try again after a restart of the phone")
        }
        seal.destroy()
        return count
    }

    @Synchronized
    override fun close() {
        closed = true
        helper.close()
    }

    /** Seconds that this store has seen go by, now. */
    private fun aged(db: SQLiteDatabase): Double {
        val now = clock()
        val before =
            db.rawQuery("SELECT aged, wall, since_boot, boot FROM clock", null).use { row ->
                if (row.moveToFirst()) row.getDouble(0) to Moment(row.getDouble(1), row.getDouble(2), row.getInt(3)) else null
            }
        val aged = if (before == null) 0.0 else before.first + passed(before.second, now)
        db.execSQL("DELETE FROM clock")
        db.execSQL("INSERT INTO clock VALUES (?, ?, ?, ?)", arrayOf<Any>(aged, now.wall, now.sinceBoot, now.boot))
        return aged
    }

    private fun passed(
        then: Moment,
        now: Moment,
    ): Double {
        if (now.boot == then.boot && now.sinceBoot >= then.sinceBoot) return now.sinceBoot - then.sinceBoot
        return (now.wall - then.wall).coerceIn(0.0, (retention.maxAge ?: MOST_AT_ONCE) / 2)
    }

    private fun applyLimits(
        db: SQLiteDatabase,
        aged: Double,
    ) {
        retention.maxAge?.let { db.delete("examples", "aged < ?", arrayOf("${aged - it}")) }
        retention.maxExamples?.let {
            db.execSQL("DELETE FROM examples WHERE id IN (SELECT id FROM examples ORDER BY id DESC LIMIT -1 OFFSET $it)")
        }
        retention.maxBytes?.let { most ->
            // one that is too large by itself goes alone, and not with all that are older
            db.delete("examples", "bytes > ?", arrayOf("$most"))
            var total = 0L
            var last = -1L
            db.rawQuery("SELECT id, bytes FROM examples ORDER BY id DESC", null).use { rows ->
                while (rows.moveToNext()) {
                    total += rows.getLong(1)
                    if (total > most) {
                        last = rows.getLong(0)
                        break
                    }
                }
            }
            if (last >= 0) db.delete("examples", "id <= ?", arrayOf("$last"))
        }
    }

    private fun number(
        db: SQLiteDatabase,
        query: String,
    ): Long =
        db.rawQuery(query, null).use {
            it.moveToFirst()
            it.getLong(0)
        }

    private fun <T> reading(
        none: T,
        step: (SQLiteDatabase) -> T,
    ): T = if (!closed && !file.exists()) none else errors { step(helper.writableDatabase) }

    private fun <T> transaction(step: (SQLiteDatabase) -> T): T =
        errors {
            val db = helper.writableDatabase
            db.beginTransaction()
            val done =
                try {
                    step(db).also { db.setTransactionSuccessful() }
                } catch (error: SQLiteException) {
                    end(db, error)
                    throw error
                } catch (error: PflException) {
                    end(db, error)
                    throw error
                }
            db.endTransaction()
            done
        }

    /** SQLite takes a transaction back by itself where the disk is full; that this then fails says nothing. */
    private fun end(
        db: SQLiteDatabase,
        reason: Exception,
    ) {
        try {
            db.endTransaction()
        } catch (error: SQLiteException) {
            reason.addSuppressed(error)
        }
    }

    private inline fun <T> errors(step: () -> T): T {
        if (closed) throw StateException("the examples in $file are closed", "open the model again")
        return try {
            step()
        } catch (error: SQLiteFullException) {
            throw StorageFullException("no space left for the examples in $file; nothing was changed", "free some space", error)
        } catch (error: SQLiteException) {
            throw StateException(
                "the examples in $file cannot be used: ${error.message}",
                "try again; if it stays so, PersonalModel.erase(context, name) removes them",
                error,
            )
        }
    }

    private companion object {
        const val VERSION = 1

        /** What a row must not exceed so that the system's cursors can carry it. */
        const val MOST_BYTES = 1 shl 20
        const val MOST_AT_ONCE = 365 * 86_400.0
    }
}
