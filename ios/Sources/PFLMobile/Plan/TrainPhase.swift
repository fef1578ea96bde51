/// Where a train phase takes its gradients.
enum EvaluateAt: Sendable, Equatable {
    /// At the values that it trains.
    case theta
    /// At alpha * theta + (1 - alpha) * other: 1 is theta itself, 0 the other set. The gradient taken there is used as it is
    /// (not multiplied by alpha); lr can absorb the factor.
    case mix(other: String, alpha: Double)
    /// At theta - step * g(B1), with the gradient then taken there on the next batch B2 (first-order MAML).
    case lookahead(step: Double)

    /// A point may leave out its kind, as the fields of the two differ.
    static func read(_ json: JSON, _ path: String) throws -> EvaluateAt {
        if json.string == "theta" { return .theta }
        guard case .object = json else { throw Malformed("\(path): 'theta', a mix or a lookahead is expected") }
        var fields = try Fields(json, path)
        let kind = try fields.field("kind", Fields.text, default: fields.names.contains("step") ? "lookahead" : "mix")
        let found: EvaluateAt
        switch kind {
        case "mix":
            let other = try fields.required("other", Fields.text)
            let alpha = try fields.required("alpha", Fields.finite)
            try Check.name("other", other)
            try Check.notNegative("alpha", alpha, most: 1)
            found = .mix(other: other, alpha: alpha)
        case "lookahead":
            let step = try fields.required("step", Fields.finite)
            try Check.notNegative("step", step)
            found = .lookahead(step: step)
        default:
            throw Malformed("\(path): no point is called '\(kind)'")
        }
        try fields.done()
        return found
    }

    var json: JSON {
        switch self {
        case .theta: .string("theta")
        case .mix(let other, let alpha):
            object(("kind", .string("mix")), ("other", .string(other)), ("alpha", .double(alpha)))
        case .lookahead(let step): object(("kind", .string("lookahead")), ("step", .double(step)))
        }
    }
}

/// Strength of the proximal term: a number, or the name of a set with one array per tensor.
enum Mu: Sendable, Equatable, CustomStringConvertible {
    case number(Double)
    case named(String)

    static func read(_ json: JSON, _ path: String) throws -> Mu {
        if let name = json.string { return .named(name) }
        return .number(try Fields.finite(json, path))
    }

    var description: String {
        switch self {
        case .number(let value): general(value)
        case .named(let set): set
        }
    }

    var json: JSON {
        switch self {
        case .number(let value): .double(value)
        case .named(let set): .string(set)
        }
    }
}

/// Batches whose gradients make one step: so many, or all of an epoch.
enum BatchesPerStep: Sendable, Equatable {
    case count(Int)
    case all

    static func read(_ json: JSON, _ path: String) throws -> BatchesPerStep {
        if json.string == "all" { return .all }
        return .count(try Fields.whole(json, path))
    }

    var json: JSON {
        switch self {
        case .count(let value): .integer(value)
        case .all: .string("all")
        }
    }
}

/// How the proximal term is applied.
enum Prox: String, Sendable, CaseIterable {
    /// Added to the gradient, as in the papers; stable only while lr * mu < 2.
    case explicit
    /// The exact proximal step after each optimizer step, stable for every mu.
    case implicit
}

/// How the learning rate goes.
enum Schedule: String, Sendable, CaseIterable {
    case constant
    /// lr * (1 - step / steps).
    case linear
}

/// Gradient steps on a group of tensors.
struct TrainPhase: GroupPhase {
    /// Patterns: tensor names with `*` and `?`, `role:<role>` or `module:<name>`.
    let group: [String]
    /// Optimizer steps; exactly one of steps and epochs is given.
    let steps: Int?
    /// Passes over the training rows.
    let epochs: Int?
    /// With epochs, the most optimizer steps; a schedule then ends there.
    let maxSteps: Int?
    /// Batches whose gradients make one step; all of them is full-batch descent.
    let batchesPerStep: BatchesPerStep
    /// Every step of the phase uses the phase's first batches again (pFedMe's inner steps).
    let holdBatch: Bool
    /// `theta`, or the name of a copy of the group, kept in the personal state.
    let trains: String
    /// Set that the trained values are reset to first; nil goes on from where they are (a new copy from theta).
    let startFrom: String?
    /// Where gradients are taken.
    let evaluateAt: EvaluateAt
    /// Set that the proximal term mu * (theta - anchor) pulls to.
    let anchor: String?
    /// Its strength; 0 is none.
    let mu: Mu
    /// How it is applied.
    let prox: Prox
    /// Set added to the gradient (SCAFFOLD's c - c_i).
    let control: String?
    /// Set multiplied into every change; 0 keeps an entry exactly as it is.
    let mask: String?
    /// What makes a step of a gradient.
    let optimizer: Optimizer
    /// Largest global L2 norm of the group's gradient; nil is no limit.
    let clip: Double?
    /// Constant, or linear.
    let schedule: Schedule

    init(_ fields: inout Fields) throws {
        group = try fields.field("group", Fields.list(Fields.text), default: ["*"])
        steps = try fields.maybe("steps", Fields.whole)
        epochs = try fields.maybe("epochs", Fields.whole)
        maxSteps = try fields.maybe("max_steps", Fields.whole)
        batchesPerStep = try fields.field("batches_per_step", BatchesPerStep.read, default: .count(1))
        holdBatch = try fields.field("hold_batch", Fields.truth, default: false)
        trains = try fields.field("trains", Fields.text, default: "theta")
        startFrom = try fields.maybe("start_from", Fields.text)
        evaluateAt = try fields.field("evaluate_at", EvaluateAt.read, default: .theta)
        anchor = try fields.maybe("anchor", Fields.text)
        mu = try fields.field("mu", Mu.read, default: .number(0))
        prox = try fields.field("prox", Fields.word(Prox.self), default: .explicit)
        control = try fields.maybe("control", Fields.text)
        mask = try fields.maybe("mask", Fields.text)
        optimizer = try fields.required("optimizer", Optimizer.read)
        clip = try fields.maybe("clip", Fields.finite)
        schedule = try fields.field("schedule", Fields.word(Schedule.self), default: .constant)
        try checkEach()
        try checkTogether()
    }

    private func checkEach() throws {
        try Check.patterns("group", group)
        try Check.whole("steps", steps)
        try Check.whole("epochs", epochs)
        try Check.whole("max_steps", maxSteps)
        if case .count(let value) = batchesPerStep { try Check.whole("batches_per_step", value) }
        let names: [(String, String?)] = [
            ("trains", trains), ("start_from", startFrom), ("anchor", anchor), ("control", control), ("mask", mask),
        ]
        for (field, name) in names { try Check.name(field, name) }
        switch mu {
        case .number(let value): try Check.notNegative("mu", value, most: 1e30)
        case .named(let set): try Check.name("mu", set)
        }
        try Check.positive("clip", clip)
        try Check.ownName("trains", trains)
    }

    private func checkTogether() throws {
        if (steps == nil) == (epochs == nil) { throw Malformed("give exactly one of steps and epochs") }
        if maxSteps != nil && epochs == nil { throw Malformed("max_steps goes with epochs, not with steps") }
        if mu != .number(0) && anchor == nil {
            throw Malformed("mu needs an anchor, for instance 'global' or 'initial'")
        }
        if prox == .explicit, case .number(let strength) = mu, optimizer.kind != "adamw", strength * optimizer.lr >= 2 {
            throw Malformed("lr * mu is 2 or more, which diverges: lower one, or set prox to 'implicit'")
        }
        if holdBatch && epochs != nil { throw Malformed("hold_batch goes with steps, not with epochs") }
    }

    let kind = "train"
    var reads: [String] { startFrom.map { [$0] } ?? [] }
    var stepReads: [String] {
        var named: String?
        if case .named(let set) = mu { named = set }
        var other: String?
        if case .mix(let set, _) = evaluateAt { other = set }
        return [anchor, control, mask, named, other].compactMap { $0 }
    }
    var writes: String? { trains }
    var makesCopy: String? { trains == "theta" ? nil : trains }
    var examples: Needs? { .rows }
    var programs: [String] { ["gradients"] }
    var leavesRate: Bool { true }

    /// Gradients that one optimizer step takes, each of other batches: two with a lookahead (B1, B2).
    var gradientsPerStep: Int {
        if case .lookahead = evaluateAt { 2 } else { 1 }
    }

    /// Batches that make one gradient, in an epoch of so many batches.
    func batchesPerGradient(_ batches: Int) -> Int {
        switch batchesPerStep {
        case .all: batches
        case .count(let value): min(value, batches)
        }
    }

    func optimizerSteps(rows: Int, batch: Int) -> Int {
        if let steps { return steps }
        let batches = ceiling(rows, batch)
        let each = max(batchesPerGradient(batches), 1) * gradientsPerStep
        let all = saturatedProduct(epochs ?? 0, ceiling(batches, each))
        return min(all, maxSteps ?? all)
    }

    var words: [String] {
        var words = [group == ["*"] ? "train all tensors" : "train \(group.joined(separator: ", "))"]
        if let steps { words.append("for \(steps) steps") }
        if let epochs { words.append("for \(epochs) epochs") }
        if let maxSteps { words.append("\(maxSteps) steps at most") }
        words += ["with \(optimizer.kind)", "lr \(general(optimizer.lr))"]
        if schedule == .linear { words.append("falling to 0") }
        if optimizer.weightDecay != 0 { words.append("weight decay \(general(optimizer.weightDecay))") }
        if let clip { words.append("gradients clipped to \(general(clip))") }
        switch batchesPerStep {
        case .count(1): break
        case .count(let value): words.append("\(value) batches a step")
        case .all: words.append("all batches a step")
        }
        if holdBatch { words.append("all on the same batch") }
        if trains != "theta" { words.append("into the copy '\(trains)'") }
        if let startFrom { words.append("starting from \(startFrom)") }
        if let anchor { words.append("held near \(anchor) (mu \(mu))") }
        switch evaluateAt {
        case .theta: break
        case .mix(let other, _): words.append("gradients at a mix with \(other)")
        case .lookahead(let step): words.append("gradients one step of \(general(step)) ahead")
        }
        if let control { words.append("plus control '\(control)'") }
        if let mask { words.append("masked by '\(mask)'") }
        return [words.joined(separator: ", ")]
    }

    var json: JSON {
        object(
            ("kind", .string(kind)), ("group", .texts(group)), ("steps", .maybe(steps)), ("epochs", .maybe(epochs)),
            ("max_steps", .maybe(maxSteps)), ("batches_per_step", batchesPerStep.json),
            ("hold_batch", .bool(holdBatch)),
            ("trains", .string(trains)), ("start_from", .maybe(startFrom)), ("evaluate_at", evaluateAt.json),
            ("anchor", .maybe(anchor)), ("mu", mu.json), ("prox", .string(prox.rawValue)), ("control", .maybe(control)),
            ("mask", .maybe(mask)), ("optimizer", optimizer.json), ("clip", .maybe(clip)),
            ("schedule", .string(schedule.rawValue)))
    }
}

/// A quotient of numbers of 0 or more, rounded up.
func ceiling(_ number: Int, _ divisor: Int) -> Int {
    number / divisor + (number % divisor == 0 ? 0 : 1)
}
