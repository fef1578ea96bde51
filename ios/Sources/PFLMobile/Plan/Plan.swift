/// What a copy holds on a device that does not have it yet: the values of a set for the group's tensors.
struct CopyStart: Sendable, Equatable {
    let of: String
    let group: [String]

    static func read(_ json: JSON, _ path: String) throws -> CopyStart {
        var fields = try Fields(json, path)
        let start = CopyStart(
            of: try fields.field("of", Fields.text, default: "zero"),
            group: try fields.field("group", Fields.list(Fields.text), default: ["*"]))
        try Check.name("of", start.of)
        try Check.patterns("group", start.group)
        try fields.done()
        return start
    }

    var json: JSON { object(("of", .string(of)), ("group", .texts(group))) }
}

/// Whether the trained state replaces the old one.
public struct Guard: Sendable, Equatable {
    /// `loss` or a metric of the evaluate program.
    public let metric: String
    /// With fewer held-out examples nothing is trained.
    public let minExamples: Int
    /// How much worse the metric may become, exclusive; 0 asks for a real improvement.
    public let tolerance: Double
    /// The shipped model is good enough when its metric reaches this; then nothing is trained. Nil never stops.
    public let appeal: Double?

    init(metric: String = "loss", minExamples: Int = 1, tolerance: Double = 0, appeal: Double? = nil) {
        self.metric = metric
        self.minExamples = minExamples
        self.tolerance = tolerance
        self.appeal = appeal
    }

    static func read(_ json: JSON, _ path: String) throws -> Guard {
        var fields = try Fields(json, path)
        let found = Guard(
            metric: try fields.field("metric", Fields.text, default: "loss"),
            minExamples: try fields.field("min_examples", Fields.whole, default: 1),
            tolerance: try fields.field("tolerance", Fields.finite, default: 0),
            appeal: try fields.maybe("appeal", Fields.finite))
        try Check.name("metric", found.metric)
        try Check.whole("min_examples", found.minExamples)
        try Check.notNegative("tolerance", found.tolerance)
        try fields.done()
        return found
    }

    /// Whether a smaller value of the metric is an improvement; every other name is better when larger.
    public var lowerIsBetter: Bool {
        ["loss", "mae", "mse", "rmse", "error", "perplexity"].contains(metric)
    }

    var json: JSON {
        object(
            ("metric", .string(metric)), ("min_examples", .integer(minExamples)), ("tolerance", .double(tolerance)),
            ("appeal", .maybe(appeal)))
    }
}

/// What predictions use and the guard measures.
enum Serve: Sendable, Equatable {
    case named(String)
    /// alpha * one + (1 - alpha) * other, between two named sets.
    case mix(one: String, other: String, alpha: Double)

    static func read(_ json: JSON, _ path: String) throws -> Serve {
        if let name = json.string {
            try Check.name("serve", name)
            return .named(name)
        }
        guard case .object = json else { throw Malformed("\(path): the name of a set or a mix is expected") }
        var fields = try Fields(json, path)
        let kind = try fields.field("kind", Fields.text, default: "mix")
        if kind != "mix" { throw Malformed("\(path): 'mix', not '\(kind)', is expected") }
        let one = try fields.field("one", Fields.text, default: "theta")
        let other = try fields.required("other", Fields.text)
        let alpha = try fields.required("alpha", Fields.finite)
        try Check.name("one", one)
        try Check.name("other", other)
        try Check.notNegative("alpha", alpha, most: 1)
        try fields.done()
        return .mix(one: one, other: other, alpha: alpha)
    }

    var names: [String] {
        switch self {
        case .named(let set): [set]
        case .mix(let one, let other, _): [one, other]
        }
    }

    var json: JSON {
        switch self {
        case .named(let set): .string(set)
        case .mix(let one, let other, let alpha):
            object(
                ("kind", .string("mix")), ("one", .string(one)), ("other", .string(other)), ("alpha", .double(alpha)))
        }
    }
}

/// Where training begins.
enum Start: String, Sendable, CaseIterable {
    /// At the adopted state.
    case current
    /// At the shipped values.
    case initial
}

/// What a device does locally, as data: ordered phases, then the guard, then what to send. One update rule serves every
/// algorithm; a phase only names its terms. Sets of values that a phase can name:
///
/// * `initial`: the values shipped in the bundle;
/// * `global`: the latest values from the aggregator (the shipped ones when there are none yet);
/// * `theta`: the device's own tensors as they are now;
/// * `start`: what this phase trains, as it was when the phase began;
/// * `zero`: nothing but zeros;
/// * any copy that a phase makes or that `copies` starts, and any set of arrays that the host hands in.
public struct Plan: Sendable {
    let phases: [Phase]
    /// Whether the trained state replaces the old one.
    public let `guard`: Guard
    /// Seed of every shuffle, from 0.
    public let seed: Int
    /// Patterns of the tensors whose change is sent; personal tensors never are.
    public let upload: [String]
    /// Copies whose change is sent too, of the same tensors (SCAFFOLD's control variates).
    public let uploadCopies: [String]
    let copies: [(name: String, start: CopyStart)]
    let keep: [String]?
    /// Part of the examples, the newest, kept for the guard.
    public let holdout: Double
    let start: Start
    let serve: Serve
    /// After the guard has adopted, memorize the held-out examples too, as they are the newest.
    public let rememberHoldout: Bool

    private static let schemaVersion = 1
    private static let mend = "compare it with plan.schema.json"

    /// Parses plan.json.
    ///
    /// - Throws: `.config`: not JSON, an unknown or missing field, a value out of range, a newer schema
    public init(json text: String) throws {
        let raw: JSON
        do {
            raw = try parseJSON(text)
        } catch let error as Malformed {
            throw PFLError(.config, "the plan is not valid JSON: \(error)", mend: Plan.mend, cause: error)
        }
        try self.init(raw)
    }

    /// The plan that a task of the aggregator holds.
    ///
    /// - Throws: `.config`, as `init(json:)`
    init(_ raw: JSON) throws {
        if let version = raw.object?["schema_version"]?.integer, version > Plan.schemaVersion {
            throw PFLError(
                .config, "the plan has schema_version \(version), newer than \(Plan.schemaVersion)",
                mend: "update pfl-mobile, or export again")
        }
        do {
            try self.init(fields: try Fields(raw))
        } catch let error as Malformed {
            throw PFLError(.config, "the plan is invalid: \(error)", mend: Plan.mend, cause: error)
        }
    }

    private init(fields given: Fields) throws {
        var fields = given
        let texts = Fields.list(Fields.text)
        let version = try fields.field("schema_version", Fields.whole, default: Plan.schemaVersion)
        if version != Plan.schemaVersion { throw Malformed("schema_version: \(version) is not \(Plan.schemaVersion)") }
        phases = try fields.required("phases", Fields.list(Phase.read))
        `guard` = try fields.field("guard", Guard.read, default: Guard())
        seed = try fields.field("seed", Fields.whole, default: 0)
        upload = try fields.field("upload", texts, default: [])
        uploadCopies = try fields.field("upload_copies", texts, default: [])
        copies = try fields.field("copies", Fields.named(CopyStart.read), default: []).map { ($0.name, $0.value) }
        keep = try fields.maybe("keep", texts)
        holdout = try fields.field("holdout", Fields.finite, default: 0.2)
        start = try fields.field("start", Fields.word(Start.self), default: .current)
        serve = try fields.field("serve", Serve.read, default: .named("theta"))
        rememberHoldout = try fields.field("remember_holdout", Fields.truth, default: false)
        try fields.done()
        try check()
    }

    private func check() throws {
        if phases.isEmpty { throw Malformed("phases: at least one is needed") }
        if seed < 0 { throw Malformed("seed: \(seed) is less than 0") }
        let lists = [
            ("upload", upload), ("upload_copies", uploadCopies), ("keep", keep ?? []), ("copies", copies.map(\.name)),
        ]
        for (field, names) in lists {
            for name in names { try Check.name(field, name) }
        }
        if !(holdout > 0 && holdout < 1) { throw Malformed("holdout: \(general(holdout)) is not between 0 and 1") }
        if unrolledCount(phases) > mostPhases { throw Malformed("repeats unroll to more than \(mostPhases) phases") }
        try checkCopies()
        var rate = false
        for step in distinctSteps {
            if step.phase.needsRate && !rate {
                throw Malformed("a \(step.phase.kind) phase with \"per\": \"rate\" needs a train phase before it")
            }
            rate = rate || step.phase.leavesRate
        }
    }

    private func checkCopies() throws {
        for copy in copies { try Check.ownName("copies", copy.name) }
        let made = made
        for name in (keep ?? []) + uploadCopies where !made.contains(name) {
            throw Malformed("no phase makes a copy '\(name)'; the plan makes \(made.sorted(by: nameOrder))")
        }
        for name in serve.names {
            if let keep, made.contains(name), !keep.contains(name) {
                throw Malformed("serve names the copy '\(name)', which is not among those in keep")
            }
        }
        if !uploadCopies.isEmpty && upload.isEmpty {
            throw Malformed("upload_copies needs upload, which says of which tensors")
        }
    }

    /// Names of all copies that there can be after the phases.
    var made: Set<String> {
        Set(copies.map(\.name) + distinctSteps.compactMap(\.phase.makesCopy)).subtracting(["theta"])
    }

    /// The phases in the order they run, repeats unrolled.
    var steps: [Step] { unrolled(phases) }

    /// Each different phase once, in the order of their first runs: enough for whoever only asks about them.
    var distinctSteps: [Step] { distinct(phases) }

    /// Names of the numbers that are sent beside the update, sorted.
    public var reports: [String] { Set(distinctSteps.compactMap(\.phase.reported)).sorted(by: nameOrder) }

    /// JSON with every field, defaults too, so that no reader needs to know them.
    public func dump() -> String { pythonJSON(json) + "\n" }

    private var json: JSON {
        object(
            ("schema_version", .integer(Plan.schemaVersion)), ("phases", .array(phases.map(\.json))),
            ("guard", `guard`.json), ("seed", .integer(seed)), ("upload", .texts(upload)),
            ("upload_copies", .texts(uploadCopies)),
            ("copies", .object(JSONObject(copies.map { ($0.name, $0.start.json) }))),
            ("keep", keep.map(JSON.texts) ?? .null), ("holdout", .double(holdout)), ("start", .string(start.rawValue)),
            ("serve", serve.json), ("remember_holdout", .bool(rememberHoldout)))
    }

    /// What a device does with the plan in plain words, a line a step.
    public var words: [String] {
        let begin = start == .current ? "go on from the adopted state" : "start from the shipped values"
        var words = ["\(begin); hold out the newest \(general(100 * holdout)) % of the examples"]
        words += phases.flatMap(\.words)
        switch serve {
        case .named("theta"): break
        case .named(let set): words.append("predict with '\(set)'")
        case .mix(let one, let other, let alpha):
            words.append("predict with \(general(alpha)) \(one) + \(general(1 - alpha)) \(other)")
        }
        words.append(`guard`.words)
        if rememberHoldout { words.append("once adopted, memorize the held-out examples too") }
        let sends = upload.isEmpty ? "send nothing" : "send the change of \(upload.joined(separator: ", "))"
        words.append(
            sends + (uploadCopies.isEmpty ? "" : ", and of the copies \(uploadCopies.joined(separator: ", "))"))
        return words
    }
}

extension Guard {
    fileprivate var words: String {
        var line = "adopt the result only if \(metric) \(lowerIsBetter ? "falls" : "rises") on the held-out examples"
        if tolerance != 0 { line += " (or gets worse by less than \(general(tolerance)))" }
        if minExamples > 1 { line += "; train nothing with fewer than \(minExamples) of them" }
        if let appeal { line += "; train nothing when the shipped model already reaches \(general(appeal))" }
        return line
    }
}
