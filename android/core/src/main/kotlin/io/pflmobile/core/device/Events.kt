package io.pflmobile.core.device

/** What a device tells while it takes part. None of it holds examples, words or values. */
public sealed interface Event {
    /**
     * The device is enrolled.
     *
     * @property device its id at the aggregator
     * @property again whether it was enrolled before
     */
    public class Joined internal constructor(
        public val device: String,
        public val again: Boolean,
    ) : Event

    /**
     * A task for a round has come.
     *
     * @property round number of the round
     * @property version number of the shared values to train on
     */
    public class Assigned internal constructor(
        public val round: Long,
        public val version: Long,
    ) : Event

    /**
     * A set of values is there.
     *
     * @property name of the set, for instance `global`
     * @property bytes of its file
     * @property cached whether it was there before
     */
    public class Downloaded internal constructor(
        public val name: String,
        public val bytes: Long,
        public val cached: Boolean,
    ) : Event

    /**
     * After each optimizer step.
     *
     * @property step steps done, from 1
     * @property of steps of the whole task
     * @property loss mean loss of this step's batch, before the step
     */
    public class Stepped internal constructor(
        public val step: Long,
        public val of: Long,
        public val loss: Double,
    ) : Event

    /**
     * Training has ended and its update waits to be sent.
     *
     * @property round number of the round
     * @property adopted whether a new personal state serves; else the guard kept the old one
     * @property steps optimizer steps
     * @property seconds of training and measuring
     * @property before the guard's metrics
     * @property after the same after training
     * @property norm L2 norm of the change before clipping
     * @property clipped whether clipping shortened it
     */
    public class Finished internal constructor(
        public val round: Long,
        public val adopted: Boolean,
        public val steps: Long,
        public val seconds: Double,
        public val before: Map<String, Double>,
        public val after: Map<String, Double>,
        public val norm: Double,
        public val clipped: Boolean,
    ) : Event

    /**
     * The aggregator has accepted the update.
     *
     * @property round number of the round
     * @property bytes of the update
     * @property duplicate whether it had it from an earlier try
     */
    public class Uploaded internal constructor(
        public val round: Long,
        public val bytes: Long,
        public val duplicate: Boolean,
    ) : Event

    /**
     * The evaluation report was sent.
     *
     * @property round number of the round
     * @property shared means of the metrics with the values as the aggregator sent them
     * @property personalized the same with what serves now
     * @property weight of the examples, as sent
     */
    public class Reported internal constructor(
        public val round: Long,
        public val shared: Map<String, Double>,
        public val personalized: Map<String, Double>,
        public val weight: Double,
    ) : Event

    /**
     * The device sends no update for this task.
     *
     * @property round number of the round
     * @property reason the protocol's code, for instance `privacy`
     * @property why the same in words
     */
    public class Declined internal constructor(
        public val round: Long,
        public val reason: String,
        public val why: String,
    ) : Event

    /**
     * Something is given up.
     *
     * @property task id of the task
     * @property what the update, the report or the task
     * @property why in words
     */
    public class Dropped internal constructor(
        public val task: String,
        public val what: String,
        public val why: String,
    ) : Event

    /**
     * There is no task now.
     *
     * @property seconds until it asks again
     * @property reason why there is none, in the words of the protocol
     */
    public class Waiting internal constructor(
        public val seconds: Double,
        public val reason: String,
    ) : Event

    /**
     * The aggregator cannot be reached.
     *
     * @property seconds until it tries again
     * @property why in words
     */
    public class Offline internal constructor(
        public val seconds: Double,
        public val why: String,
    ) : Event

    /**
     * How good the newest shared values are on the device's test part, as means; not sent.
     *
     * @property version number of the shared values
     * @property shared means of the metrics
     * @property weight of the examples
     */
    public class Measured internal constructor(
        public val version: Long,
        public val shared: Map<String, Double>,
        public val weight: Double,
    ) : Event
}
