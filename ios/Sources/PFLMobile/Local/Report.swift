/// After each optimizer step.
public struct TrainingProgress: Sendable, Equatable {
    /// Steps done, from 1.
    public let step: Int
    /// Steps of the whole plan.
    public let of: Int
    /// Mean loss of this step's batch, before the step.
    public let loss: Double
    /// Since training began.
    public let seconds: Double
}

/// What training gave, whatever the guard decided; a device sends its change.
public struct Trained: Sendable {
    /// Device tensors after training.
    public let tensors: TensorSet
    /// Copies after training, also those that the personal state does not keep.
    public let copies: [String: TensorSet]
    /// Copies before it; those that were not there are missing.
    public let copiesBefore: [String: TensorSet]
}

/// How a run of training ended.
public enum Status: String, Sendable {
    /// The trained state serves now.
    case adopted
    /// The guard kept the old state.
    case kept
    /// Nothing was trained.
    case skipped
    /// It was stopped; with a checkpoint it goes on from there later.
    case cancelled
}

/// The result of `LocalTrainer.personalize`.
public struct TrainReport: Sendable {
    /// How it ended.
    public let status: Status
    /// The decision; nil when cancelled before it.
    public let guardReport: GuardReport?
    /// What serves now; nil is the shipped values.
    public let state: PersonalState?
    /// Its number in the store; nil without a store. Where it was not to be published, an adopted state is written but does
    /// not serve yet.
    public let version: Int?
    /// Metrics on the held-out examples with the state that served until now.
    public let before: [String: Double]
    /// The same with the trained state; empty when nothing was trained.
    public let after: [String: Double]
    /// Optimizer steps of this job, those before a resume included.
    public let steps: Int
    /// Of each step.
    public let losses: [Double]
    /// Training and evaluation in this call.
    public let seconds: Double
    /// Median over the steps of this call; nil when there was none.
    public let msPerStep: Double?
    /// Slot words after training.
    public let words: [String]
    /// What measure and choose phases found; sent beside the update.
    public let reports: [String: Double]
    /// Steps that a checkpoint had already done; nil when training began afresh.
    public let resumedAt: Int?
    /// What loading the state had to repair.
    public let warnings: [StateWarning]
    /// Other things worth knowing, in plain words.
    public let notes: [String]
    /// What training gave; nil when it was skipped or cancelled.
    public let trained: Trained?
}
