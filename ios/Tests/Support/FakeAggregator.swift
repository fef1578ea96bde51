import Foundation

@testable import PFLMobile

/// An answer as a test wants it.
struct FakeAnswer: Sendable {
    var status: Int
    var headers: [String: String]
    var body: [UInt8]
    /// The connection ends after so many bytes of the body; nil for an answer that is whole.
    var cutAfter: Int?

    /// Of an aggregator.
    static func of(_ body: String = "{}", _ status: Int = 200, _ headers: [String: String] = [:]) -> FakeAnswer {
        of(Array(body.utf8), status, headers)
    }

    static func of(_ body: [UInt8], _ status: Int = 200, _ headers: [String: String] = [:]) -> FakeAnswer {
        FakeAnswer(
            status: status, headers: [protocolHeader: "1", "Content-Type": "application/json"].merging(headers) { $1 },
            body: body)
    }

    /// Of something else.
    static func stranger(_ body: String, _ status: Int = 200, _ headers: [String: String] = [:]) -> FakeAnswer {
        FakeAnswer(status: status, headers: headers, body: Array(body.utf8))
    }

    /// A problem of an aggregator.
    static func problem(_ code: String, _ status: Int, _ headers: [String: String] = [:]) -> FakeAnswer {
        of(
            #"{"type":"t","title":"T","status":\#(status),"detail":"it is \#(code)","code":"\#(code)","mend":"wait"}"#,
            status, ["Content-Type": problemType].merging(headers) { $1 })
    }

    /// The same, with a connection that ends in the middle.
    func cut(after bytes: Int? = nil) -> FakeAnswer {
        var cut = self
        cut.cutAfter = bytes ?? body.count / 2
        return cut
    }
}

/// Carries requests to a closure, piece by piece as a network does.
final class FakeTransport: Transport, @unchecked Sendable {
    /// What a request is answered with; nil where the connection ends without an answer.
    typealias Answering = @Sendable (TransportRequest) throws -> FakeAnswer?

    private let lock = NSLock()
    private var asked: [TransportRequest] = []
    private var answering: Answering

    init(_ answering: @escaping Answering = { _ in nil }) {
        self.answering = answering
    }

    /// The answers, one after the other; then none.
    convenience init(_ answers: [FakeAnswer?]) {
        let left = Left(answers)
        self.init { _ in left.next() }
    }

    var requests: [TransportRequest] { lock.withLock { asked } }

    func exchange(_ request: TransportRequest, _ reader: any AnswerReader) async throws {
        try Task.checkCancellation()
        let answering = lock.withLock {
            asked.append(request)
            return self.answering
        }
        reader.sent(request.body?.count ?? 0)
        guard let answer = try answering(request) else { throw TransportFault(.broken, "it is away") }
        try reader.began(AnswerHead(status: answer.status, headers: answer.headers))
        let body = answer.body.prefix(answer.cutAfter ?? answer.body.count)
        for start in stride(from: 0, to: body.count, by: 1 << 16) {
            try reader.piece(Data(body[start..<min(start + 1 << 16, body.count)]))
        }
        if answer.cutAfter != nil { throw TransportFault(.broken, "it was cut off") }
    }

    private final class Left: @unchecked Sendable {
        private let lock = NSLock()
        private var answers: [FakeAnswer?]

        init(_ answers: [FakeAnswer?]) {
            self.answers = answers
        }

        func next() -> FakeAnswer? { lock.withLock { answers.isEmpty ? nil : answers.removeFirst() } }
    }
}

extension TransportRequest {
    /// Without the address of the server.
    var path: String { url.path }

    var json: JSON? { body.flatMap { try? parseJSON(bytes: Array($0)) } }
}

/// Time that passes only where somebody waits.
final class FakeClock: @unchecked Sendable {
    private let lock = NSLock()
    private var seconds = 1000.0

    var now: Double {
        get { lock.withLock { seconds } }
        set { lock.withLock { seconds = newValue } }
    }

    func sleep(_ more: Double) async throws {
        try Task.checkCancellation()
        lock.withLock { seconds += more }
    }
}

/// A probe that hears always the same.
struct FakeProbe: Probe {
    var plain: [UInt8] = []
    var tls: [UInt8] = []

    func firstBytes(_ host: String, _ port: Int, of question: [UInt8]) async -> [UInt8] {
        question.first == UInt8(ascii: "H") ? plain : tls
    }
}

/// Pauses that are soon over.
let quick = Backoff(attempts: 4, firstS: 0.001, mostS: 0.01)

func fakeClient(
    _ transport: any Transport, _ clock: FakeClock = FakeClock(), server: String = "http://127.0.0.1:1",
    probe: FakeProbe = FakeProbe()
) throws -> Client {
    try Client(
        server, backoff: quick, timeoutS: 5, allowHTTP: false, transport: transport, probe: probe, sleep: clock.sleep)
}

/// What protects updates, in tests.
enum Tasks {
    static let believed = """
        {"mechanism": "gaussian", "clip_norm": 0.05, "noise_multiplier": 1.0, "epsilon_after": 8.0, "statement":
         {"private": true, "epsilon": 7.0, "delta": 1e-6, "noise_multiplier": 1.0, "sampling": "none"}}
        """
    static let local = """
        {"mechanism": "local", "clip_norm": 0.05, "noise_multiplier": 0.0, "local_noise_multiplier": 8.0, "statement": {}}
        """
    static let none = #"{"mechanism": "none", "clip_norm": null, "noise_multiplier": 0.0}"#
}

/// A federation of one round after another, for the toy model or another; it can be told what to answer, and keeps everything it is sent.
final class FakeAggregator: @unchecked Sendable {
    static let plan = """
        {"phases": [{"kind": "move", "group": ["role:shared"], "toward": "global", "rate": 1.0},
            {"kind": "train", "group": ["*"], "steps": 12, "optimizer": {"kind": "sgd", "lr": 0.3}}],
         "upload": ["role:shared"]}
        """

    let model: ModelId
    let rounds: Int
    var privacy = Tasks.believed
    var plan = FakeAggregator.plan
    var layout = #"[{"name": "a", "shape": [2]}]"#
    var attestation = "[]"
    var expiresInS = 60.0
    /// Answers instead of its own; nil for its own.
    var instead: ((TransportRequest) throws -> FakeAnswer??)?

    private let lock = NSRecursiveLock()
    private(set) var requests: [TransportRequest] = []
    private(set) var updates: [String: [UInt8]] = [:]
    private(set) var declined: [String] = []
    private var round = 0
    private let values: [UInt8]
    private let digest: String

    /// - Parameter values: of the shared tensors; by default the toy's
    init(_ model: ModelId, rounds: Int = 1, values given: [String: FloatTensor] = ["a": FloatTensor([0.1, -0.1], [2])])
        throws
    {
        self.model = model
        self.rounds = rounds
        values = try Safetensors.write(given.mapValues(Tensor.float))
        digest = Sha256.hex(values)
    }

    var transport: FakeTransport { FakeTransport { try self.answer($0) } }

    func task(_ number: Int) -> String {
        let digits = "\(number)"
        return String(repeating: "0", count: 32 - digits.count) + digits
    }

    /// Head and values of the update of a round.
    func update(_ number: Int) throws -> (UpdateHead, [Float]) {
        guard let data = updates[task(number)] else { throw Malformed("there is no update of round \(number)") }
        let layout = UpdateLayout(shapes: [("a", [2])])
        let (head, offset) = try UpdateFile.parsePrefix(data, layout, totalLength: data.count)
        let floats = data[offset...].withUnsafeBytes { bytes in
            (0..<2).map { bytes.loadUnaligned(fromByteOffset: 4 * $0, as: Float.self) }
        }
        return (head, floats)
    }

    /// Keeps an update without an answer.
    func keep(_ request: TransportRequest) {
        updates[request.path.components(separatedBy: "/")[3]] = Array(request.body ?? Data())
    }

    /// What was asked, as `GET /v1/federation`.
    var lines: [String] { lock.withLock { requests.map { "\($0.method) \($0.path)" } } }

    /// What was sent to a path.
    func sent(_ path: String) -> [JSON] {
        lock.withLock { requests.filter { $0.path.hasSuffix(path) }.compactMap(\.json) }
    }

    private func answer(_ request: TransportRequest) throws -> FakeAnswer? {
        try lock.withLock {
            requests.append(request)
            if let told = try instead?(request) { return told }
            let (method, path) = (request.method, request.path)
            let parts = path.components(separatedBy: "/")
            let id = parts.count > 3 ? parts[3] : ""
            switch path {
            case "/v1/federation": return .of(federation)
            case "/v1/challenges": return .of(#"{"challenge": "c1", "expires": 9e9}"#)
            case "/v1/devices":
                let device = String(repeating: "d", count: 32)
                return .of(#"{"device": "\#(device)", "credential": "secret"}"#, 201)
            default: break
            }
            if request.headers["Authorization"] != "Bearer secret" { return .problem("unauthorized", 401) }
            switch path {
            case "/v1/devices/me": return .of("", 204)
            case "/v1/check-in": return .of(checkIn)
            case "/v1/versions/latest":
                return .of(
                    #"{"version": \#(round), "round": \#(round), "sets": \#(sets), "privacy": {}, "created": 1.0}"#)
            case "/v1/sets/\(digest)": return .of(values)
            default: break
            }
            if method == "HEAD" {
                return .of("", 200, ["Upload-Offset": "0", "Upload-Complete": updates[id] == nil ? "?0" : "?1"])
            }
            if method == "PUT" {
                keep(request)
                round += 1
                let size = request.body?.count ?? 0
                return .of(#"{"status": "accepted", "task": "\#(id)", "received": \#(size), "duplicate": false}"#)
            }
            if path.hasSuffix("/evaluation") { return .of() }
            if path.hasSuffix("/decline") {
                declined.append(id)
                round += 1
                return .of()
            }
            return .problem("not-found", 404)
        }
    }

    var federation: String { federation(model) }

    func federation(_ model: ModelId) -> String {
        let bundle = pythonJSON(BundleId(model).json)
        return """
            {"protocol": 1, "server": "fake", "bundle": \(bundle), "enrolment": "open", "attestation": \(attestation),
             "privacy": {}, "groups": [], "max_update_bytes": 10000, "state": "running"}
            """
    }

    private var sets: String {
        #"{"global": {"sha256": "\#(digest)", "bytes": \#(values.count), "url": "/v1/sets/\#(digest)"}}"#
    }

    private var checkIn: String {
        if round >= rounds { return #"{"status": "done", "reason": "finished"}"# }
        let id = task(round + 1)
        return """
            {"status": "task", "task": {"id": "\(id)", "round": \(round + 1), "version": \(round), "plan": \(plan),
             "sets": \(sets), "layout": \(layout), "reports": [], "privacy": \(privacy), "evaluate": true,
             "expires": 9e9, "expires_in_s": \(expiresInS), "update_url": "/v1/tasks/\(id)/update"}}
            """
    }
}
