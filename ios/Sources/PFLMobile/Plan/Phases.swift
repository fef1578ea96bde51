/// What a phase needs of a device's examples.
enum Needs: String, Sendable {
    /// Rows, at least one with a positive weight, or the phase fails.
    case rows
    /// The words of texts.
    case texts
    /// Rows of tokens, of which there may be none.
    case tokens
}

/// What an executor runs; repeats are unrolled before. A phase describes itself, so that only executors ask of which kind it
/// is.
///
/// Sets are given by name (`Plan` lists them). Tensors that no gradient trains have no copies: a phase that writes them writes
/// `theta`.
protocol StepPhase: Sendable, Equatable {
    /// Its name in JSON.
    var kind: String { get }

    /// Sets that it reads before it writes, in order; of each it reads the tensors that `tensors` names.
    var reads: [String] { get }

    /// Sets that its optimizer steps read; by then `start` and the copy that it makes exist.
    var stepReads: [String] { get }

    /// The set that it writes; nil for a phase that changes nothing.
    var writes: String? { get }

    /// The copy that exists after the phase, even where it did not before.
    var makesCopy: String? { get }

    /// The set whose trained values it may make differ from the aggregator's; only such a change can be sent.
    var changes: String? { get }

    /// The set whose values theta's tensors take, whatever they were; nil where it does anything else.
    var takesOver: String? { get }

    /// The name of the number that it reports.
    var reported: String? { get }

    /// What it needs of the examples; nil for nothing.
    var examples: Needs? { get }

    /// Whether it runs again on all examples, held-out ones too, where the plan says `remember_holdout`.
    var remembers: Bool { get }

    /// Programs of the bundle that it calls: `gradients`, `evaluate`.
    var programs: [String] { get }

    /// Metrics that it asks of the program `evaluate`.
    var metrics: [String] { get }

    /// Whether it sums up learning rates, by which a later phase may divide.
    var leavesRate: Bool { get }

    /// Whether it divides by the sum of learning rates of an earlier phase.
    var needsRate: Bool { get }

    /// What it does in plain words, a line or more.
    var words: [String] { get }

    /// The phase with every field.
    var json: JSON { get }

    /// Its number of optimizer steps on so many rows of positive weight, in batches of `batch` rows.
    func optimizerSteps(rows: Int, batch: Int) -> Int

    /// Names of the tensors that it writes.
    ///
    /// - Throws: `.config`: the model has none that the phase means
    func tensors(_ table: [DeviceTensor]) throws -> [String]

    /// Refuses a model whose tensors are not what the phase works on.
    ///
    /// - Throws: `.config`, naming it
    func check(_ table: [DeviceTensor]) throws
}

extension StepPhase {
    var stepReads: [String] { [] }
    var makesCopy: String? { nil }
    var changes: String? { writes }
    var takesOver: String? { nil }
    var reported: String? { nil }
    var remembers: Bool { false }
    var programs: [String] { [] }
    var metrics: [String] { [] }
    var leavesRate: Bool { false }
    var needsRate: Bool { false }

    func optimizerSteps(rows: Int, batch: Int) -> Int { 0 }

    func check(_ table: [DeviceTensor]) throws {
        _ = try tensors(table)
    }
}

/// Writes a group of the tensors that gradients train.
protocol GroupPhase: StepPhase {
    var group: [String] { get }
}

extension GroupPhase {
    func tensors(_ table: [DeviceTensor]) throws -> [String] { try select(group, table) }
}

/// Fills tensors of one module that no gradient trains.
protocol ModulePhase: StepPhase {
    var module: String { get }
    var update: TensorUpdate { get }
}

extension ModulePhase {
    var reads: [String] { [] }
    var writes: String? { "theta" }
    var changes: String? { nil }

    func tensors(_ table: [DeviceTensor]) throws -> [String] {
        let names = own(table).map(\.name)
        if names.isEmpty {
            throw PFLError(
                .unknownName, "the plan's \(kind) phase is for module '\(module)', which has no such tensors",
                mend: near(module, table.filter { $0.update == update }.compactMap(\.module)))
        }
        return names
    }

    func own(_ table: [DeviceTensor]) -> [DeviceTensor] {
        table.filter { $0.module == module && $0.update == update }
    }
}

/// A phase that runs.
enum Step: Sendable, Equatable {
    case train(TrainPhase)
    case move(MovePhase)
    case combine(CombinePhase)
    case measure(MeasurePhase)
    case choose(ChoosePhase)
    case assignSlots(AssignSlotsPhase)
    case memorize(MemorizePhase)

    /// What the phase says of itself.
    var phase: any StepPhase {
        switch self {
        case .train(let phase): phase
        case .move(let phase): phase
        case .combine(let phase): phase
        case .measure(let phase): phase
        case .choose(let phase): phase
        case .assignSlots(let phase): phase
        case .memorize(let phase): phase
        }
    }
}

/// A part of a plan: something that runs, or a repeat of such parts.
indirect enum Phase: Sendable, Equatable {
    case step(Step)
    case `repeat`(times: Int, phases: [Phase])

    /// What it does in plain words, a line or more.
    var words: [String] {
        switch self {
        case .step(let step): step.phase.words
        case .repeat(let times, let phases): ["\(times) times:"] + phases.flatMap(\.words).map { "  \($0)" }
        }
    }

    var json: JSON {
        switch self {
        case .step(let step):
            step.phase.json
        case .repeat(let times, let phases):
            object(("kind", .string("repeat")), ("times", .integer(times)), ("phases", .array(phases.map(\.json))))
        }
    }

    /// - Throws: `Malformed`
    static func read(_ json: JSON, _ path: String) throws -> Phase {
        var fields = try Fields(json, path)
        let kind = try fields.required("kind", Fields.text)
        let found: Phase
        switch kind {
        case "train": found = .step(.train(try TrainPhase(&fields)))
        case "move": found = .step(.move(try MovePhase(&fields)))
        case "combine": found = .step(.combine(try CombinePhase(&fields)))
        case "measure": found = .step(.measure(try MeasurePhase(&fields)))
        case "choose": found = .step(.choose(try ChoosePhase(&fields)))
        case "assign_slots": found = .step(.assignSlots(try AssignSlotsPhase(&fields)))
        case "memorize": found = .step(.memorize(try MemorizePhase(&fields)))
        case "repeat":
            let times = try fields.required("times", Fields.whole)
            if !(1...mostPhases).contains(times) { throw Malformed("times: \(times) is not from 1 to \(mostPhases)") }
            let phases = try fields.required("phases", Fields.list(Phase.read))
            if phases.isEmpty { throw Malformed("phases: at least one is needed") }
            found = .repeat(times: times, phases: phases)
        default:
            let known = ["train", "move", "combine", "measure", "choose", "assign_slots", "memorize", "repeat"]
            throw Malformed("\(path): no phase is called '\(kind)'. \(near(kind, known))")
        }
        try fields.done()
        return found
    }
}

/// The most phases a plan may run, repeats unrolled.
let mostPhases = 100_000

/// The phases in the order they run, repeats unrolled.
func unrolled(_ phases: [Phase]) -> [Step] {
    phases.flatMap { phase in
        switch phase {
        case .step(let step): return [step]
        case .repeat(let times, let phases):
            let inner = unrolled(phases)
            return (0..<times).flatMap { _ in inner }
        }
    }
}

/// The length of `unrolled`, computed without unrolling: repeats within repeats may make it astronomical.
func unrolledCount(_ phases: [Phase]) -> Int {
    phases.reduce(0) { sum, phase in
        switch phase {
        case .step: saturatedSum(sum, 1)
        case .repeat(let times, let phases): saturatedSum(sum, saturatedProduct(times, unrolledCount(phases)))
        }
    }
}

/// Each different phase once, in the order of their first runs.
func distinct(_ phases: [Phase]) -> [Step] {
    var found: [Step] = []
    for phase in phases {
        switch phase {
        case .step(let step): if !found.contains(step) { found.append(step) }
        case .repeat(_, let phases): for step in distinct(phases) where !found.contains(step) { found.append(step) }
        }
    }
    return found
}

/// The product of numbers of 0 or more, or the largest number where it is larger.
func saturatedProduct(_ one: Int, _ other: Int) -> Int {
    let (product, overflow) = one.multipliedReportingOverflow(by: other)
    return overflow ? .max : product
}

/// The sum of numbers of 0 or more, or the largest number where it is larger.
func saturatedSum(_ one: Int, _ other: Int) -> Int {
    let (sum, overflow) = one.addingReportingOverflow(other)
    return overflow ? .max : sum
}
