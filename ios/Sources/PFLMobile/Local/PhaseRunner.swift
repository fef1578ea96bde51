/// Runs the phases of a plan on a working copy of the state.
final class PhaseRunner {
    /// Told of each step: the work, all steps of the plan, the mean loss and seconds; false stops the run.
    typealias AfterStep = (_ work: Work, _ of: Int, _ loss: Double, _ seconds: Double) throws -> Bool

    private let plan: Plan
    private let programs: Programs
    private let table: [DeviceTensor]
    private let sets: [String: TensorSet]
    private var rows: Rows {
        didSet { counted = nil }
    }
    private var encoder: (any ExampleEncoder)?
    private let texts: [String]?
    private let now: () -> Double
    private let afterStep: AfterStep
    private let steps: [Step]
    private var counted: Int?

    /// - Parameters:
    ///   - table: the device tensors
    ///   - sets: named sets that the host gives
    ///   - rows: the training examples
    ///   - encoder: for the texts, with the words that have a slot
    ///   - now: seconds, of any beginning
    init(
        _ plan: Plan, _ programs: Programs, _ table: [DeviceTensor], _ sets: [String: TensorSet], _ rows: Rows,
        encoder: (any ExampleEncoder)? = nil, texts: [String]? = nil, now: @escaping () -> Double = { 0 },
        afterStep: @escaping AfterStep = { _, _, _, _ in true }
    ) {
        self.plan = plan
        self.programs = programs
        self.table = table
        self.sets = sets
        self.rows = rows
        self.encoder = encoder
        self.texts = texts
        self.now = now
        self.afterStep = afterStep
        steps = plan.steps
    }

    /// Optimizer steps of the whole plan on the present rows; 0 when no row counts.
    var totalSteps: Int {
        if let counted { return counted }
        let count = counting(weights(rows)).count
        let total = steps.reduce(0) {
            saturatedSum($0, $1.phase.optimizerSteps(rows: count, batch: programs.batchSize))
        }
        counted = total
        return total
    }

    /// Runs the phases from where the work stands; false if stopped.
    func run(_ work: inout Work) throws -> Bool {
        for (name, start) in plan.copies {
            let source = try work.named(start.of, sets)
            var fresh: TensorSet = [:]
            for tensor in try select(start.group, table) {
                guard let value = source[tensor] else {
                    throw PFLError(
                        .tensorMismatch, "\(start.of) has no tensor '\(tensor)'",
                        mend: "give a value for every trained tensor")
                }
                fresh[tensor] = value
            }
            work.copies[name] = fresh.merging(work.copies[name] ?? [:]) { $1 }
        }
        while work.phase < steps.count {
            if try !run(steps[work.phase], &work) { return false }
            work.phase += 1
            work.step = 0
            work.optimizer = OptimizerState()
            work.start = [:]
        }
        return true
    }

    /// Runs again the phases that remember examples: the plan's `remember_holdout`.
    func remember(_ work: inout Work) throws {
        for step in plan.distinctSteps where step.phase.remembers { _ = try run(step, &work) }
    }

    /// Runs one phase, a train phase from where the work's step stands; false if stopped.
    private func run(_ step: Step, _ work: inout Work) throws -> Bool {
        switch step {
        case .train(let phase): return try train(phase, &work)
        case .move(let phase):
            let x = try floats(work.named(phase.moves, sets), select(phase.group, table), phase.moves)
            work.store(phase.moves, try toward(x, try work.named(phase.toward, sets), phase.rate))
        case .combine(let phase):
            let terms = try phase.terms.map { term in
                (set: try work.named(term.of, sets), times: term.per == .rate ? term.times / work.rate : term.times)
            }
            let like = try floats(work.tensors, select(phase.group, table), "theta")
            work.store(phase.makes, try PFLMobile.combine(like, terms))
        case .measure(let phase): work.reports[phase.report] = try measure(phase.at, phase.metric, work)
        case .choose(let phase): try choose(phase, &work)
        case .assignSlots(let phase): try assign(phase, &work)
        case .memorize(let phase): try memorize(phase, &work)
        }
        return true
    }

    private func train(_ phase: TrainPhase, _ work: inout Work) throws -> Bool {
        let group = try select(phase.group, table)
        let rows = try weightedRows(rows, "training rows")
        let steps = phase.optimizerSteps(rows: count(rows), batch: programs.batchSize)
        if work.step == 0 { try begin(phase, group, &work) }
        var batches = GradientBatches(phase, rows, programs.batchSize, seed: UInt64(plan.seed), index: work.phase)
        batches.skip(work.step * phase.gradientsPerStep)
        let fixed = try fixedSets(phase, work)
        while work.step < steps {
            let began = now()
            let share = phase.schedule == .linear ? 1 - Double(work.step) / Double(steps) : 1
            let loss = try descend(phase, group, &batches, fixed, share, &work)
            work.step += 1
            work.done += 1
            work.losses.append(loss)
            if try !afterStep(work, totalSteps, loss, now() - began) { return false }
        }
        return true
    }

    private func begin(_ phase: TrainPhase, _ group: [String], _ work: inout Work) throws {
        // A copy is made from theta; one from an earlier run may hold fewer tensors than this group.
        let own = phase.trains == "theta" ? [:] : work.copies[phase.trains] ?? [:]
        let now = try floats(work.tensors.merging(own) { $1 }, group, phase.trains)
        work.start = try phase.startFrom.map { try toward(now, try work.named($0, sets), 1) } ?? now
        work.rate = 0
        work.store(phase.trains, work.start)
    }

    /// The sets that the phase's steps read and do not change, by name.
    private func fixedSets(_ phase: TrainPhase, _ work: Work) throws -> [String: TensorSet] {
        var found: [String: TensorSet] = [:]
        for name in phase.stepReads where name != phase.trains { found[name] = try work.named(name, sets) }
        return found
    }

    /// One step; returns the mean loss before it. The learning rate is multiplied by `share`.
    private func descend(
        _ phase: TrainPhase, _ group: [String], _ batches: inout GradientBatches, _ fixed: [String: TensorSet],
        _ share: Double, _ work: inout Work
    ) throws -> Double {
        func set(_ name: String) throws -> TensorSet { try fixed[name] ?? work.named(name, sets) }
        let (loss, gradient) = try stepGradient(phase, group, &batches, set, work)
        let lr = phase.optimizer.lr * share
        work.rate += lr
        var terms = Terms(clipNorm: phase.clip, implicit: phase.prox == .implicit)
        terms.anchor = try phase.anchor.map(set)
        switch phase.mu {
        case .number(let value): terms.mu = value
        case .named(let name): terms.muSet = try set(name)
        }
        terms.control = try phase.control.map(set)
        terms.mask = try phase.mask.map(set)
        var optimizer = OptimizerState()
        swap(&optimizer, &work.optimizer)  // so that its arrays are held once
        var theta = work.takeOut(phase.trains, group)
        defer {
            work.optimizer = optimizer
            work.store(phase.trains, theta)
        }
        try update(&theta, gradient, phase.optimizer, &optimizer, lr: lr, terms: terms)
        return loss
    }

    private func stepGradient(
        _ phase: TrainPhase, _ group: [String], _ batches: inout GradientBatches, _ set: (String) throws -> TensorSet,
        _ work: Work
    ) throws -> (Double, [String: FloatTensor]) {
        let theta = try floats(work.named(phase.trains, sets), group, phase.trains)
        let point: [String: FloatTensor]
        switch phase.evaluateAt {
        case .theta: point = theta
        case .mix(let other, let alpha): point = try mix(theta, try set(other), alpha)
        case .lookahead(let step):
            point = try minus(theta, try gradient(at: theta, batches.next(), work).1, step)
        }
        return try gradient(at: point, batches.next(), work)
    }

    /// Gradient of the mean loss over batches together, and that loss. Gradient sums are added in float32 in batch order, loss
    /// and weight in float64.
    private func gradient(
        at point: [String: FloatTensor], _ batches: [Rows], _ work: Work
    ) throws -> (Double, [String: FloatTensor]) {
        var loss = 0.0
        var weight = 0.0
        var sums: [String: FloatTensor] = [:]
        let values = point.mapValues(Tensor.float)
        for batch in batches {
            let out = try programs.gradients(batch, at: values, work.tensors)
            loss += try scalar(out, "loss_sum")
            weight += try scalar(out, "weight_sum")
            for (name, x) in point {
                let found = try gradientOf(out["\(gradientPrefix)\(name)"], name, x)
                if sums[name] == nil {
                    sums[name] = found
                } else {
                    for i in found.values.indices { sums[name]?.values[i] += found.values[i] }
                }
            }
        }
        return (loss / weight, try meanGradients(sums, weight: weight))
    }

    private func gradientOf(_ output: Tensor?, _ name: String, _ x: FloatTensor) throws -> FloatTensor {
        guard let float = output?.float, float.size == x.size else {
            throw PFLError(
                .tensorMismatch, "the program gives \(output?.signature ?? "nothing") as the gradient of '\(name)'",
                mend: "export the bundle again")
        }
        return FloatTensor(float.values, x.shape)
    }

    /// A metric of the training rows, gradient-trained tensors taken from a set.
    private func measure(_ at: String, _ metric: String, _ work: Work) throws -> Double {
        let values = try work.named(at, sets)
        var tensors = work.tensors
        for tensor in table where tensor.update == .gradient {
            if let value = values[tensor.name] { tensors[tensor.name] = value }
        }
        let metrics = try programs.evaluate(try weightedRows(rows, "training rows"), tensors)
        guard let found = metrics[metric] else {
            throw PFLError(
                .unknownName, "the plan measures '\(metric)', which the bundle does not",
                mend: near(metric, metrics.keys))
        }
        if !found.isFinite {
            throw PFLError(
                .nonFinite, "the \(metric) of the set '\(at)' is \(found)",
                mend: "check the examples and that set; the state before training is kept")
        }
        return found
    }

    private func choose(_ phase: ChoosePhase, _ work: inout Work) throws {
        var best: (index: Int, loss: Double)?
        for (index, name) in phase.among.enumerated() {
            let loss = try measure(name, "loss", work)
            if best.map({ loss < $0.loss }) ?? true { best = (index, loss) }
        }
        guard let best else { return }
        let now = try floats(work.tensors, select(phase.group, table), "theta")
        work.store("theta", try toward(now, try work.named(phase.among[best.index], sets), 1))
        work.reports[phase.report] = Double(best.index)
    }

    private func assign(_ phase: AssignSlotsPhase, _ work: inout Work) throws {
        guard let encoder, let texts else {
            throw PFLError(
                .config, "the plan assigns vocabulary slots but the examples are arrays",
                mend: "give texts and an encoder, or leave the assign_slots phase out")
        }
        let before = try encoder.withWords(work.words)
        for tensor in phase.own(table) {
            let size = tensor.shape.first ?? 0
            work.words = Array(try before.chooseWords(texts, minCount: phase.minCount).prefix(size))
            work.tensors[tensor.name] = .float(active(work.words.count, size))
        }
        let now = try before.withWords(work.words)
        self.encoder = now
        rows = try now.encode(texts, dropUnknown: true)
    }

    private func memorize(_ phase: MemorizePhase, _ work: inout Work) throws {
        let (next, context) = try phase.memory(table)
        guard let tokens = rows["tokens"]?.long, let labels = rows["labels"]?.long, let weight = rows["weight"]?.float
        else {
            throw PFLError(
                .data, "the rows have no tokens, labels and weight", mend: "memorize needs rows of tokens")
        }
        let made = try PFLMobile.memorize(
            tokens, labels, weight, capacity: next.shape.first ?? 0, context: context.shape.last ?? 0)
        work.tensors[next.name] = .long(made.next)
        work.tensors[context.name] = .long(made.context)
    }
}

/// The batches of each gradient, epoch after epoch; each epoch has an order of its own.
private struct GradientBatches {
    private let phase: TrainPhase
    private let rows: Rows
    private let size: Int
    private let seed: UInt64
    private let index: Int
    private let count: Int
    private let batches: Int
    private let each: Int
    private let perEpoch: Int
    private var held: [[Rows]] = []
    private var number = 0
    private var epoch = -1
    private var order: [Int] = []

    init(_ phase: TrainPhase, _ rows: Rows, _ size: Int, seed: UInt64, index: Int) {
        self.phase = phase
        self.rows = rows
        self.size = size
        self.seed = seed
        self.index = index
        count = PFLMobile.count(rows)
        batches = ceiling(count, size)
        each = max(phase.batchesPerGradient(batches), 1)
        perEpoch = max(ceiling(batches, each), 1)
    }

    /// Leaves out the batches of so many gradients.
    mutating func skip(_ gradients: Int) {
        number = gradients
    }

    mutating func next() -> [Rows] {
        let now = number
        number += 1
        if !phase.holdBatch { return made(now) }
        let place = now % phase.gradientsPerStep
        while held.count <= place { held.append(made(held.count)) }
        return held[place]
    }

    private mutating func made(_ gradient: Int) -> [Rows] {
        if gradient / perEpoch != epoch {
            epoch = gradient / perEpoch
            order = epochOrder(count, seed: seed, phase: index, epoch: epoch)
        }
        let first = gradient % perEpoch * each
        return (first..<min(first + each, batches)).map {
            take(rows, order[$0 * size..<min(($0 + 1) * size, count)], size)
        }
    }
}
