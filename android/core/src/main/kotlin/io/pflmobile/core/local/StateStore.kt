package io.pflmobile.core.local

import io.pflmobile.core.state.PersonalState

/**
 * A state as it was loaded.
 *
 * @property state null for the shipped values
 * @property version its number; 0 for the shipped values
 * @property warnings what had to be repaired, in plain words
 */
public class Loaded(
    public val state: PersonalState?,
    public val version: Int,
    public val warnings: List<String> = emptyList(),
)

/** Where a trainer takes the personal state from and puts a better one: numbered versions, one of them current. */
public interface StateStore {
    /** Keep other processes from changing the state until the result is closed. */
    public fun hold(): AutoCloseable

    /** The state that serves. */
    public fun load(): Loaded

    /** Write a state and let it serve; returns its number. */
    public fun save(state: PersonalState): Int

    /** Write a state that does not serve yet; returns its number. */
    public fun write(state: PersonalState): Int

    /** The encoder for a user who wants some words forgotten: they get no slot and read as unknown. */
    public fun unlearned(encoder: Encoder): Encoder
}
