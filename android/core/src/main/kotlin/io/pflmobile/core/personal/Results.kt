package io.pflmobile.core.personal

import io.pflmobile.core.errors.PflException
import io.pflmobile.core.local.UserResult
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.state.StateWarning
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.Tensor

/** What became of an example that was to be remembered. */
public sealed interface RememberResult {
    /**
     * It is kept.
     *
     * @property id forgets it again, by `forgetExample`
     */
    public data class Kept(
        val id: Long,
    ) : RememberResult

    /**
     * It is not kept, and nothing of it is.
     *
     * @property reason why
     */
    public data class Refused(
        val reason: Reason,
    ) : RememberResult

    /** Why an example is not kept. */
    public enum class Reason {
        /** It holds a word that is blocked, or that the user wants forgotten. */
        BLOCKED,

        /** There is nothing in it to learn from. */
        EMPTY,

        /** The user paused learning. */
        PAUSED,

        /** The disk is full, or the limits leave no place for it. */
        STORAGE_FULL,
    }
}

/** How [PersonalModel.personalize] ended. */
public sealed interface PersonalizeResult {
    /**
     * What was learned is better on the user's own newest examples, and serves now.
     *
     * @property report before and after
     */
    public class Adopted internal constructor(
        public val report: UserResult,
    ) : PersonalizeResult {
        /** For a log: numbers, no examples. */
        override fun toString(): String = "Adopted($report)"
    }

    /**
     * The old state serves on: what was learned is not better, or the model is good enough already; `report.report.guard` says which.
     *
     * @property report what was measured
     */
    public class Kept internal constructor(
        public val report: UserResult,
    ) : PersonalizeResult {
        /** For a log: numbers, no examples. */
        override fun toString(): String = "Kept(${report.report.guard?.reason}, $report)"
    }

    /**
     * There are too few examples to learn and to measure: 3 are the least, and the part that the guard measures has to have as many as
     * the bundle's guard asks for (`min_examples`).
     *
     * @property have how many there are
     */
    public data class NotEnoughExamples(
        val have: Int,
    ) : PersonalizeResult

    /** The user paused learning. */
    public data object Paused : PersonalizeResult

    /** It was stopped by pause, forget, revert or erase. Where the examples are still there, the next call goes on from a checkpoint. */
    public data object Cancelled : PersonalizeResult

    /**
     * It could not be done; the old state serves on.
     *
     * @property error what went wrong
     */
    public data class Failed(
        val error: PflException,
    ) : PersonalizeResult
}

/**
 * The last training that came to an end, as it is kept for a status screen.
 *
 * @property at seconds since 1970
 * @property adopted whether what was learned was adopted
 * @property version of the personal state that served from then on; 0 for the shipped values
 * @property before metrics on the newest examples with the state that served until then; recalls are fractions from 0 to 1
 * @property after the same with the state that served from then on
 * @property steps optimizer steps
 * @property examples how many there were to train on, for the guard, and to test on together
 */
public data class LastTraining(
    val at: Double,
    val adopted: Boolean,
    val version: Int,
    val before: Map<String, Double>,
    val after: Map<String, Double>,
    val steps: Long,
    val examples: Int,
)

/**
 * What a status screen shows.
 *
 * @property model which bundle is open
 * @property version of the personal state that serves; 0 for the shipped values
 * @property examples how many are kept
 * @property words how many of the user's own words have a slot
 * @property paused whether the user paused learning
 * @property training whether training is under way
 * @property engineOpen whether the engine's memory is in use
 * @property last null before the first training
 * @property warnings what had to be repaired when the state was loaded
 * @property rounds what was given to federations; null where the model never took part
 */
public data class ModelStatus(
    val model: ModelId,
    val version: Int,
    val examples: Int,
    val words: Int,
    val paused: Boolean,
    val training: Boolean,
    val engineOpen: Boolean,
    val last: LastTraining?,
    val warnings: List<StateWarning>,
    val rounds: RoundsStatus? = null,
)

/**
 * A label of a classifier.
 *
 * @property label number of the class, from 0
 * @property probability from 0 to 1
 */
public data class Label(
    val label: Int,
    val probability: Double,
)

/**
 * What `predict` gave for one example.
 *
 * @property outputs of the program, by name
 */
public class Prediction internal constructor(
    public val outputs: Map<String, Tensor>,
) {
    /** Labels of a classifier, the likeliest first; empty for another task. */
    public val labels: List<Label>
        get() {
            val ids = (outputs["top_ids"] as? LongTensor)?.values ?: return emptyList()
            val probabilities = (outputs["top_probs"] as? FloatTensor)?.values ?: return emptyList()
            return ids.zip(probabilities.toTypedArray()) { id, probability -> Label(id.toInt(), probability.toDouble()) }
        }

    /** The numbers of a regression, or of a task whose `predict` gives `value`; null for another task. */
    public val value: FloatArray? get() = (outputs["value"] as? FloatTensor)?.values
}
