package io.pflmobile.core.state

import io.pflmobile.core.text.BlockList

/**
 * Something that [StateStore.load] repaired and the app should tell or report.
 *
 * @property version the version that could not be used
 * @property message what is wrong with it
 * @property used the version used in its place; 0 = the shipped values
 */
public data class StateWarning(
    val version: Int,
    val message: String,
    val used: Int,
)

/**
 * A state as it was loaded.
 *
 * @property state null while the shipped values serve
 * @property version its number; 0 for the shipped values
 * @property warnings what had to be repaired
 */
public class Loaded(
    public val state: PersonalState?,
    public val version: Int,
    public val warnings: List<StateWarning> = emptyList(),
)

/** Where a trainer takes the personal state from and puts a better one: numbered versions, one of them current. */
public interface StateStore {
    /**
     * Keeps other processes from changing the state until the result is closed.
     *
     * @throws io.pflmobile.core.errors.StateException another process is changing it, and does not end soon
     */
    public fun hold(): AutoCloseable

    /**
     * The current state.
     *
     * @throws io.pflmobile.core.errors.StateException it cannot be used, nor can one before it
     */
    public fun load(): Loaded

    /**
     * Writes [state] as a new version and makes it current; returns its number.
     *
     * @throws io.pflmobile.core.errors.StorageFullException the disk is full; the last good state stays
     * @throws io.pflmobile.core.errors.NonFiniteException a tensor is NaN or infinite; nothing is written
     * @throws io.pflmobile.core.errors.StateException as [write]
     */
    public fun save(state: PersonalState): Int

    /**
     * Writes [state] as a new version without making it current; returns its number.
     *
     * @throws io.pflmobile.core.errors.StateException it holds a word that was forgotten while this state was trained; or as [hold]
     * @throws io.pflmobile.core.errors.StorageFullException as [save]
     * @throws io.pflmobile.core.errors.NonFiniteException likewise
     */
    public fun write(state: PersonalState): Int

    /**
     * Words that must not be learned again.
     *
     * @throws io.pflmobile.core.errors.StateException the list is damaged; it is never taken for empty
     */
    public fun blocked(): BlockList
}
