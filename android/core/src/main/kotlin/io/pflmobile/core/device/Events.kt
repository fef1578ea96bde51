package io.pflmobile.core.device

/** What a device tells while it takes part. None of it holds examples, words or values. */
public sealed interface Event {
    /** The device is enrolled; [again] where it was before. */
    public class Joined internal constructor(
        public val device: String,
        public val again: Boolean,
    ) : Event

    /** A task for a round has come. */
    public class Assigned internal constructor(
        public val round: Long,
        public val version: Long,
    ) : Event

    /** A set of values is there; [cached] where it was before. */
    public class Downloaded internal constructor(
        public val name: String,
        public val bytes: Long,
        public val cached: Boolean,
    ) : Event

    /** After each optimizer step; [step] counts from 1. */
    public class Stepped internal constructor(
        public val step: Long,
        public val of: Long,
        public val loss: Double,
    ) : Event

    /**
     * Training has ended and its update waits to be sent.
     *
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

    /** The aggregator has accepted the update; [duplicate] where it had it from an earlier try. */
    public class Uploaded internal constructor(
        public val round: Long,
        public val bytes: Long,
        public val duplicate: Boolean,
    ) : Event

    /** The evaluation report was sent; metrics of the values as sent, and of what serves now, as means. */
    public class Reported internal constructor(
        public val round: Long,
        public val shared: Map<String, Double>,
        public val personalized: Map<String, Double>,
        public val weight: Double,
    ) : Event

    /** The device sends no update for this task: the protocol's reason, and why in words. */
    public class Declined internal constructor(
        public val round: Long,
        public val reason: String,
        public val why: String,
    ) : Event

    /** An update, report or task ([what]) is given up. */
    public class Dropped internal constructor(
        public val task: String,
        public val what: String,
        public val why: String,
    ) : Event

    /** There is no task now. */
    public class Waiting internal constructor(
        public val seconds: Double,
        public val reason: String,
    ) : Event

    /** The aggregator cannot be reached. */
    public class Offline internal constructor(
        public val seconds: Double,
        public val why: String,
    ) : Event

    /** How good the newest shared values are on the device's test part, as means; not sent. */
    public class Measured internal constructor(
        public val version: Long,
        public val shared: Map<String, Double>,
        public val weight: Double,
    ) : Event
}
