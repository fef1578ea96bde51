/// What became of an example that was to be remembered.
public enum RememberResult: Sendable, Equatable {
    /// It is kept; the id forgets it again.
    case kept(id: Int)
    /// It is not kept, and nothing of it is.
    case refused(Reason)

    /// Why an example is not kept.
    public enum Reason: Sendable, CaseIterable {
        /// It holds a word that is blocked, or that the user wants forgotten.
        case blocked
        /// There is nothing in it to learn from.
        case empty
        /// The user paused learning.
        case paused
        /// The disk is full, or the limits leave no place for it.
        case storageFull
    }
}

/// How `PersonalModel.personalize` ended.
public enum PersonalizeResult: Sendable {
    /// What was learned is better on the user's own newest examples, and serves now.
    case adopted(UserResult)
    /// The old state serves on: what was learned is not better, or the model is good enough already; `report.guardReport` says
    /// which.
    case kept(UserResult)
    /// There are too few examples to learn and to measure: so many.
    case notEnoughExamples(have: Int)
    /// The user paused learning.
    case paused
    /// It was stopped by pause, forget, revert or erase. Where the examples are still there, the next call goes on from a
    /// checkpoint.
    case cancelled
    /// It could not be done; the old state serves on.
    case failed(PFLError)
}

/// The last training that came to an end, as it is kept for a status screen.
public struct LastTraining: Sendable, Equatable {
    /// Seconds since 1970.
    public let at: Double
    /// Whether what was learned was adopted.
    public let adopted: Bool
    /// Of the personal state that served from then on; 0 for the shipped values.
    public let version: Int
    /// Metrics on the newest examples with the state that served until then; recalls are fractions from 0 to 1.
    public let before: [String: Double]
    /// The same with the state that served from then on.
    public let after: [String: Double]
    /// Optimizer steps.
    public let steps: Int
    /// How many there were to train on, for the guard, and to test on together.
    public let examples: Int
}

/// What a status screen shows.
public struct ModelStatus: Sendable, Equatable {
    /// Which bundle is open.
    public let model: ModelId
    /// Of the personal state that serves; 0 for the shipped values.
    public let version: Int
    /// How many are kept.
    public let examples: Int
    /// How many of the user's own words have a slot.
    public let words: Int
    /// Whether the user paused learning.
    public let paused: Bool
    /// Whether training is under way.
    public let training: Bool
    /// Whether the engine's memory is in use.
    public let engineOpen: Bool
    /// Nil before the first training.
    public let last: LastTraining?
    /// What had to be repaired when the state was loaded.
    public let warnings: [StateWarning]
    /// What was given to federations; nil where the model never took part.
    public let rounds: RoundsStatus?
}

/// A label of a classifier.
public struct Label: Sendable, Equatable {
    /// Its number.
    public let label: Int
    /// From 0 to 1.
    public let probability: Double
}

/// What `predict` gave for one example.
public struct Prediction: Sendable {
    /// Of the program, by name.
    public let outputs: TensorSet

    /// Labels of a classifier, the likeliest first; empty for another task.
    public var labels: [Label] {
        guard let ids = outputs["top_ids"]?.long, let probabilities = outputs["top_probs"]?.float else { return [] }
        return zip(ids.values, probabilities.values).map { Label(label: Int($0), probability: Double($1)) }
    }

    /// The numbers of a regression, or of a task whose `predict` gives `value`; nil for another task.
    public var value: [Float]? { outputs["value"]?.float?.values }
}
