/// Everything that training changes; a checkpoint holds all of it.
struct Work: Sendable {
    /// Device tensors by name.
    var tensors: TensorSet
    /// Copies of tensors by copy and name.
    var copies: [String: TensorSet] = [:]
    /// Slot words.
    var words: [String] = []
    /// Index into the unrolled phases.
    var phase = 0
    /// Steps done in this phase.
    var step = 0
    /// Steps done in all phases.
    var done = 0
    /// What the optimizer remembers.
    var optimizer = OptimizerState()
    /// Trained values at the start of this phase.
    var start: [String: FloatTensor] = [:]
    /// Mean loss of every step so far.
    var losses: [Double] = []
    /// Sum of the learning rates of the last train phase's steps.
    var rate = 0.0
    /// What phases measured.
    var reports: [String: Double] = [:]

    /// A working copy of a state; shipped values for what it lacks.
    init(_ state: PersonalState?, initial: TensorSet) {
        tensors = initial.merging(state?.tensors ?? [:]) { $1 }
        copies = state?.copies ?? [:]
        words = state?.words ?? []
    }

    init(tensors: TensorSet) {
        self.tensors = tensors
    }

    /// The arrays that a plan calls by a name.
    ///
    /// - Throws: `.unknownName`: there are none
    func named(_ name: String, _ sets: [String: TensorSet]) throws -> TensorSet {
        switch name {
        case "theta": return tensors
        case "start": return start.mapValues(Tensor.float)
        case "zero": return tensors.compactMapValues { $0.float.map { .float(.zeros(like: $0)) } }
        default:
            guard let found = copies[name] ?? sets[name] else {
                throw PFLError(
                    .unknownName, "the plan names a set '\(name)' that is not there",
                    mend: near(name, ["theta", "start", "zero"] + copies.keys + sets.keys))
            }
            return found
        }
    }

    /// Puts values into the set of a name.
    mutating func store(_ name: String, _ values: [String: FloatTensor]) {
        let values = values.mapValues(Tensor.float)
        if name == "theta" {
            tensors.merge(values) { $1 }
        } else {
            copies[name, default: [:]].merge(values) { $1 }
        }
    }

    /// Takes the float32 tensors of a group out of a set, so that nobody else holds their arrays; `store` puts them back.
    mutating func takeOut(_ name: String, _ group: [String]) -> [String: FloatTensor] {
        var found: [String: FloatTensor] = [:]
        if name == "theta" {
            for key in group { found[key] = tensors.removeValue(forKey: key)?.float }
        } else if var copy = copies.removeValue(forKey: name) {
            for key in group { found[key] = copy.removeValue(forKey: key)?.float }
            copies[name] = copy
        }
        return found
    }
}

/// The tensors of a group in a set.
///
/// - Throws: `.tensorMismatch`: one is missing, or is no float32
func floats(_ set: TensorSet, _ group: [String], _ what: String) throws -> [String: FloatTensor] {
    var found: [String: FloatTensor] = [:]
    for name in group {
        guard let tensor = set[name] else {
            throw PFLError(
                .tensorMismatch, "\(what) has no tensor '\(name)'", mend: "give a value for every trained tensor")
        }
        guard let float = tensor.float else {
            throw PFLError(
                .tensorMismatch, "\(what) '\(name)' is no float32",
                mend: "only float32 tensors are trained by gradients")
        }
        found[name] = float
    }
    return found
}

/// The copies that the personal state keeps.
func keptCopies(_ plan: Plan, _ work: Work) -> [String: TensorSet] {
    guard let keep = plan.keep else { return work.copies }
    return work.copies.filter { keep.contains($0.key) }
}

/// The device tensors that predictions use under `serve` of a plan. Only gradient-trained tensors have copies; a copy not yet made
/// stands for theta.
func served(_ serve: Serve, _ work: Work, _ sets: [String: TensorSet]) throws -> TensorSet {
    func resolve(_ name: String) -> TensorSet { work.copies[name] ?? sets[name] ?? work.tensors }
    switch serve {
    case .named(let set):
        return work.tensors.merging(resolve(set)) { $1 }
    case .mix(let one, let other, let alpha):
        let second = resolve(other)
        let first = resolve(one).filter { second[$0.key] != nil && work.tensors[$0.key]?.float != nil }
        let mixed = try mix(first.compactMapValues(\.float), second, alpha)
        return work.tensors.merging(mixed.mapValues(Tensor.float)) { $1 }
    }
}
