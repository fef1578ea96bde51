/// Gives free vocabulary slots to the user's most frequent unknown words.
struct AssignSlotsPhase: ModulePhase {
    let module: String
    let minCount: Int

    init(_ fields: inout Fields) throws {
        module = try fields.field("module", Fields.text, default: "slots")
        minCount = try fields.field("min_count", Fields.whole, default: 2)
        try Check.name("module", module)
        try Check.whole("min_count", minCount)
    }

    let kind = "assign_slots"
    var update: TensorUpdate { .assign }
    var examples: Needs? { .texts }
    var words: [String] { ["give free slots of '\(module)' to unknown words seen \(minCount) times or more"] }
    var json: JSON { object(("kind", .string(kind)), ("module", .string(module)), ("min_count", .integer(minCount))) }
}

/// Writes the training rows into the n-gram memory (rebuilt from empty every time).
struct MemorizePhase: ModulePhase {
    let module: String

    init(_ fields: inout Fields) throws {
        module = try fields.field("module", Fields.text, default: "memory")
        try Check.name("module", module)
    }

    let kind = "memorize"
    var update: TensorUpdate { .memorize }
    var examples: Needs? { .tokens }
    var remembers: Bool { true }
    var words: [String] { ["write the examples into the memory '\(module)'"] }
    var json: JSON { object(("kind", .string(kind)), ("module", .string(module))) }

    func check(_ table: [DeviceTensor]) throws {
        _ = try tensors(table)
        _ = try memory(table)
    }

    /// The memory's tensors `next` and `context`.
    ///
    /// - Throws: `.config`: the module is no memory
    func memory(_ table: [DeviceTensor]) throws -> (next: DeviceTensor, context: DeviceTensor) {
        guard let next = own(table).first(where: { $0.name.hasSuffix(".next") }),
            let context = own(table).first(where: { $0.name.hasSuffix(".context") })
        else {
            throw PFLError(
                .config, "module '\(module)' has no tensors 'next' and 'context'", mend: "use the memory module's name")
        }
        return (next, context)
    }
}

/// x <- x - rate * (x - y), for x = theta or a copy and y another set (pFedMe's outer step, Reptile).
struct MovePhase: GroupPhase {
    let group: [String]
    let moves: String
    let toward: String
    let rate: Double

    init(_ fields: inout Fields) throws {
        group = try fields.field("group", Fields.list(Fields.text), default: ["*"])
        moves = try fields.field("moves", Fields.text, default: "theta")
        toward = try fields.required("toward", Fields.text)
        rate = try fields.required("rate", Fields.finite)
        try Check.patterns("group", group)
        try Check.name("moves", moves)
        try Check.name("toward", toward)
        try Check.notNegative("rate", rate, most: 2)
    }

    let kind = "move"
    var reads: [String] { [moves, toward] }
    var writes: String? { moves }
    var changes: String? { toward == "global" ? nil : moves }
    var takesOver: String? { moves == "theta" && rate == 1 ? toward : nil }
    var examples: Needs? { nil }
    var words: [String] { ["move \(moves) towards \(toward) by a factor of \(general(rate))"] }
    var json: JSON {
        object(
            ("kind", .string(kind)), ("group", .texts(group)), ("moves", .string(moves)), ("toward", .string(toward)),
            ("rate", .double(rate)))
    }
}

/// What a summand is divided by.
enum Per: String, Sendable, CaseIterable {
    case one
    /// The sum of the learning rates of all steps of the last train phase before this one (SCAFFOLD's 1 / (K lr)).
    case rate
}

/// One summand of a combination: times * of.
struct Term: Sendable, Equatable {
    let of: String
    let times: Double
    let per: Per

    static func read(_ json: JSON, _ path: String) throws -> Term {
        var fields = try Fields(json, path)
        let term = Term(
            of: try fields.required("of", Fields.text), times: try fields.field("times", Fields.finite, default: 1),
            per: try fields.field("per", Fields.word(Per.self), default: .one))
        try Check.name("of", term.of)
        try fields.done()
        return term
    }

    var json: JSON { object(("of", .string(of)), ("times", .double(times)), ("per", .string(per.rawValue))) }
}

/// x <- f32(times_1) * set_1 + f32(times_2) * set_2 + ..., added in order (control variates).
struct CombinePhase: GroupPhase {
    let group: [String]
    let makes: String
    let terms: [Term]

    init(_ fields: inout Fields) throws {
        group = try fields.field("group", Fields.list(Fields.text), default: ["*"])
        makes = try fields.required("makes", Fields.text)
        terms = try fields.required("terms", Fields.list(Term.read))
        try Check.patterns("group", group)
        try Check.name("makes", makes)
        if terms.isEmpty { throw Malformed("terms: at least one is needed") }
        try Check.ownName("makes", makes)
    }

    let kind = "combine"
    var reads: [String] { terms.map(\.of) }
    var writes: String? { makes }
    var makesCopy: String? { makes == "theta" ? nil : makes }
    var examples: Needs? { nil }
    var needsRate: Bool { terms.contains { $0.per == .rate } }
    var words: [String] {
        let parts = terms.map { "\(general($0.times)) \($0.of)" + ($0.per == .rate ? " / learning rates" : "") }
        return ["set \(makes) to \(parts.joined(separator: " + "))"]
    }
    var json: JSON {
        object(
            ("kind", .string(kind)), ("group", .texts(group)), ("makes", .string(makes)),
            ("terms", .array(terms.map(\.json))))
    }
}

/// Reports a metric of the training examples, measured with a set in the place of theta. What is reported is sent beside the
/// update: one number, which the aggregator weights or chooses by.
struct MeasurePhase: StepPhase {
    let report: String
    let at: String
    let metric: String

    init(_ fields: inout Fields) throws {
        report = try fields.required("report", Fields.text)
        at = try fields.field("at", Fields.text, default: "theta")
        metric = try fields.field("metric", Fields.text, default: "loss")
        try Check.name("report", report)
        try Check.name("at", at)
        try Check.name("metric", metric)
    }

    let kind = "measure"
    var reads: [String] { [at] }
    var writes: String? { nil }
    var reported: String? { report }
    var examples: Needs? { .rows }
    var programs: [String] { ["evaluate"] }
    var metrics: [String] { [metric] }
    var words: [String] { ["measure the \(metric) of \(at) and report it as '\(report)'"] }
    var json: JSON {
        object(
            ("kind", .string(kind)), ("report", .string(report)), ("at", .string(at)), ("metric", .string(metric)))
    }

    // What the set lacks is taken of theta.
    func tensors(_ table: [DeviceTensor]) -> [String] { [] }
}

/// theta's group becomes the set, of those named, with the least loss on the training examples (IFCA). The first of equals
/// wins; its index, counted from 0, is reported.
struct ChoosePhase: GroupPhase {
    let group: [String]
    let among: [String]
    let report: String

    init(_ fields: inout Fields) throws {
        group = try fields.field("group", Fields.list(Fields.text), default: ["*"])
        among = try fields.required("among", Fields.list(Fields.text))
        report = try fields.required("report", Fields.text)
        try Check.patterns("group", group)
        try Check.patterns("among", among)
        try Check.name("report", report)
    }

    let kind = "choose"
    var reads: [String] { among }
    var writes: String? { "theta" }
    var reported: String? { report }
    var examples: Needs? { .rows }
    var programs: [String] { ["evaluate"] }
    var metrics: [String] { ["loss"] }
    var words: [String] { ["go on from what fits best of \(among.joined(separator: ", ")); report '\(report)'"] }
    var json: JSON {
        object(
            ("kind", .string(kind)), ("group", .texts(group)), ("among", .texts(among)), ("report", .string(report)))
    }
}
