package io.pflmobile.keyboard.model

/** The personal model, as the keyboard and its settings use it. All of it runs off the main thread. */
internal interface Assistant {
    /** The likely next words after a text, the likeliest first. */
    suspend fun suggest(
        text: String,
        count: Int,
    ): List<String>

    /** Words that begin with [prefix], the likeliest first. */
    suspend fun complete(
        text: String,
        prefix: String,
        count: Int,
    ): List<String>

    /** Keeps a text to learn from. */
    suspend fun remember(text: String)

    suspend fun standing(): Standing

    /** Trains now; [progress] is told the steps that are done. */
    suspend fun train(progress: (Int) -> Unit)

    suspend fun forgetWord(word: String)

    suspend fun forgetExample(id: Long)

    suspend fun pause(paused: Boolean)

    /** Takes part in rounds with other phones from now on, or leaves them. */
    suspend fun takePart(on: Boolean)

    /** Back to the shipped model. */
    suspend fun revert()

    suspend fun eraseEverything()
}

/**
 * What the settings show.
 *
 * @property result of the last training; null before the first
 * @property words that the model learned from the user
 * @property examples the newest kept texts, by their ids
 * @property exampleCount of all that are kept
 * @property rounds rounds with other phones; null where this keyboard knows no server
 * @property waits for what the next training waits; empty when it can begin
 */
internal data class Standing(
    val result: Result? = null,
    val words: List<String> = emptyList(),
    val examples: List<Kept> = emptyList(),
    val exampleCount: Int = examples.size,
    val rounds: Rounds? = null,
    val waits: List<String> = emptyList(),
    val paused: Boolean = false,
) {
    /** Right next words of the user's own sentences that were held out, between 0 and 1. */
    data class Result(
        val before: Double,
        val after: Double,
        val adopted: Boolean,
    )

    data class Kept(
        val id: Long,
        val text: String,
    )

    /**
     * @property on whether the user takes part
     * @property waits for what the next round waits; empty when it can begin
     * @property count updates that were accepted
     * @property bytes of these
     * @property spent epsilon of all that was sent; infinite where something was sent without protection
     * @property budget the largest epsilon
     * @property delta that goes with it
     * @property leaving whether the server still has to be told that the user left
     * @property unknown why it is not known what was sent; null where it is
     * @property trouble why no round can be scheduled; null where one can
     */
    data class Rounds(
        val server: String,
        val on: Boolean = false,
        val waits: List<String> = emptyList(),
        val count: Long = 0,
        val bytes: Long = 0,
        val spent: Double = 0.0,
        val budget: Double = 0.0,
        val delta: Double = 0.0,
        val leaving: Boolean = false,
        val unknown: String? = null,
        val trouble: String? = null,
    )
}
