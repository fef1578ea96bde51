import Foundation

/// No JSON answer is as large as this.
let mostAnswerBytes = 16 << 20

/// Bytes of bodies, those of failed tries included.
final class Traffic: @unchecked Sendable {
    private let lock = NSLock()
    private var bytes = (up: 0, down: 0)

    var up: Int { lock.withLock { bytes.up } }
    var down: Int { lock.withLock { bytes.down } }

    func add(up: Int = 0, down: Int = 0) {
        lock.withLock {
            bytes.up += up
            bytes.down += down
        }
    }
}

/// The aggregator over HTTP (`server/PROTOCOL.md`, version 1), as one device speaks it. Every call is tried again while the reason
/// for its failure may pass; all of them may be repeated without harm. Redirects are not followed, as what a device sends is for
/// the aggregator alone. A cancelled task ends its request at once.
public final class Client: @unchecked Sendable {
    /// The address, without a slash at its end.
    public let server: String
    let backoff: Backoff
    let traffic = Traffic()
    private let timeoutS: Double
    private let transport: any Transport
    private let sleep: @Sendable (Double) async throws -> Void
    private let probe: any Probe

    private let lock = NSLock()
    private var state = (credential: String?.none, reached: false)

    /// A client.
    ///
    /// - Parameters:
    ///   - server: address, for instance `https://pfl.example.org`
    ///   - backoff: between tries
    ///   - timeoutS: seconds for connecting, and between two pieces of an answer
    ///   - allowHTTP: permit plain HTTP to other machines: anybody on the way can then read the credential
    ///   - transport: of the app, for instance one that pins the operator's key; nil for one of the system's `URLSession`
    /// - Throws: `.config`: the address is none, or plain HTTP to another machine
    public convenience init(
        _ server: String, backoff: Backoff = Backoff(), timeoutS: Double = 60, allowHTTP: Bool = false,
        transport: (any Transport)? = nil
    ) throws {
        try self.init(
            server, backoff: backoff, timeoutS: timeoutS, allowHTTP: allowHTTP,
            transport: transport ?? URLSessionTransport(), probe: SocketProbe(), sleep: Client.wait)
    }

    init(
        _ server: String, backoff: Backoff, timeoutS: Double, allowHTTP: Bool, transport: any Transport,
        probe: any Probe, sleep: @escaping @Sendable (Double) async throws -> Void
    ) throws {
        var address = server[...]
        while address.hasSuffix("/") { address = address.dropLast() }
        self.server = String(address)
        self.backoff = backoff
        self.timeoutS = timeoutS
        self.transport = transport
        self.probe = probe
        self.sleep = sleep
        try Client.checkAddress(server, String(address), allowHTTP: allowHTTP)
    }

    /// Sent along once there is one; set after the enrolment.
    var credential: String? {
        get { lock.withLock { state.credential } }
        set { lock.withLock { state.credential = newValue } }
    }

    /// Whether an answer of the aggregator has come. From then on the address is known to be right, and what else answers there
    /// is of the network that the device is in.
    fileprivate(set) var reached: Bool {
        get { lock.withLock { state.reached } }
        set { lock.withLock { state.reached = newValue } }
    }

    // -- the protocol

    /// What the federation trains, how to enrol, what protects updates.
    func federation() async throws -> FederationInfo { try await ask("GET", "/v1/federation") }

    /// What an attestation must be bound to.
    func challenge() async throws -> Challenge { try await ask("POST", "/v1/challenges") }

    /// Becomes a device; the credential in the answer is told once. A lost answer leaves a device behind that nobody has the
    /// credential of; it does no harm.
    func enrol(_ enrolment: Enrolment) async throws -> Enrolled { try await ask("POST", "/v1/devices", enrolment) }

    /// Asks for a task; asking again gives the same one.
    func checkIn(_ facts: CheckIn) async throws -> CheckedIn { try await ask("POST", "/v1/check-in", facts) }

    /// Says that no update will come.
    func decline(_ task: String, _ decline: Decline) async throws {
        _ = try await call("POST", "/v1/tasks/\(task)/decline", decline)
    }

    /// Sends sums of metrics; counted once.
    func report(_ task: String, _ report: EvaluationReport) async throws {
        _ = try await call("POST", "/v1/tasks/\(task)/evaluation", report)
    }

    /// The version that is served now.
    func latest() async throws -> LatestVersion { try await ask("GET", "/v1/versions/latest") }

    /// Takes part no more: the aggregator forgets the credential.
    func leave() async throws { _ = try await call("DELETE", "/v1/devices/me") }

    // -- requests

    /// Seconds to wait after so many failures in a row, and at least as long as an answer asks for.
    func pause(_ failures: Int, toldS: Double?) -> Double {
        backoff.pause(failures, toldS: toldS, draw: Double.random(in: 0...1))
    }

    /// Waits; a cancelled task waits no longer.
    func rest(_ seconds: Double) async throws { try await sleep(seconds) }

    private static let wait: @Sendable (Double) async throws -> Void = { seconds in
        try await Task.sleep(nanoseconds: UInt64(min(max(seconds, 0.001), 1e9) * 1e9))
    }

    /// One request, whose answer `reader` reads; no further try.
    ///
    /// - Throws: `.unreachable`: no connection, or it broke or timed out, also while the answer is read, or what lies between
    ///   says that it has none; `.notTheAggregator`: something else answers; `.tooLargeOnTheWay`: something between refuses a
    ///   body of this size; `.serverProblem`: the aggregator refuses; `.protocol`: a path to another place, or an answer of
    ///   another protocol; `.config`: the app may not use the network so
    func exchange(
        _ method: String, _ path: String, headers: [String: String] = [:], body: Data? = nil,
        _ reader: any AnswerReader
    ) async throws {
        guard path.hasPrefix("/"), !path.hasPrefix("//"), let url = URL(string: server + path) else {
            throw PFLError(
                .protocol, "the aggregator names the address '\(path.prefix(100))'",
                mend: "it must be one of its own paths")
        }
        var all = headers
        all["User-Agent"] = "pfl-mobile"
        all["Accept-Encoding"] = "identity"
        if let credential { all["Authorization"] = "Bearer \(credential)" }
        let request = TransportRequest(
            method: method, url: url, headers: all, body: body ?? (method == "POST" ? Data() : nil),
            timeoutS: timeoutS)
        let judging = Judging(self, path, sent: body?.count ?? 0, reader)
        do {
            try await transport.exchange(request, judging)
            try judging.end()
        } catch let error as TransportFault {
            throw await connectionFault(error, server, probe: probe, reached: reached)
        } catch let stranger as Stranger {
            // Servers of TLS answer plain HTTP with a page that has this status.
            if stranger.status == 400, server.hasPrefix("http:"), !reached,
                let plain = await plainFault(server, probe)
            {
                throw plain
            }
            throw stranger.error
        }
    }

    /// Sends a JSON body, and gives that of the answer; tried again while that may help.
    private func call(_ method: String, _ path: String, _ content: (any Body)? = nil) async throws -> [UInt8] {
        var tries = Tries(self)
        let body = content.map { Data(Bodies.encode($0)) }
        while true {
            do {
                return try await once(method, path, body)
            } catch let error as PFLError {
                try await tries.failed(error)
            }
        }
    }

    private func once(_ method: String, _ path: String, _ body: Data?) async throws -> [UInt8] {
        let whole = WholeAnswer(self)
        let headers = body == nil ? [:] : ["Content-Type": "application/json"]
        try await exchange(method, path, headers: headers, body: body, whole)
        return whole.bytes
    }

    private func ask<Form: Body>(_ method: String, _ path: String, _ content: (any Body)? = nil) async throws -> Form {
        var tries = Tries(self)
        let body = content.map { Data(Bodies.encode($0)) }
        while true {
            do {
                return try parseAnswer(Form.self, try await once(method, path, body), "\(method) \(path)")
            } catch let error as PFLError {
                try await tries.failed(error)
            }
        }
    }

    private static let loopback: Set = ["localhost", "127.0.0.1", "::1", "[::1]"]

    /// Refuses what is no safe address.
    private static func checkAddress(_ given: String, _ server: String, allowHTTP: Bool) throws {
        func none() -> PFLError {
            PFLError(
                .config, "'\(given)' is not the address of a server", mend: "give one like https://pfl.example.org")
        }
        let odd = server.unicodeScalars.contains {
            $0.properties.isWhitespace || $0.value < 0x21 || $0.value > 0x7e || $0 == "\\"
        }
        guard !odd, server.hasPrefix("https://") || server.hasPrefix("http://"),
            let parts = URLComponents(string: server), let host = parts.host, !host.isEmpty
        else { throw none() }
        if parts.user != nil || parts.password != nil {
            throw PFLError(
                .config, "the server's address holds a user or password",
                mend: "leave it out: devices have credentials")
        }
        if parts.query != nil || parts.fragment != nil { throw none() }
        if parts.scheme != "https" && !loopback.contains(host) && !allowHTTP {
            throw PFLError(
                .config, "\(server) is plain HTTP to another machine: anybody on the way could take the credential",
                mend: "use https://, or allow it (allowHTTP) in a network that you trust")
        }
    }
}

/// Failures of something that is done until it works. They are counted from the last gain on.
struct Tries {
    private let client: Client
    private var failures = 0
    private var best: Int

    /// - Parameter progress: what is there before the first try
    init(_ client: Client, progress: Int = 0) {
        self.client = client
        best = progress
    }

    /// Waits before another try.
    ///
    /// - Parameters:
    ///   - error: of the last try
    ///   - progress: grows when something was gained
    /// - Throws: the error, where another try would not help, or there were enough; `CancellationError`
    mutating func failed(_ error: PFLError, progress: Int = 0) async throws {
        if !error.passing { throw error }
        failures = progress > best ? 1 : failures + 1
        best = max(best, progress)
        if failures >= client.backoff.attempts { throw error }
        let seconds = client.pause(failures, toldS: error.retryAfterS)
        try await client.rest(seconds)
    }
}

/// An answer that is neither the aggregator's answer nor its problem.
private struct Stranger: Error {
    let status: Int
    let error: PFLError
}

/// Lets a reader see only answers of the aggregator; the text of a problem is read here.
private final class Judging: AnswerReader, @unchecked Sendable {
    private let client: Client
    private let path: String
    private let size: Int
    private let reader: any AnswerReader
    // Written in the calls of one exchange, which come one after the other, and read after its end.
    private var problem: (head: AnswerHead, body: WholeAnswer)?

    init(_ client: Client, _ path: String, sent: Int, _ reader: any AnswerReader) {
        self.client = client
        self.path = path
        size = sent
        self.reader = reader
    }

    func began(_ head: AnswerHead) throws {
        let verdict = judge(head.status, head.header)
        switch verdict.answer {
        case .answer:
            client.reached = true
            try reader.began(head)
        case .problem:
            client.reached = true
            problem = (head, WholeAnswer(client))
        default:
            throw Stranger(
                status: head.status, error: answerFault(verdict.answer, client.server, path, head, sent: size))
        }
    }

    func piece(_ bytes: Data) throws { try (problem?.body ?? reader).piece(bytes) }

    func sent(_ bytes: Int) { client.traffic.add(up: bytes) }

    /// The whole answer is there.
    func end() throws {
        if let problem { throw problemError(problem.head, problem.body.bytes) }
    }
}

/// The whole body of an answer that is no tensors.
final class WholeAnswer: AnswerReader, @unchecked Sendable {
    private let client: Client
    // Written in the calls of one exchange, which come one after the other, and read after its end.
    private(set) var bytes: [UInt8] = []
    private(set) var head: AnswerHead?

    init(_ client: Client) {
        self.client = client
    }

    func began(_ head: AnswerHead) { self.head = head }

    /// - Throws: `.protocol`: the body is larger than any such body
    func piece(_ piece: Data) throws {
        client.traffic.add(down: piece.count)
        if bytes.count + piece.count > mostAnswerBytes {
            throw PFLError(
                .protocol, "an answer of \(client.server) has more than \(mostAnswerBytes) bytes",
                mend: "check the server's address")
        }
        bytes += piece
    }

    func sent(_ bytes: Int) {}
}

/// An answer's body; fields that a later server adds are ignored.
///
/// - Throws: `.unreachable`: it is no JSON, so a part of it was lost on the way; `.protocol`: it is not such a body
func parseAnswer<Form: Body>(_ form: Form.Type, _ data: [UInt8], _ what: String) throws -> Form {
    do {
        return try Bodies.answer(form, data, what)
    } catch let error as Malformed {
        throw PFLError(
            .unreachable, "the answer to \(what) did not arrive whole: its \(data.count) bytes are no JSON",
            mend: "try again; if it stays so, something between changes the bytes", cause: error)
    }
}

private let mostText = 1000

/// The error that an answer is; one without a problem's JSON (to HEAD, or cut off) is named by its status.
private func problemError(_ head: AnswerHead, _ body: [UInt8]) -> PFLError {
    let found = Bodies.fields(body)
    func text(_ name: String, _ other: String) -> String {
        guard let text = found[name], !text.isEmpty else { return other }
        return String(text.prefix(mostText))
    }
    return PFLError(
        PFLError.Code(rawValue: text("code", "http-\(head.status)")),
        "the aggregator refuses: \(text("detail", text("title", "status \(head.status)")))",
        mend: text("mend", "see the aggregator's log"), status: head.status,
        retryAfterS: retryAfter(head.header("Retry-After")))
}
