package io.pflmobile.core.local

import io.pflmobile.core.state.PersonalState
import io.pflmobile.core.state.StateWarning
import io.pflmobile.core.tensors.Tensor

/**
 * After each optimizer step.
 *
 * @property step steps done, from 1
 * @property of steps of the whole plan
 * @property loss mean loss of this step's batch, before the step
 * @property seconds since training began
 */
public class Progress internal constructor(
    public val step: Long,
    public val of: Long,
    public val loss: Double,
    public val seconds: Double,
) {
    /** All numbers. */
    override fun toString(): String = "Progress(step=$step, of=$of, loss=$loss, seconds=$seconds)"
}

/**
 * What training gave, whatever the guard decided; a device sends its change.
 *
 * @property tensors device tensors after training
 * @property copies copies after training, also those that the personal state does not keep
 * @property copiesBefore copies before it; those that were not there are missing
 */
public class Trained internal constructor(
    public val tensors: Map<String, Tensor>,
    public val copies: Map<String, Map<String, Tensor>>,
    public val copiesBefore: Map<String, Map<String, Tensor>>,
)

/** How a run of training ended. */
public enum class Status {
    /** The trained state serves now. */
    ADOPTED,

    /** The guard kept the old state. */
    KEPT,

    /** Nothing was trained. */
    SKIPPED,

    /** It was stopped; with a checkpoint it goes on from there later. */
    CANCELLED,
}

/**
 * The result of [LocalTrainer.personalize].
 *
 * @property status how it ended
 * @property guard the decision; null when cancelled before it
 * @property state what serves now; null is the shipped values
 * @property version its number in the store; null without a store. Where it was not to be published, an adopted state is written but
 *   does not serve yet
 * @property before metrics on the held-out examples with the state that served until now
 * @property after the same with the trained state; empty when nothing was trained
 * @property steps optimizer steps of this job, those before a resume included
 * @property losses of each step
 * @property seconds training and evaluation in this call
 * @property msPerStep median over the steps of this call; null when there was none
 * @property words slot words after training
 * @property reports what measure and choose phases found; sent beside the update
 * @property resumedAt steps that a checkpoint had already done; null when training began afresh
 * @property warnings what loading the state had to repair
 * @property notes other things worth knowing, in plain words
 * @property trained what training gave; null when it was skipped or cancelled
 */
public class TrainReport internal constructor(
    public val status: Status,
    public val guard: GuardReport?,
    public val state: PersonalState?,
    public val version: Int?,
    public val before: Map<String, Double>,
    public val after: Map<String, Double>,
    public val steps: Long,
    public val losses: List<Double>,
    public val seconds: Double,
    public val msPerStep: Double?,
    public val words: List<String>,
    public val reports: Map<String, Double>,
    public val resumedAt: Long?,
    public val warnings: List<StateWarning>,
    public val notes: List<String>,
    public val trained: Trained?,
)
