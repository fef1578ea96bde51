/// What a device tells while it takes part. None of it holds examples, words or values.
public enum Event: Sendable, Equatable {
    /// The device is enrolled; `again` where it was before.
    case joined(device: String, again: Bool)

    /// A task for a round has come.
    case assigned(round: Int, version: Int)

    /// A set of values is there; `cached` where it was before.
    case downloaded(name: String, bytes: Int, cached: Bool)

    /// After each optimizer step; `step` counts from 1.
    case stepped(step: Int, of: Int, loss: Double)

    /// Training has ended and its update waits to be sent.
    case finished(Finished)

    /// The aggregator has accepted the update; `duplicate` where it had it from an earlier try.
    case uploaded(round: Int, bytes: Int, duplicate: Bool)

    /// The evaluation report was sent; metrics of the values as sent, and of what serves now, as means.
    case reported(round: Int, shared: [String: Double], personalized: [String: Double], weight: Double)

    /// The device sends no update for this task: the protocol's reason, and why in words.
    case declined(round: Int, reason: String, why: String)

    /// An update, report or task (`what`) is given up.
    case dropped(task: String, what: String, why: String)

    /// There is no task now.
    case waiting(seconds: Double, reason: String)

    /// The aggregator cannot be reached.
    case offline(seconds: Double, why: String)

    /// How good the newest shared values are on the device's test part; not sent.
    case measured(Measured)

    /// How training for a round ended.
    public struct Finished: Sendable, Equatable {
        /// The round.
        public let round: Int
        /// Whether a new personal state serves; else the guard kept the old one.
        public let adopted: Bool
        /// Optimizer steps.
        public let steps: Int
        /// Of training and measuring.
        public let seconds: Double
        /// The guard's metrics.
        public let before: [String: Double]
        /// The same after training.
        public let after: [String: Double]
        /// L2 norm of the change before clipping.
        public let norm: Double
        /// Whether clipping shortened it.
        public let clipped: Bool
    }

    /// How good shared values are.
    public struct Measured: Sendable, Equatable {
        /// Of the model that is served.
        public let version: Int
        /// Metrics as means.
        public let shared: [String: Double]
        /// What they are means over.
        public let weight: Double
    }
}
