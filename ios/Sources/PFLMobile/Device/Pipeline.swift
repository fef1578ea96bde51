/// Sum and weight of metrics by name.
typealias MetricPairs = [String: (sum: Double, weight: Double)]

/// A finished task.
struct TaskResult {
    /// The update file.
    let update: [UInt8]
    /// Its values, norm, and whether they were clipped.
    let protection: Protected
    /// The report; nil where none is asked for or may be sent.
    let evaluation: EvaluationReport?
    /// The version of the personal state that is to serve now; nil where the old one stays.
    let adopts: Int?
    /// Names of the copies whose change is in the update.
    let copies: [String]
    /// Of the trainer.
    let report: TrainReport
}

/// No update comes of this task: one of the protocol's reasons, and why in words.
struct DeclineTask: Error {
    let reason: DeclineReason
    let why: String

    init(_ reason: DeclineReason, _ why: String) {
        self.reason = reason
        self.why = why
    }
}

/// One task, from the values that were downloaded to an update that may be sent; nothing here uses the network.
///
///     task -> may it be done? -> train by its plan -> guard -> change -> clip, noise -> update file
///
/// What is sent is the change that training made, whatever the guard decided: the guard is about the personal state, which stays
/// here, and an aggregator that got only changes that helped would learn from lucky devices alone. Training that diverged, or that
/// was not done at all, sends nothing.
struct Pipeline {
    /// Checked programs.
    let model: Model
    /// Of the user, oldest first; the newest part is for testing and nothing else.
    let examples: Examples
    /// Where state, counts and checkpoint are.
    let folder: DeviceFolder
    /// What must protect updates.
    var policy = PrivacyPolicy()
    /// Share of the examples to test on.
    var test = 0.2
    /// Steps between checkpoints of training; nil for none.
    var checkpointEvery: Int? = 20
    /// Of the device; nil for the secure source.
    var noise: (any Noise)?

    private var store: PersonalStateStore { folder.personal }

    init(
        _ model: Model, _ examples: Examples, _ folder: DeviceFolder, policy: PrivacyPolicy = PrivacyPolicy(),
        test: Double = 0.2, noise: (any Noise)? = nil
    ) {
        self.model = model
        self.examples = examples
        self.folder = folder
        self.policy = policy
        self.test = test
        self.noise = noise
    }

    /// How many there are to train on, rounded down to two digits, as a check-in tells it.
    func trainingExamples() throws -> Int {
        if examples.size < 2 { return 0 }
        let count = try parts(examples, test: test, most: model.most).train.size
        var unit = 1
        while count / unit >= 100 { unit *= 10 }
        return count / unit * unit
    }

    /// Looks at a task before anything is downloaded for it.
    ///
    /// - Throws: `DeclineTask`: it must not be done, or cannot
    @discardableResult
    func accept(_ task: RoundTask) throws -> (plan: Plan, layout: UpdateLayout) {
        if let why = refusal(task.privacy, task.reports) { throw DeclineTask(.privacy, why) }
        let plan: Plan
        let layout: UpdateLayout
        do {
            plan = try Plan(.object(task.plan))
            try checkSends(plan, model.tensors)
            layout = try UpdateFile.layout(plan, model.tensors)  // never a personal tensor
        } catch let error as PFLError where error.isA(.config) {
            throw DeclineTask(.plan, error.message)
        }
        let same = task.layout.elementsEqual(layout.shapes) { Exact($0.name) == Exact($1.name) && $0.shape == $1.shape }
        if task.layout.isEmpty || !same {
            throw DeclineTask(.plan, "the task asks for other tensors than its plan sends")
        }
        return (plan, layout)
    }

    /// Trains, and makes the update; nil when stopped.
    ///
    /// The store then holds the new personal state, which serves once `store.adopt(done.adopts)` is called: after the update is
    /// safe, so that a crash repeats both or none.
    ///
    /// - Parameter stop: asked after each step
    /// - Throws: `DeclineTask`: there is no update to send; `.engine`: the engine failed; this device cannot train;
    ///   `CancellationError` where the task of Swift is cancelled
    func carryOut(
        _ task: RoundTask, _ sets: [String: TensorSet], stop: () -> Bool = { false },
        onProgress: (TrainingProgress) -> Void = { _ in }
    ) throws -> TaskResult? {
        let (plan, layout) = try accept(task)
        do {
            let cut = try parts(examples, test: test, holdout: plan.holdout, most: model.most)
            let trainer = try LocalTrainer(
                model.session, plan: plan, tensors: model.tensors, initial: model.initial, encoder: model.encoder,
                sets: sets, most: model.work)
            let checkpoints = try checkpointEvery.map {
                try Checkpoints(folder.checkpoint, model: model.id, every: $0)
            }
            let report = try trainer.personalize(
                cut.train, holdout: cut.holdout, store: store, checkpoints: checkpoints, publish: false,
                onProgress: onProgress, stop: stop)
            return report.status == .cancelled ? nil : try finish(task, plan, layout, cut, trainer, report)
        } catch let error as PFLError {
            guard let reason = declineReason(error) else { throw error }
            throw DeclineTask(reason, error.message)
        }
    }

    private func declineReason(_ error: PFLError) -> DeclineReason? {
        if error.isA(.noExamples) { return .noExamples }
        if error.isA(.nonFinite) { return .diverged }
        if error.isA(.config) || error.isA(.tooManySteps) { return .plan }
        if error.isA(.tooSlow) { return .tooSlow }
        return error.isA(.storageFull) ? .storage : nil
    }

    private func finish(
        _ task: RoundTask, _ plan: Plan, _ layout: UpdateLayout, _ cut: Parts, _ trainer: LocalTrainer,
        _ report: TrainReport
    ) throws -> TaskResult {
        let trained = try sendable(task, report)
        let found = try change(
            plan, model.tensors, before: trainer.sets["global"] ?? [:], copiesBefore: trained.copiesBefore,
            after: trained.tensors, copiesAfter: trained.copies)
        let protection = try protect(layout.pack(found), task.privacy, noise: noise)
        let head = UpdateHead(
            task: task.id, round: task.round, version: task.version, examples: countTrained(cut.train),
            steps: report.steps,
            // Where the device hides its update itself, this bit of the update before the noise stays here too.
            clipped: protection.clipped && task.privacy.localNoiseMultiplier == 0,
            reports: task.reports.map { ($0, report.reports[$0] ?? 0) })
        let update = try UpdateFile.encode(head, layout.unpack(protection.flat), layout)
        var evaluation: EvaluationReport?
        if task.evaluate && policy.mayReport(task.privacy) {
            let (shared, own) = try measure(plan, trainer, cut.test, report.state)
            evaluation = evaluationReport(shared, own, adopted: report.status == .adopted)
        }
        return TaskResult(
            update: update, protection: protection, evaluation: evaluation,
            adopts: try adopts(plan, report, trained), copies: plan.uploadCopies, report: report)
    }

    /// What training gave, where something may be sent of it.
    private func sendable(_ task: RoundTask, _ report: TrainReport) throws -> Trained {
        let decision = report.guardReport
        guard let trained = report.trained else {
            let enough = decision?.reason == .goodEnough
            throw DeclineTask(
                enough ? .goodEnough : .noExamples,
                "nothing was trained: \(decision?.reason.rawValue ?? report.status.rawValue)")
        }
        if report.steps == 0 {
            throw DeclineTask(.plan, "the plan trains nothing, so there is nothing to send")
        }
        if let decision, decision.reason == .notFinite {
            throw DeclineTask(.diverged, "\(decision.metric) is not finite after training")
        }
        if let missing = task.reports.first(where: { report.reports[$0] == nil }) {
            throw DeclineTask(.plan, "the plan measures no '\(missing)', which the task asks for")
        }
        return trained
    }

    /// The version that is to serve.
    ///
    /// Copies that are sent (control variates) are kept also where the guard keeps the old state: the aggregator counts on them.
    /// They do not serve, or they would be the guard's business. `takeBack` undoes it.
    private func adopts(_ plan: Plan, _ report: TrainReport, _ trained: Trained) throws -> Int? {
        if report.status == .adopted {
            if let version = report.version { try note(version, plan.serve) }
            return report.version
        }
        let sent = plan.uploadCopies.filter { !plan.serve.names.contains($0) }
        if sent.isEmpty { return nil }
        var state = report.state ?? PersonalState(tensors: [:])
        for copy in sent { state.copies[copy] = trained.copies[copy] }
        let version = try store.write(state)
        if let serve = folder.serves.of(try store.current) { try note(version, serve) }
        return version
    }

    private func note(_ version: Int, _ serve: Serve) throws {
        try folder.serves.put(version, serve, there: try store.numbers())
    }

    /// Why an update must not be sent, with all that was given before; see `PrivacyPolicy.refusal`.
    func refusal(_ privacy: TaskPrivacy, _ reports: [String], counted: Bool = false) -> String? {
        policy.refusal(
            privacy, reports, folder.sent, counted: counted, spent: folder.spent, device: folder.membership?.device)
    }

    /// Sums of the aggregator's values on the test part.
    ///
    /// - Throws: `.noExamples`: there is nothing to measure on
    func measureShared(_ values: TensorSet) throws -> MetricPairs {
        let tested = try parts(examples, test: test, most: model.most).test
        return try metricSums(
            try programs(), model.initial.merging(values) { $1 }, tested, model.encoder, [], known: [])
    }

    private func programs() throws -> Programs { try Programs(model.session, tensors: model.tensors.map(\.name)) }

    /// Sums on the test part: of the values as sent, and of what serves with this personal state. A device without a personal
    /// state of its own serves the values as sent.
    private func measure(
        _ plan: Plan, _ trainer: LocalTrainer, _ tested: Examples, _ state: PersonalState?
    ) throws -> (MetricPairs, MetricPairs) {
        let programs = try programs()
        let shared = try served(plan.serve, Work(tensors: trainer.sets["global"] ?? [:]), trainer.sets)
        let first = try metricSums(programs, shared, tested, model.encoder, [], known: [])
        guard let state, !state.tensors.isEmpty else { return (first, first) }
        let own = try served(plan.serve, Work(state, initial: trainer.initial), trainer.sets)
        return (first, try metricSums(programs, own, tested, model.encoder, state.words, known: []))
    }
}

/// Gives copies the values of an earlier version again, as the aggregator did not get their change.
///
/// - Parameters:
///   - copies: their names; the rest of the personal state stays
///   - before: the version; 0 where there was none
///   - serves: where it is noted what is served of the state, which stays what it is
func takeBack(_ store: PersonalStateStore, _ copies: [String], before: Int, _ serves: ServeNotes) throws {
    guard !copies.isEmpty, var now = try store.load().state else { return }
    var old: [String: TensorSet] = [:]
    if before != 0 {
        do {
            old = try store.read(before).copies
        } catch let error as PFLError where error.isA(.state) {
            old = [:]  // the version is gone: without a copy the plan begins from zero
        }
    }
    for copy in copies { now.copies[copy] = old[copy] }
    try store.hold {
        let serve = serves.of(try store.current)
        let version = try store.write(now)
        if let serve { try serves.put(version, serve, there: try store.numbers()) }
        try store.adopt(version)
    }
}

/// The report of two measurements; nil where no metric is finite in both. Labels are counted whole, and at least one: where examples
/// have weights their sum may be anything.
func evaluationReport(_ shared: MetricPairs, _ own: MetricPairs, adopted: Bool) -> EvaluationReport? {
    let names = shared.keys.filter { name in
        [shared[name], own[name]].allSatisfy { $0.map { $0.sum.isFinite && $0.weight > 0 } ?? false }
    }
    if names.isEmpty { return nil }
    func sums(_ of: MetricPairs) -> [String: MetricSum] {
        of.filter { names.contains($0.key) }.mapValues { whole($0.sum, $0.weight) }
    }
    return EvaluationReport(global: sums(shared), personalized: sums(own), adopted: adopted)
}

private func whole(_ total: Double, _ weight: Double) -> MetricSum {
    let labels = max(weight.rounded(.toNearestOrEven), 1)
    return MetricSum(sum: labels == weight ? total : total / weight * labels, weight: labels)
}

private func countTrained(_ examples: Examples) -> Int {
    guard case .arrays(let rows) = examples else { return examples.size }
    let weight = weights(rows).values
    let width = examples.size == 0 ? 1 : weight.count / examples.size
    return (0..<examples.size).count { row in
        weight[row * width..<(row + 1) * width].reduce(0) { $0 + Double($1) } > 0
    }
}
