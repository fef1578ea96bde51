/// Version of the protocol (`server/PROTOCOL.md`), first part of every path.
let protocolVersion = 1

/// Media type of tensor files.
let safetensorsType = "application/vnd.safetensors"

/// Media type of problems (RFC 9457).
let problemType = "application/problem+json"

/// A body of the protocol, or an object in one.
protocol Body: Sendable {
    /// - Throws: `Malformed`: a field is missing or not what it should be
    init(_ fields: inout Fields) throws

    /// Every field.
    var json: JSON { get }
}

extension Fields {
    /// A reader of parts that are objects; they are as strict about unknown fields as this one.
    func part<Part: Body>(_ type: Part.Type) -> Reader<Part> {
        let lenient = lenient
        return { json, path in
            var fields = try Fields(json, path, lenient: lenient)
            let found = try Part(&fields)
            try fields.done()
            return found
        }
    }

    /// An object that must be there.
    mutating func body<Part: Body>(_ name: String) throws -> Part { try required(name, part(Part.self)) }

    /// An object that may be missing or null.
    mutating func maybeBody<Part: Body>(_ name: String) throws -> Part? { try maybe(name, part(Part.self)) }

    /// Objects in a list.
    mutating func bodies<Part: Body>(_ name: String) throws -> [Part] {
        try required(name, Fields.list(part(Part.self)))
    }

    /// Objects by name.
    mutating func namedBodies<Part: Body>(_ name: String) throws -> [(name: String, value: Part)] {
        try required(name, Fields.named(part(Part.self)))
    }

    /// Objects by name, in no order.
    ///
    /// - Parameter optional: whether the field may be missing where there are none
    mutating func byName<Part: Body>(_ name: String, optional: Bool = false) throws -> [String: Part] {
        let read = Fields.named(part(Part.self))
        let found = try optional ? field(name, read, default: []) : required(name, read)
        return Dictionary(found.map { ($0.name, $0.value) }) { first, _ in first }
    }

    /// Any object of JSON.
    static func anyObject(_ json: JSON, _ path: String) throws -> JSONObject {
        guard let object = json.object else { throw Malformed("\(path): an object is expected") }
        return object
    }

    /// A text with a number of characters.
    static func text(_ length: ClosedRange<Int>) -> Reader<String> {
        { json, path in
            let text = try Fields.text(json, path)
            let count = text.unicodeScalars.count
            if !length.contains(count) {
                throw Malformed("\(path): it has \(count) characters, not \(length.lowerBound) to \(length.upperBound)")
            }
            return text
        }
    }

    /// A whole number from 0 that every language counts to.
    static func count(_ json: JSON, _ path: String) throws -> Int {
        let value = try Fields.whole(json, path)
        if !(0..<1 << 53).contains(value) { throw Malformed("\(path): \(value) is no count") }
        return value
    }

    /// So many hex digits in small letters.
    static func hex(_ digits: Int) -> Reader<String> {
        { json, path in
            let text = try Fields.text(json, path)
            let isHex = text.utf8.allSatisfy { $0 >= 0x30 && $0 <= 0x39 || $0 >= 0x61 && $0 <= 0x66 }
            if text.utf8.count != digits || !isHex { throw Malformed("\(path): it is not \(digits) hex digits") }
            return text
        }
    }

    fileprivate static var short: Reader<String> { text(1...200) }
    fileprivate static var id: Reader<String> { hex(32) }
    fileprivate static var texts: Reader<[String]> { list(Fields.text) }
}

extension JSON {
    /// The value, or null.
    static func maybe<Value>(_ value: Value?, _ json: (Value) -> JSON) -> JSON { value.map(json) ?? .null }

    /// Objects by name, in this order.
    static func named(_ parts: [(name: String, value: some Body)]) -> JSON {
        .object(JSONObject(parts.map { (key: $0.name, value: $0.value.json) }))
    }

    /// Objects by name, in the order of the names.
    static func named(_ parts: [String: some Body]) -> JSON {
        named(parts.sorted { nameOrder($0.key, $1.key) }.map { (name: $0.key, value: $0.value) })
    }
}

/// Which model a device has: name, version and fingerprint of its bundle.
struct BundleId: Body, Equatable {
    let name: String
    let version: String
    let fingerprint: String

    init(_ model: ModelId) {
        name = model.name
        version = model.version
        fingerprint = model.fingerprint
    }

    init(_ fields: inout Fields) throws {
        name = try fields.required("name", Fields.short)
        version = try fields.required("version", Fields.short)
        fingerprint = try fields.required("fingerprint", Fields.hex(64))
    }

    var json: JSON {
        object(("name", .string(name)), ("version", .string(version)), ("fingerprint", .string(fingerprint)))
    }
}

enum EnrolmentKind: String, CaseIterable { case open, token }

enum FederationState: String, CaseIterable { case running, paused, finished, spent }

/// Answer of `GET /v1/federation`; needs no credential.
struct FederationInfo: Body {
    let server: String
    let bundle: BundleId
    let enrolment: EnrolmentKind
    /// Kinds of attestation, one of which is needed; empty for none.
    let attestation: [String]
    /// The privacy statement.
    let privacy: JSONObject
    let groups: [String]
    let maxUpdateBytes: Int
    let state: FederationState

    init(_ fields: inout Fields) throws {
        let version = try fields.field("protocol", Fields.whole, default: protocolVersion)
        if version != protocolVersion { throw Malformed("protocol: \(version) is not \(protocolVersion)") }
        server = try fields.required("server", Fields.short)
        bundle = try fields.body("bundle")
        enrolment = try fields.required("enrolment", Fields.word(EnrolmentKind.self))
        attestation = try fields.field("attestation", Fields.texts, default: [])
        privacy = try fields.required("privacy", Fields.anyObject)
        groups = try fields.field("groups", Fields.texts, default: [])
        maxUpdateBytes = try fields.required("max_update_bytes", Fields.count)
        state = try fields.required("state", Fields.word(FederationState.self))
    }

    var json: JSON {
        object(
            ("protocol", .integer(protocolVersion)), ("server", .string(server)), ("bundle", bundle.json),
            ("enrolment", .string(enrolment.rawValue)), ("attestation", .texts(attestation)),
            ("privacy", .object(privacy)), ("groups", .texts(groups)), ("max_update_bytes", .integer(maxUpdateBytes)),
            ("state", .string(state.rawValue)))
    }
}

/// Answer of `POST /v1/challenges`: what an attestation must be bound to.
struct Challenge: Body {
    let challenge: String
    /// Seconds since 1970.
    let expires: Double

    init(_ fields: inout Fields) throws {
        challenge = try fields.required("challenge", Fields.short)
        expires = try fields.required("expires", Fields.finite)
    }

    var json: JSON { object(("challenge", .string(challenge)), ("expires", .double(expires))) }
}

/// A verdict of the platform, for instance App Attest.
struct Attestation: Body {
    let kind: String
    let challenge: String
    let verdict: String

    init(kind: String, challenge: String, verdict: String) {
        self.kind = kind
        self.challenge = challenge
        self.verdict = verdict
    }

    init(_ fields: inout Fields) throws {
        kind = try fields.required("kind", Fields.short)
        challenge = try fields.required("challenge", Fields.short)
        verdict = try fields.required("verdict", Fields.text(1...20_000))
    }

    var json: JSON {
        object(("kind", .string(kind)), ("challenge", .string(challenge)), ("verdict", .string(verdict)))
    }
}

/// Body of `POST /v1/devices`.
struct Enrolment: Body {
    let bundle: BundleId
    var token: String?
    var group = ""
    var attestation: Attestation?

    init(bundle: BundleId, token: String? = nil, group: String = "", attestation: Attestation? = nil) {
        self.bundle = bundle
        self.token = token
        self.group = group
        self.attestation = attestation
    }

    init(_ fields: inout Fields) throws {
        bundle = try fields.body("bundle")
        token = try fields.maybe("token", Fields.text(0...200))
        group = try fields.field("group", Fields.text(0...100), default: "")
        attestation = try fields.maybeBody("attestation")
    }

    var json: JSON {
        object(
            ("bundle", bundle.json), ("token", .maybe(token, JSON.string)), ("group", .string(group)),
            ("attestation", .maybe(attestation, \.json)))
    }
}

/// Answer to an enrolment; the credential is told once.
struct Enrolled: Body {
    let device: String
    let credential: String

    init(device: String, credential: String) {
        self.device = device
        self.credential = credential
    }

    init(_ fields: inout Fields) throws {
        device = try fields.required("device", Fields.id)
        credential = try fields.required("credential", Fields.short)
    }

    var json: JSON { object(("device", .string(device)), ("credential", .string(credential))) }
}

/// What a device tells at check-in, so that it is asked only when it can; none of it identifies a person.
struct Facts: Body {
    var engine = ""
    var platform = ""
    var sdk = ""
    var idle = true
    var charging = true
    var unmetered = true
    var freeBytes: Int?

    init() {}

    init(_ fields: inout Fields) throws {
        engine = try fields.field("engine", Fields.text(0...40), default: "")
        platform = try fields.field("platform", Fields.text(0...40), default: "")
        sdk = try fields.field("sdk", Fields.text(0...40), default: "")
        idle = try fields.field("idle", Fields.truth, default: true)
        charging = try fields.field("charging", Fields.truth, default: true)
        unmetered = try fields.field("unmetered", Fields.truth, default: true)
        freeBytes = try fields.maybe("free_bytes", Fields.count)
    }

    var json: JSON {
        object(
            ("engine", .string(engine)), ("platform", .string(platform)), ("sdk", .string(sdk)), ("idle", .bool(idle)),
            ("charging", .bool(charging)), ("unmetered", .bool(unmetered)),
            ("free_bytes", .maybe(freeBytes, JSON.integer)))
    }
}

/// Body of `POST /v1/check-in`.
struct CheckIn: Body {
    let bundle: BundleId
    /// How many training examples there are, rounded down to two digits.
    let examples: Int
    var facts = Facts()

    init(bundle: BundleId, examples: Int, facts: Facts = Facts()) {
        self.bundle = bundle
        self.examples = examples
        self.facts = facts
    }

    init(_ fields: inout Fields) throws {
        bundle = try fields.body("bundle")
        examples = try fields.required("examples", Fields.count)
        facts = try fields.field("facts", fields.part(Facts.self), default: Facts())
    }

    var json: JSON { object(("bundle", bundle.json), ("examples", .integer(examples)), ("facts", facts.json)) }
}

/// A set of values to download; its address is its content, so a device fetches each once.
struct Download: Body {
    let sha256: String
    let bytes: Int
    let url: String

    init(sha256: String, bytes: Int, url: String) {
        self.sha256 = sha256
        self.bytes = bytes
        self.url = url
    }

    init(_ fields: inout Fields) throws {
        sha256 = try fields.required("sha256", Fields.hex(64))
        bytes = try fields.required("bytes", Fields.count)
        url = try fields.required("url", Fields.short)
    }

    var json: JSON { object(("sha256", .string(sha256)), ("bytes", .integer(bytes)), ("url", .string(url))) }
}

/// One tensor of an update.
struct TensorLayout: Body {
    let name: String
    let shape: [Int]

    init(_ fields: inout Fields) throws {
        name = try fields.required("name", Fields.text(1...500))
        shape = try fields.required("shape", Fields.list(Fields.count))
    }

    var json: JSON { object(("name", .string(name)), ("shape", .array(shape.map(JSON.integer)))) }
}

enum Mechanism: String, CaseIterable { case gaussian, matrix, local, none }

/// What protects the update. A device that asks for protection uploads nothing where the mechanism is none.
struct TaskPrivacy: Body {
    let mechanism: Mechanism
    /// L2 norm that the device clips its whole update to; nil is none.
    let clipNorm: Double?
    /// Of the noise that the aggregator adds, relative to the clip norm.
    let noiseMultiplier: Double
    /// Of the noise that the device adds itself.
    let localNoiseMultiplier: Double
    /// Of the version that the task begins with: what was spent before its round.
    let statement: JSONObject
    /// Epsilon once the update is in a model, at the statement's delta; nil is no guarantee.
    let epsilonAfter: Double?

    init(_ fields: inout Fields) throws {
        mechanism = try fields.required("mechanism", Fields.word(Mechanism.self))
        clipNorm = try fields.nullable("clip_norm", Fields.finite)
        noiseMultiplier = try fields.required("noise_multiplier", Fields.finite)
        localNoiseMultiplier = try fields.field("local_noise_multiplier", Fields.finite, default: 0)
        statement = try fields.field("statement", Fields.anyObject, default: JSONObject())
        epsilonAfter = try fields.maybe("epsilon_after", Fields.finite)
        if let epsilonAfter, epsilonAfter < 0 { throw Malformed("epsilon_after: \(epsilonAfter) is less than 0") }
    }

    var json: JSON {
        object(
            ("mechanism", .string(mechanism.rawValue)), ("clip_norm", .maybe(clipNorm, JSON.double)),
            ("noise_multiplier", .double(noiseMultiplier)), ("local_noise_multiplier", .double(localNoiseMultiplier)),
            ("statement", .object(statement)), ("epsilon_after", .maybe(epsilonAfter, JSON.double)))
    }

    /// Whether any noise is named, so that something is promised.
    var guarantees: Bool { mechanism != .none }

    /// False where the device's own noise is all that protects.
    var trustsAggregator: Bool { mechanism != .local }
}

/// What a device is to do in a round.
struct RoundTask: Body {
    let id: String
    let round: Int
    let version: Int
    /// Of this round, with its seed.
    let plan: JSONObject
    /// Values that the plan names; `global` is always among them.
    let sets: [(name: String, value: Download)]
    /// The tensors of the update, float32, in this order: sorted by the bytes of their UTF-8 names.
    let layout: [TensorLayout]
    /// Names of the numbers to send along.
    let reports: [String]
    let privacy: TaskPrivacy
    /// Whether an evaluation report is asked for.
    let evaluate: Bool
    /// Seconds since 1970; later updates are refused.
    let expires: Double
    let expiresInS: Double
    let updateURL: String

    init(_ fields: inout Fields) throws {
        id = try fields.required("id", Fields.id)
        round = try fields.required("round", Fields.count)
        version = try fields.required("version", Fields.count)
        plan = try fields.required("plan", Fields.anyObject)
        sets = try fields.namedBodies("sets")
        layout = try fields.bodies("layout")
        reports = try fields.field("reports", Fields.texts, default: [])
        privacy = try fields.body("privacy")
        evaluate = try fields.required("evaluate", Fields.truth)
        expires = try fields.required("expires", Fields.finite)
        expiresInS = try fields.required("expires_in_s", Fields.finite)
        updateURL = try fields.required("update_url", Fields.short)
    }

    var json: JSON {
        object(
            ("id", .string(id)), ("round", .integer(round)), ("version", .integer(version)), ("plan", .object(plan)),
            ("sets", .named(sets)),
            ("layout", .array(layout.map(\.json))), ("reports", .texts(reports)), ("privacy", privacy.json),
            ("evaluate", .bool(evaluate)), ("expires", .double(expires)), ("expires_in_s", .double(expiresInS)),
            ("update_url", .string(updateURL)))
    }
}

enum CheckInStatus: String, CaseIterable { case task, wait, done }

/// Why there is no task now.
enum WaitReason: String, CaseIterable {
    case notSelected = "not_selected"
    case full
    case betweenRounds = "between_rounds"
    case notEligible = "not_eligible"
    case tooSoon = "too_soon"
    case paused
    case finished
    case spent
}

/// Answer to a check-in: a task, or when to ask again and why.
struct CheckedIn: Body {
    let status: CheckInStatus
    let task: RoundTask?
    let retryAfterS: Double?
    let reason: WaitReason?

    init(_ fields: inout Fields) throws {
        status = try fields.required("status", Fields.word(CheckInStatus.self))
        task = try fields.maybeBody("task")
        retryAfterS = try fields.maybe("retry_after_s", Fields.finite)
        reason = try fields.maybe("reason", Fields.word(WaitReason.self))
    }

    var json: JSON {
        object(
            ("status", .string(status.rawValue)), ("task", .maybe(task, \.json)),
            ("retry_after_s", .maybe(retryAfterS, JSON.double)),
            ("reason", .maybe(reason) { .string($0.rawValue) }))
    }
}

/// Answer of `GET /v1/versions/latest`: the model as it is served.
struct LatestVersion: Body {
    let version: Int
    /// That made it; nil for version 0 and roll-backs.
    let round: Int?
    /// `global`: the shared values.
    let sets: [(name: String, value: Download)]
    /// What protects those who trained it.
    let privacy: JSONObject
    /// Seconds since 1970.
    let created: Double

    init(_ fields: inout Fields) throws {
        version = try fields.required("version", Fields.count)
        round = try fields.nullable("round", Fields.count)
        sets = try fields.namedBodies("sets")
        privacy = try fields.required("privacy", Fields.anyObject)
        created = try fields.required("created", Fields.finite)
    }

    var json: JSON {
        object(
            ("version", .integer(version)), ("round", .maybe(round, JSON.integer)),
            ("sets", .named(sets)),
            ("privacy", .object(privacy)), ("created", .double(created)))
    }
}

enum UploadStatus: String, CaseIterable { case accepted, partial }

/// Answer to an upload: accepted (also when the same was sent before), or partial with what is there.
struct UploadState: Body {
    let status: UploadStatus
    let task: String
    let received: Int
    var duplicate = false

    init(status: UploadStatus, task: String, received: Int, duplicate: Bool) {
        self.status = status
        self.task = task
        self.received = received
        self.duplicate = duplicate
    }

    init(_ fields: inout Fields) throws {
        status = try fields.required("status", Fields.word(UploadStatus.self))
        task = try fields.required("task", Fields.id)
        received = try fields.required("received", Fields.count)
        duplicate = try fields.field("duplicate", Fields.truth, default: false)
    }

    var json: JSON {
        object(
            ("status", .string(status.rawValue)), ("task", .string(task)), ("received", .integer(received)),
            ("duplicate", .bool(duplicate)))
    }
}

enum DeclineReason: String, CaseIterable, Sendable {
    case noExamples = "no_examples"
    case goodEnough = "good_enough"
    case diverged
    case cancelled
    case privacy
    case engine
    case storage
    case plan
    case outOfMemory = "out_of_memory"
    case tooSlow = "too_slow"
}

/// Body of `POST /v1/tasks/{id}/decline`: the device will not send an update.
struct Decline: Body {
    let reason: DeclineReason

    init(_ reason: DeclineReason) {
        self.reason = reason
    }

    init(_ fields: inout Fields) throws {
        reason = try fields.required("reason", Fields.word(DeclineReason.self))
    }

    var json: JSON { object(("reason", .string(reason.rawValue))) }
}

/// A metric over held-out labels: its sum and how many there were, a whole number.
struct MetricSum: Body, Equatable {
    let sum: Double
    let weight: Double

    private static let mostWeight = 1e9

    init(sum: Double, weight: Double) {
        self.sum = sum
        self.weight = weight
    }

    init(_ fields: inout Fields) throws {
        sum = try fields.required("sum", Fields.finite)
        weight = try fields.required("weight", Fields.finite)
        if !(1...MetricSum.mostWeight).contains(weight) || weight != weight.rounded() {
            throw Malformed("weight: \(weight) is no whole number from 1 to \(MetricSum.mostWeight)")
        }
    }

    var json: JSON { object(("sum", .double(sum)), ("weight", .double(weight))) }
}

/// Body of `POST /v1/tasks/{id}/evaluation`: sums over this device's held-out labels; added to others' at once. Both maps hold
/// the same metrics.
struct EvaluationReport: Body {
    /// Measured with the shared values as sent.
    let global: [String: MetricSum]
    /// Measured with what serves after training.
    let personalized: [String: MetricSum]
    let adopted: Bool

    private static let mostMetrics = 32

    init(global: [String: MetricSum], personalized: [String: MetricSum], adopted: Bool) {
        self.global = global
        self.personalized = personalized
        self.adopted = adopted
    }

    init(_ fields: inout Fields) throws {
        global = try fields.byName("global")
        personalized = try fields.byName("personalized")
        adopted = try fields.required("adopted", Fields.truth)
        if max(global.count, personalized.count) > EvaluationReport.mostMetrics {
            throw Malformed("more than \(EvaluationReport.mostMetrics) metrics")
        }
    }

    var json: JSON {
        object(("global", .named(global)), ("personalized", .named(personalized)), ("adopted", .bool(adopted)))
    }
}

/// An RFC 9457 problem.
struct ProblemBody: Body {
    let type: String
    let title: String
    let status: Int
    let detail: String
    let code: String
    let mend: String
    let instance: String?

    init(_ fields: inout Fields) throws {
        type = try fields.required("type", Fields.text)
        title = try fields.required("title", Fields.text)
        status = try fields.required("status", Fields.whole)
        detail = try fields.required("detail", Fields.text)
        code = try fields.required("code", Fields.text)
        mend = try fields.required("mend", Fields.text)
        instance = try fields.maybe("instance", Fields.text)
    }

    var json: JSON {
        object(
            ("type", .string(type)), ("title", .string(title)), ("status", .integer(status)),
            ("detail", .string(detail)), ("code", .string(code)), ("mend", .string(mend)),
            ("instance", .maybe(instance, JSON.string)))
    }
}

/// Reads and writes the bodies of the protocol.
enum Bodies {
    /// The body of an answer; unknown fields are refused.
    ///
    /// - Parameter what: was asked, for messages
    /// - Throws: `Malformed`: the bytes are no JSON: they did not arrive whole; `.protocol`: it is not of this version of the
    ///   protocol
    static func decode<Form: Body>(_ form: Form.Type, _ data: [UInt8], _ what: String) throws -> Form {
        try decode(form, try parseJSON(bytes: data), what, lenient: false)
    }

    /// The same; fields that a later server adds are ignored.
    static func answer<Form: Body>(_ form: Form.Type, _ data: [UInt8], _ what: String) throws -> Form {
        try decode(form, try parseJSON(bytes: data), what, lenient: true)
    }

    private static func decode<Form: Body>(
        _ form: Form.Type, _ json: JSON, _ what: String, lenient: Bool
    ) throws -> Form {
        do {
            return try read(form, json, lenient: lenient)
        } catch let error as Malformed {
            throw PFLError(
                .protocol, "the answer to \(what) is not of protocol version \(protocolVersion): \(error)",
                mend: "check the server's address, and update the app if the server is newer", cause: error)
        }
    }

    /// An object of JSON, whole.
    ///
    /// - Throws: `Malformed`: it is not such a body
    static func read<Form: Body>(_ form: Form.Type, _ json: JSON, lenient: Bool = false) throws -> Form {
        var fields = try Fields(json, lenient: lenient)
        let found = try Form(&fields)
        try fields.done()
        return found
    }

    /// The texts in an object of JSON by name; none where it is no such object.
    static func fields(_ data: [UInt8]) -> [String: String] {
        guard let object = try? parseJSON(bytes: data).object else { return [:] }
        var found: [String: String] = [:]
        for (name, value) in object { found[name] = value.string }
        return found
    }

    /// JSON with every field.
    static func encode(_ body: some Body) -> [UInt8] { Array(pythonJSON(body.json).utf8) }
}
