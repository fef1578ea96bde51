package io.pflmobile.core.local

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.NoExamplesException
import io.pflmobile.core.rows.Rows
import io.pflmobile.core.rows.cutRows
import io.pflmobile.core.rows.holdoutSize
import kotlin.math.floor

/** A device's examples, oldest first. */
public sealed interface Examples {
    /** How many there are. */
    public val size: Int

    /** The first [at], and the others. */
    public fun cut(at: Int): Pair<Examples, Examples>

    /**
     * Texts, for a bundle with an encoder.
     *
     * @property texts oldest first
     */
    public class Texts(
        public val texts: List<String>,
    ) : Examples {
        override val size: Int get() = texts.size

        override fun cut(at: Int): Pair<Examples, Examples> = Texts(texts.take(at)) to Texts(texts.drop(at))
    }

    /**
     * Arrays, one row an example.
     *
     * @property rows by name as the inputs of the bundle's programs, `weight` among them; the same first axis, oldest first
     */
    public class Arrays(
        public val rows: Rows,
    ) : Examples {
        override val size: Int get() =
            rows.values
                .firstOrNull()
                ?.shape
                ?.firstOrNull() ?: 0

        override fun cut(at: Int): Pair<Examples, Examples> = cutRows(rows, at).let { (first, rest) -> Arrays(first) to Arrays(rest) }
    }
}

/**
 * Examples by age.
 *
 * @property train what is trained on
 * @property holdout newer: what the guard measures
 * @property test newest: what neither training nor the guard sees
 * @property older how many there were before them, beyond what a device keeps
 */
public class Parts internal constructor(
    public val train: Examples,
    public val holdout: Examples,
    public val test: Examples,
    public val older: Int,
)

/**
 * Cut examples into the three parts.
 *
 * @param test share of all examples, the newest, to test on; at least one
 * @param holdout share of the others, the newest, for the guard
 * @param most examples that a device keeps for training and guard, the newest; null for all
 * @throws NoExamplesException fewer than 2
 * @throws ConfigException [test] is not between 0 and 1
 */
public fun parts(
    examples: Examples,
    test: Double = 0.2,
    holdout: Double = 0.2,
    most: Int? = null,
): Parts {
    val count = examples.size
    if (count < 2) {
        throw NoExamplesException(
            "the device has $count example${if (count == 1) "" else "s"}",
            mend = "give at least 3: one to learn from, one for the guard, one to test on",
        )
    }
    if (!(test > 0 && test < 1)) {
        throw ConfigException("the test part is $test", mend = "give a share between 0 and 1, for instance 0.2")
    }
    // The small term keeps 0.8 * 100 at 80 although the product may fall just short of it in binary.
    val cut = floor(count * (1 - test) + 1e-9).toInt().coerceIn(1, count - 1)
    val (all, tested) = examples.cut(cut)
    val older = if (most == null) 0 else maxOf(cut - most, 0)
    val learn = all.cut(older).second
    val (train, held) = learn.cut(learn.size - holdoutSize(learn.size, holdout))
    return Parts(train, held, tested, older)
}
