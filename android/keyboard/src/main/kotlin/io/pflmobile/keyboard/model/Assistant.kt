package io.pflmobile.keyboard.model

/** The personal model, as the keyboard and its settings use it. All of it runs off the main thread. */
internal interface Assistant {
    /** The likely next words after a text, the likeliest first. */
    suspend fun suggest(
        text: String,
        count: Int,
    ): List<String>

    /** The words that the model learned from the user. */
    suspend fun ownWords(): List<String>

    /** Keeps a text to learn from. */
    suspend fun remember(text: String)

    suspend fun standing(): Standing

    /** Trains now; [progress] is told the steps that are done. */
    suspend fun train(progress: (Int) -> Unit)

    suspend fun forgetWord(word: String)

    suspend fun forgetExample(id: Long)

    suspend fun pause(paused: Boolean)

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
 * @property privacy what rounds with other phones spent; null where there are none
 * @property waits for what the next training waits; empty when it can begin
 */
internal data class Standing(
    val result: Result? = null,
    val words: List<String> = emptyList(),
    val examples: List<Kept> = emptyList(),
    val exampleCount: Int = examples.size,
    val privacy: Privacy? = null,
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

    data class Privacy(
        val spent: Double,
        val budget: Double,
        val rounds: Int,
    )
}
