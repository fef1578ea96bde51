/// What personalization did for the user. Recalls are fractions from 0 to 1, words outside the vocabulary are misses, and the loss
/// is the mean over the labels that were in the vocabulary before, so that it is of the same labels before and after.
public struct UserResult: Sendable {
    /// How many examples were trained on.
    public let train: Int
    /// How many the guard measured.
    public let holdout: Int
    /// How many the metrics below are of; the newest, which neither training nor the guard saw.
    public let test: Int
    /// How many there were beyond the newest that the bundle's limit keeps.
    public let older: Int
    /// Metrics with the state that served until now.
    public let before: [String: Double]
    /// Metrics with the state that serves now; equal to `before` unless adopted.
    public let after: [String: Double]
    /// The trainer's own report.
    public let report: TrainReport
}

/// Personalizes the user of one loaded bundle and measures before and after; the bundle is read and checked once.
public struct Evaluator: Sendable {
    private let bundle: ModelBundle
    /// How close the engine is to PyTorch on the golden batch.
    public let golden: GoldenReport
    /// What the bundle's author wants done in training.
    public let plan: Plan
    /// Trains by that plan within the bundle's limits.
    public private(set) var trainer: LocalTrainer

    /// An evaluator.
    ///
    /// - Parameters:
    ///   - session: the bundle's programs on an engine
    ///   - sets: arrays by name that the plan needs from the host
    /// - Throws: `.engineMismatch`: the engine gives other numbers on the golden batch than PyTorch, and no training is done then;
    ///   `.config`: the bundle's plan does not fit it; `.data`: its tokenizer cannot be read
    public init(_ bundle: ModelBundle, _ session: any EngineSession, sets: [String: TensorSet] = [:]) throws {
        self.bundle = bundle
        golden = try goldenCheck(bundle, session)
        try golden.require()
        plan = try Plan(json: bundle.planJSON())
        let limits = bundle.manifest.limits
        trainer = try LocalTrainer(
            session, plan: plan, tensors: bundle.manifest.tensors, initial: bundle.values(),
            encoder: textEncoder(bundle).map { TrainingEncoder($0) }, sets: sets,
            most: Most(steps: limits.maxSteps, seconds: limits.maxSeconds.map(Double.init)))
    }

    /// The same with a state to begin with of which predictions use something else than the plan says, as a task's plan made it.
    func beginning(with serve: Serve?) -> Evaluator {
        var other = self
        other.trainer.servesBefore = serve
        return other
    }

    /// Metrics of a state on examples.
    ///
    /// - Parameter state: nil for the shipped values
    /// - Throws: `.noExamples`: nothing in the examples counts
    public func measure(_ examples: Examples, state: PersonalState? = nil) throws -> [String: Double] {
        try trainer.measure(examples, state)
    }

    /// Cuts the examples by age, trains, and measures what it brought on the newest; see `LocalTrainer.personalize`.
    ///
    /// - Parameters:
    ///   - examples: the user's, oldest first; at least 3
    ///   - test: share of the examples, the newest, to measure on; never trained on
    /// - Throws: `.noExamples`: too few examples, or none of them counts
    public func personalize(
        _ examples: Examples, test: Double = 0.2, state: PersonalState? = nil, store: (any StateStore)? = nil,
        checkpoints: Checkpoints? = nil, onProgress: (TrainingProgress) throws -> Void = { _ in },
        stop: () -> Bool = { false }
    ) throws -> UserResult {
        let parts = try parts(
            examples, test: test, holdout: plan.holdout, most: bundle.manifest.limits.maxExamples)
        let old = try store.map { try $0.load().state } ?? state
        let before = try trainer.measure(parts.test, old, serve: trainer.servesBefore)
        let report = try trainer.personalize(
            parts.train, holdout: parts.holdout, state: state, store: store, checkpoints: checkpoints,
            onProgress: onProgress, stop: stop)
        let after =
            report.status == .adopted
            ? try trainer.measure(parts.test, report.state, known: old?.words ?? []) : before
        return UserResult(
            train: parts.train.size, holdout: parts.holdout.size, test: parts.test.size, older: parts.older,
            before: before, after: after, report: report)
    }
}
