/// What training on a device must not exceed; nil for no limit.
public struct Most: Sendable, Equatable {
    /// Optimizer steps of the whole plan.
    public var steps: Int?
    /// Seconds of one call of `LocalTrainer.personalize`, up to the step after which it ends.
    public var seconds: Double?

    /// Limits.
    public init(steps: Int? = nil, seconds: Double? = nil) {
        self.steps = steps
        self.seconds = seconds
    }
}

/// Trains a personal state by a plan, on any engine, and adopts it only if the guard agrees. Killed or cancelled at any moment,
/// the last good state stays. With checkpoints a later call with the same plan and examples goes on from the last one, bit for
/// bit as if never stopped; without, or with other examples, training starts again from the last good state.
///
/// A call computes where it is called, for seconds or minutes: call it from a task of its own, not from the main actor.
public struct LocalTrainer: Sendable {
    private let plan: Plan
    private let tensors: [DeviceTensor]
    private let encoder: (any ExampleEncoder)?
    private let most: Most
    let initial: TensorSet
    /// The sets that the plan reads, `initial` and `global` among them.
    let sets: [String: TensorSet]
    private let session: any EngineSession

    /// Measures the time of steps, in seconds; tests set their own.
    var now: @Sendable () -> Double = {
        let since = ContinuousClock.now - LocalTrainer.origin
        return Double(since.components.seconds) + Double(since.components.attoseconds) * 1e-18
    }

    private static let origin = ContinuousClock.now

    /// What predictions use of the state that training begins with, where a task's plan made it; nil for what the plan says.
    var servesBefore: Serve?

    /// A trainer.
    ///
    /// - Parameters:
    ///   - session: engine with `gradients` and `evaluate`
    ///   - plan: what to do
    ///   - tensors: the manifest's device tensors
    ///   - initial: their shipped values
    ///   - encoder: for examples given as texts
    ///   - sets: arrays that the plan names: `global` (the aggregator's latest values), controls, masks, ...
    ///   - most: what it must not exceed, as the bundle says
    /// - Throws: `.config`: the plan does not fit the tensors; `.tensorMismatch`: the initial values do not fit the tensors
    public init(
        _ session: any EngineSession, plan: Plan, tensors: [DeviceTensor], initial: TensorSet,
        encoder: (any ExampleEncoder)? = nil, sets: [String: TensorSet] = [:], most: Most = Most()
    ) throws {
        var shipped: TensorSet = [:]
        for tensor in tensors {
            let value = initial[tensor.name]
            guard let value, value.shape == tensor.shape, value.dtype == tensor.dtype else {
                throw PFLError(
                    .tensorMismatch,
                    "the initial value of '\(tensor.name)' is \(value?.signature ?? "missing"), not \(tensor.signature)",
                    mend: "take the initial values from the same bundle as the table of tensors")
            }
            shipped[tensor.name] = value
        }
        self.session = session
        self.plan = plan
        self.tensors = tensors
        self.encoder = encoder
        self.most = most
        self.initial = shipped
        var all = sets
        if all["initial"] == nil { all["initial"] = shipped }
        all["global"] = shipped.merging(sets["global"] ?? [:]) { $1 }
        self.sets = all
        _ = try Programs(session, tensors: shipped.keys)
        try checkPlan(plan, tensors, sets: all.keys, copies: [])
    }

    private func programs() throws -> Programs { try Programs(session, tensors: initial.keys) }

    /// Metrics of a state (nil: the shipped values) on examples, as the guard measures them. With texts, labels outside the
    /// vocabulary are left out where the guard compares a loss, and count as misses where it compares a recall.
    ///
    /// - Throws: `.noExamples`: nothing in the examples counts
    public func evaluate(_ examples: Examples, state: PersonalState? = nil) throws -> [String: Double] {
        let work = Work(state, initial: initial)
        let run = Run(self, try programs(), encoder)
        return try run.measure(try run.heldOut(examples, work.words), work)
    }

    /// Metrics of a state (nil: the shipped values) on examples, whatever the guard compares; see `metricSums`.
    ///
    /// - Parameters:
    ///   - known: slot words that were there when a comparison began; by default the state's own
    ///   - serve: what predictions use of the state; by default what the plan says
    /// - Throws: `.noExamples`: nothing in the examples counts
    func measure(
        _ examples: Examples, _ state: PersonalState?, known: [String]? = nil, serve: Serve? = nil
    ) throws -> [String: Double] {
        let work = Work(state, initial: initial)
        let sums = try metricSums(
            try programs(), try served(serve ?? plan.serve, work, sets), examples, encoder, work.words,
            known: known ?? state?.words ?? [])
        return sums.mapValues { $0.sum / $0.weight }
    }

    /// Trains, measures, and adopts the result if it is better. A cancelled task stops within one step, after a checkpoint.
    ///
    /// - Parameters:
    ///   - train: oldest first
    ///   - holdout: the newest examples, never trained on; memorized after adoption if the plan asks for it
    ///   - state: from which training goes on, where there is no store; nil for the shipped values
    ///   - store: training goes on from its current version, and it gets the result
    ///   - checkpoints: where training under way is kept; needs a store
    ///   - publish: false writes an adopted state into the store, but leaves the old one current
    ///   - onProgress: called after each step
    ///   - stop: asked after each step; true ends training with `.cancelled`
    /// - Throws: `.nonFinite`: training diverged; `.noExamples`: no training row has a positive weight; `.tooManySteps`,
    ///   `.tooSlow`: the bundle's limits. The old state stays. `CancellationError` where the task is cancelled
    public func personalize(
        _ train: Examples, holdout: Examples, state: PersonalState? = nil, store: (any StateStore)? = nil,
        checkpoints: Checkpoints? = nil, publish: Bool = true,
        onProgress: (TrainingProgress) throws -> Void = { _ in }, stop: () -> Bool = { false }
    ) throws -> TrainReport {
        try Task.checkCancellation()
        func run(_ loaded: LoadedState, _ encoder: (any ExampleEncoder)?) throws -> TrainReport {
            try withoutActuallyEscaping(stop) { stop in
                try withoutActuallyEscaping(onProgress) { onProgress in
                    let run = Run(self, try programs(), encoder)
                    run.store = store
                    run.checkpoints = store == nil ? nil : checkpoints
                    run.publish = publish
                    run.loaded = loaded
                    run.stop = stop
                    run.onProgress = onProgress
                    defer {
                        run.stop = { false }
                        run.onProgress = { _ in }
                    }
                    return try run.run(train, holdout)
                }
            }
        }
        let report: TrainReport
        if let store {
            report = try store.hold {
                try run(try store.load(), try encoder?.withBlocked(try store.blocked()))
            }
        } else {
            report = try run(LoadedState(state: state, version: 0), encoder)
        }
        if report.status == .cancelled { try Task.checkCancellation() }
        return report
    }

    /// One call of `personalize`.
    private final class Run {
        private let trainer: LocalTrainer
        private let programs: Programs
        private let encoder: (any ExampleEncoder)?
        var store: (any StateStore)?
        var checkpoints: Checkpoints?
        var publish = true
        var loaded = LoadedState(state: nil, version: 0)
        var stop: () -> Bool = { false }
        var onProgress: (TrainingProgress) throws -> Void = { _ in }

        private let began: Double
        private var times: [Double] = []
        private var notes: [String] = []
        private var resumedAt: Int?
        private var before: [String: Double] = [:]

        init(_ trainer: LocalTrainer, _ programs: Programs, _ encoder: (any ExampleEncoder)?) {
            self.trainer = trainer
            self.programs = programs
            self.encoder = encoder
            began = trainer.now()
        }

        private var plan: Plan { trainer.plan }
        private var seconds: Double { trainer.now() - began }

        func measure(_ rows: Rows, _ work: Work, _ serve: Serve? = nil) throws -> [String: Double] {
            try programs.evaluate(rows, try served(serve ?? plan.serve, work, trainer.sets))
        }

        func heldOut(_ examples: Examples, _ words: [String]) throws -> Rows {
            try encode(examples, words, dropUnknown: plan.guard.lowerIsBetter, "holdout")
        }

        private func encode(_ examples: Examples, _ words: [String], dropUnknown: Bool, _ what: String) throws -> Rows {
            let rows: Rows
            switch examples {
            case .arrays(let arrays): rows = arrays
            case .texts(let texts):
                guard let encoder else {
                    throw PFLError(
                        .config, "the \(what) examples are texts but there is no encoder", mend: "give an encoder")
                }
                rows = try encoder.withWords(words).encode(texts, dropUnknown: dropUnknown)
            }
            try checkRows(rows, "\(what) rows")
            try programs.check(rows)
            return rows
        }

        private func metric(_ metrics: [String: Double]) throws -> Double {
            guard let value = metrics[plan.guard.metric] else {
                throw PFLError(
                    .config, "the guard's metric '\(plan.guard.metric)' is not one that the bundle measures",
                    mend: "use one of \(metrics.keys.sorted().joined(separator: ", "))")
            }
            return value
        }

        func run(_ train: Examples, _ holdout: Examples) throws -> TrainReport {
            let old = Work(loaded.state, initial: trainer.initial)
            let rows = try heldOut(holdout, old.words)
            var value: Double?
            var shipped: Double?
            if weights(rows).values.contains(where: { $0 > 0 }) {
                before = try measure(rows, old, trainer.servesBefore)
                value = try metric(before)
                shipped = plan.guard.appeal == nil ? value : try shippedMetric(holdout)
            }
            if let stop = plan.guard.beforeTraining(value, shipped: shipped, examples: holdout.size) {
                return report(.skipped, stop)
            }
            let (done, finished) = try trained(train, old)
            var work = finished
            if !done { return report(.cancelled, nil, work) }
            let after = try measure(try heldOutAfter(holdout, rows, work), work)
            let decision = plan.guard.decide(
                before: try metric(before), after: try metric(after), examples: holdout.size)
            let trained = Trained(
                tensors: work.tensors, copies: work.copies, copiesBefore: loaded.state?.copies ?? [:])
            if !decision.adopted {
                try checkpoints?.discard()
                return report(.kept, decision, work, after, trained: trained)
            }
            try rememberHoldout(train, holdout, &work)
            let state = PersonalState(
                tensors: work.tensors, copies: keptCopies(plan, work), words: work.words, metrics: after)
            let version = try store.map { publish ? try $0.save(state) : try $0.write(state) }
            try checkpoints?.discard()
            return report(.adopted, decision, work, after, adopted: state, version: version, trained: trained)
        }

        private func shippedMetric(_ holdout: Examples) throws -> Double {
            let work = Work(tensors: trainer.sets["global"] ?? [:])
            return try metric(try measure(try heldOut(holdout, []), work))
        }

        /// Whether training ran to its end (false: stopped), and what it gave.
        private func trained(_ train: Examples, _ old: Work) throws -> (Bool, Work) {
            let start = plan.start == .current ? old : Work(nil, initial: trainer.initial)
            var rows = try encode(train, start.words, dropUnknown: true, "training")
            var texts: [String]?
            if case .texts(let given) = train { texts = given }
            let job =
                checkpoints?.job(
                    plan, version: loaded.version, rows: rows, texts: texts?.joined(separator: "\0") ?? "",
                    sets: trainer.sets) ?? ""
            var work = try resumed(job) ?? start
            if work.words.map(Exact.init) != start.words.map(Exact.init) {
                rows = try encode(train, work.words, dropUnknown: true, "training")
            }
            let runner = PhaseRunner(
                plan, programs, trainer.tensors, trainer.sets, rows, encoder: try encoder?.withWords(work.words),
                texts: texts, now: trainer.now
            ) { work, of, loss, took in try self.afterStep(work, of, loss, took, job) }
            try checkSteps(runner.totalSteps)
            if stopping { return (false, work) }
            do {
                let done = try runner.run(&work)
                return (done, work)
            } catch let error as PFLError where error.code == .nonFinite {
                try checkpoints?.discard()  // going on from it would only diverge again
                throw error
            }
        }

        private var stopping: Bool { Task.isCancelled || stop() }

        private func afterStep(_ work: Work, _ of: Int, _ loss: Double, _ took: Double, _ job: String) throws -> Bool {
            times.append(took)
            try checkSteps(of)  // words that got a slot may have brought more rows
            try onProgress(TrainingProgress(step: work.done, of: of, loss: loss, seconds: seconds))
            let stopping = stopping
            let late = work.done < of && trainer.most.seconds.map { seconds > $0 } ?? false
            if let checkpoints, stopping || late || work.done % checkpoints.every == 0 {
                try checkpoints.save(work, job: job)
            }
            if late && !stopping {
                throw PFLError(
                    .tooSlow,
                    "training was stopped at step \(work.done) of \(of): it took longer than the "
                        + "\(general(trainer.most.seconds ?? 0)) seconds that the bundle allows",
                    mend: "go on later where the state is kept in a folder, or take another engine or a shorter plan")
            }
            return !stopping
        }

        private func checkSteps(_ steps: Int) throws {
            if let most = trainer.most.steps, steps > most {
                throw PFLError(
                    .tooManySteps, "the plan makes \(steps) steps on these examples, the bundle allows \(most)",
                    mend: "give the plan's phases max_steps or fewer epochs, or export the bundle with another limit")
            }
        }

        /// Runs what remembers examples again with all of them, where the plan asks for it.
        private func rememberHoldout(_ train: Examples, _ holdout: Examples, _ work: inout Work) throws {
            if !plan.rememberHoldout || !plan.distinctSteps.contains(where: { $0.phase.remembers }) { return }
            let older = try encode(train, work.words, dropUnknown: true, "training")
            let newer = try encode(holdout, work.words, dropUnknown: true, "training")
            let runner = PhaseRunner(plan, programs, trainer.tensors, trainer.sets, joinRows(older, newer))
            try runner.remember(&work)
        }

        private func resumed(_ job: String) throws -> Work? {
            guard let checkpoints else { return nil }
            switch checkpoints.load(job: job) {
            case .none: return nil
            case .work(let work):
                resumedAt = work.done
                return work
            case .unusable(let why):
                notes.append(why)
                try checkpoints.discard()
                return nil
            }
        }

        /// The held-out rows for the trained state. A loss is compared on the same labels as before, so words that have just
        /// got a slot do not count.
        private func heldOutAfter(_ holdout: Examples, _ before: Rows, _ work: Work) throws -> Rows {
            if case .arrays = holdout { return before }
            var rows = try heldOut(holdout, work.words)
            if !plan.guard.lowerIsBetter { return rows }
            if weights(rows).shape != weights(before).shape {
                throw PFLError(
                    .training, "the encoder gives other rows once slots have words",
                    mend: "use an encoder of fixed rows")
            }
            rows["weight"] = before["weight"]
            return rows
        }

        private func report(
            _ status: Status, _ decision: GuardReport?, _ work: Work? = nil, _ after: [String: Double] = [:],
            adopted: PersonalState? = nil, version: Int? = nil, trained: Trained? = nil
        ) -> TrainReport {
            let state = adopted ?? loaded.state
            let sorted = times.sorted()
            let median = sorted.isEmpty ? nil : (sorted[(sorted.count - 1) / 2] + sorted[sorted.count / 2]) / 2
            return TrainReport(
                status: status, guardReport: decision, state: state,
                version: version ?? (store == nil ? nil : loaded.version), before: before, after: after,
                steps: work?.done ?? 0, losses: work?.losses ?? [], seconds: seconds,
                msPerStep: median.map { $0 * 1000 },
                words: state?.words ?? [], reports: work?.reports ?? [:], resumedAt: resumedAt,
                warnings: loaded.warnings,
                notes: notes, trained: trained)
        }
    }
}
