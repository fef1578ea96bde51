/// Every set that the plan reads, copies and `theta` among them, in order of first use.
func namedSets(_ plan: Plan) -> [String] {
    let all =
        plan.copies.map(\.start.of) + plan.serve.names
        + plan.distinctSteps.flatMap { $0.phase.reads + $0.phase.stepReads }
    var seen: Set<String> = []
    return all.filter { seen.insert($0).inserted }
}

/// Finds what would fail later: groups without tensors, sets that are unknown, not made yet or too small, modules of another
/// kind.
///
/// - Parameters:
///   - sets: names of the sets that the host hands in, `initial` and `global` among them
///   - copies: names of the copies that the personal state has
/// - Throws: `.config`, naming it
func checkPlan(_ plan: Plan, _ table: [DeviceTensor], sets: some Collection<String>, copies: [String]) throws {
    _ = try uploaded(plan.upload, table)
    for step in plan.distinctSteps { try step.phase.check(table) }
    let known = Set(["theta", "start", "zero"] + sets + copies).union(plan.made)
    for name in namedSets(plan) where !known.contains(name) {
        throw PFLError(.unknownName, "the plan names a set '\(name)' that is not there", mend: near(name, known))
    }
    var reads = Reads(table: table, given: Array(sets) + copies)
    try reads.check(plan)
}

/// Which sets are there when a phase reads them, on a device that runs the plan for the first time.
private struct Reads {
    /// What a set holds.
    private enum Held {
        case named(Set<String>)
        /// All that a plan may ask of it, or only the host knows.
        case anything
    }

    private let table: [DeviceTensor]
    private var there: [String: Held] = [:]

    init(table: [DeviceTensor], given: [String]) {
        self.table = table
        for name in ["theta", "zero"] + given { there[name] = .anything }
    }

    mutating func check(_ plan: Plan) throws {
        for (name, start) in plan.copies {
            let group = Set(try select(start.group, table))
            try need("copy '\(name)'", start.of, group)
            made(name, group)
        }
        for step in plan.distinctSteps {  // what is there the first time is there every time
            let phase = step.phase
            let tensors = Set(try phase.tensors(table))
            let who = "\(phase.kind) phase"
            for name in phase.reads { try need(who, name, tensors) }
            if let copy = phase.makesCopy { made(copy, tensors) }
            there["start"] = .named(tensors)
            for name in phase.stepReads { try need(who, name, tensors) }
            there["start"] = nil
        }
    }

    private mutating func made(_ name: String, _ group: Set<String>) {
        switch there[name] {
        case nil: there[name] = .named(group)
        case .named(let held): there[name] = .named(held.union(group))
        case .anything: break
        }
    }

    private func need(_ who: String, _ name: String, _ group: Set<String>) throws {
        guard let found = there[name] else {
            let what = name == "start" ? "which only a train phase has" : "before any phase makes it"
            throw PFLError(
                .config, "the plan's \(who) reads the set '\(name)' \(what)",
                mend: "let an earlier phase make it, or start it in the plan's copies")
        }
        if case .named(let held) = found, let missing = group.subtracting(held).min(by: nameOrder) {
            throw PFLError(
                .config, "the plan's \(who) reads '\(missing)' of the set '\(name)', which holds other tensors only",
                mend: "make the set from a group with all tensors that are read of it")
        }
    }
}
