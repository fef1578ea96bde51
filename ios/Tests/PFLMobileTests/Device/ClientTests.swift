import Foundation
import Testing

@testable import PFLMobile

@Suite struct ClientTests {
    private let task = String(repeating: "0", count: 32)

    private func failure(_ client: Client) async -> PFLError? {
        do {
            try await client.decline(task, Decline(.cancelled))
            return nil
        } catch {
            return error as? PFLError
        }
    }

    /// The error that one answer ends the try with; asked once.
    private func ends(
        _ answer: FakeAnswer, _ code: PFLError.Code, reached: Bool = false,
        _ location: SourceLocation = #_sourceLocation
    ) async throws -> PFLError {
        let transport = FakeTransport([answer])
        let client = try fakeClient(transport)
        let error = try #require(await failure(client), sourceLocation: location)
        #expect(error.isA(code), "\(error)", sourceLocation: location)
        #expect(transport.requests.count == 1, "it was tried again", sourceLocation: location)
        #expect(client.reached == reached, sourceLocation: location)
        return error
    }

    @Test("a check-in is asked in JSON, and what a later server adds is ignored")
    func checkIn() async throws {
        let transport = FakeTransport([
            .of(#"{"status":"wait","task":null,"retry_after_s":3.5,"reason":"full","more":{"a":1}}"#)
        ])
        let client = try fakeClient(transport)
        client.credential = "secret"
        let model = ModelId(name: "k", version: "1", fingerprint: String(repeating: "ab", count: 32))
        let found = try await client.checkIn(CheckIn(bundle: BundleId(model), examples: 120))
        #expect(found.status == .wait && found.retryAfterS == 3.5 && found.reason == .full)
        let request = try #require(transport.requests.first)
        #expect(request.method == "POST" && request.path == "/v1/check-in")
        #expect(request.headers["Authorization"] == "Bearer secret")
        #expect(request.headers["Accept-Encoding"] == "identity")
        #expect(request.headers["Content-Type"] == "application/json")
        #expect(try request.json?["examples"].int == 120)
        #expect(client.traffic.up == request.body?.count)
    }

    @Test("an aggregator that is busy is asked again, no sooner than it says")
    func busy() async throws {
        let clock = FakeClock()
        let transport = FakeTransport([
            .problem("unavailable", 503, ["Retry-After": "7"]), .of(#"{"challenge":"c","expires":1.5}"#),
        ])
        let client = try fakeClient(transport, clock)
        #expect(try await client.challenge().challenge == "c")
        #expect(clock.now >= 1007)
        #expect(transport.requests.allSatisfy { $0.headers["Authorization"] == nil })
    }

    @Test("what is between is not believed for longer than a minute")
    func between() async throws {
        let transport = FakeTransport { _ in .stranger("busy", 502, ["Retry-After": "999"]) }
        let client = try fakeClient(transport)
        let error = try #require(await failure(client))
        #expect(error.code == .unreachable && error.retryAfterS == 60)
        #expect(transport.requests.count == quick.attempts && !client.reached)
    }

    @Test("a sign-in page, a redirect and other strangers end the try")
    func strangers() async throws {
        let page = try await ends(
            .stranger("<html>sign in</html>", 200, ["Content-Type": "text/html; charset=utf-8"]), .notTheAggregator)
        #expect(page.code == .notTheAggregator && page.message.contains("'text/html'"))
        _ = try await ends(.stranger("{}", 404, ["Content-Type": "application/json"]), .notTheAggregator)
        _ = try await ends(.stranger("", 407), .notTheAggregator)
        let portal = try await ends(.stranger("", 302, ["Location": "https://portal.example/?next=1"]), .redirected)
        #expect(portal.message.contains("https://portal.example/?next=1"))
        let moved = try await ends(
            .stranger("", 301, ["Location": "https://else.example/v1/tasks/\(task)/decline"]), .redirected)
        #expect(moved.mend.contains("https://else.example"))
        let large = try await ends(.stranger("", 413), .tooLargeOnTheWay)
        #expect(large.message.contains("23 bytes"), "\(large)")
        let other = try await ends(.stranger("{}", 200, ["PFL-Protocol": "2"]), .otherProtocol)
        #expect(other.mend.contains("app"))
        _ = try await ends(.of("{}", 200, ["Content-Encoding": "gzip"]), .protocol)
    }

    @Test("a problem is told by its code, and by its status where it did not arrive whole")
    func problems() async throws {
        let error = try await ends(.problem("round-closed", 410), .serverProblem, reached: true)
        #expect(error.code.rawValue == "round-closed" && error.status == 410 && error.mend == "wait")
        #expect(error.message.contains("it is round-closed") && !error.passing)
        let broken = try await ends(.of("{\"code\":", 409), .serverProblem, reached: true)
        #expect(broken.code.rawValue == "http-409")
    }

    @Test("answers that are cut off are asked for again")
    func cut() async throws {
        let whole = #"{"challenge":"c","expires":1}"#
        let transport = FakeTransport([.of(whole).cut(), .of(String(whole.dropLast(3))), nil, .of(whole)])
        #expect(try await fakeClient(transport).challenge().challenge == "c")
        #expect(transport.requests.count == 4)
    }

    @Test("JSON of another protocol ends the try, and so does more than any answer has")
    func otherBodies() async throws {
        let other = FakeTransport { _ in .of(#"{"challenge":7}"#) }
        let large = FakeTransport { _ in .of([UInt8](repeating: 0x20, count: mostAnswerBytes + 1)) }
        for transport in [other, large] {
            let client = try fakeClient(transport)
            await #expect { _ = try await client.challenge() } throws: { ($0 as? PFLError)?.code == .protocol }
            #expect(transport.requests.count == 1)
        }
    }

    @Test("progress counts failures anew")
    func progress() async throws {
        let client = try fakeClient(FakeTransport())
        var tries = Tries(client)
        var calls = 0
        await #expect(throws: PFLError.self) {
            while true {
                calls += 1
                try await tries.failed(PFLError(.unreachable, "away", mend: "wait"), progress: min(calls, 5))
            }
        }
        #expect(calls == 4 + quick.attempts)
    }

    @Test("paths to another place are refused")
    func paths() async throws {
        let transport = FakeTransport()
        let client = try fakeClient(transport)
        for path in ["//evil.example/x", "http://evil.example/", "", "x"] {
            await #expect { try await client.exchange("GET", path, WholeAnswer(client)) } throws: {
                ($0 as? PFLError)?.code == .protocol
            }
        }
        #expect(transport.requests.isEmpty)
    }

    @Test("addresses that are none, or not safe, are refused")
    func addresses() throws {
        let bad = [
            "", "x", "ftp://a", "https://", "https://a b", "https://a/?x=1", "https://a/#x", "https://u:p@a",
            "http://a",
            "https://a\\b", "http://127.0.0.1.evil.example", "http://localhost.evil.example",
        ]
        for address in bad { expectError(.config, address) { _ = try Client(address) } }
        for address in ["https://a.example/", "http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"] {
            _ = try Client(address)
        }
        #expect(try Client("http://a", allowHTTP: true).server == "http://a")
        #expect(try Client("https://a.example/pfl/").server == "https://a.example/pfl")
    }

    @Test("a fault is told by its kind, and by what the port speaks")
    func faults() async throws {
        func error(
            _ kind: TransportFault.Kind, _ server: String = "https://a.example", probe: FakeProbe = FakeProbe()
        ) async throws -> PFLError.Code {
            let transport = FakeTransport { _ in throw TransportFault(kind, "why") }
            return try #require(await failure(try fakeClient(transport, server: server, probe: probe))).code
        }
        #expect(try await error(.certificate) == .certificate)
        #expect(try await error(.certificateExpired) == .certificate)
        #expect(try await error(.noAddress) == .unreachable)
        #expect(try await error(.refused) == .unreachable)
        #expect(try await error(.plainForbidden) == .config)
        // An alert is TLS, and plain HTTP is none; a port that says nothing may do so another time.
        #expect(try await error(.tls, probe: FakeProbe(tls: [0x15, 3, 3])) == .tls)
        #expect(try await error(.tls, probe: FakeProbe(tls: Array("HTTP/".utf8))) == .tls)
        #expect(try await error(.tls) == .unreachable)
        #expect(try await error(.broken, probe: FakeProbe(tls: [0x16, 3, 3])) == .unreachable)
        let loopback = "http://127.0.0.1:1"
        #expect(try await error(.noHTTP, loopback, probe: FakeProbe(plain: Array("SSH-2".utf8))) == .notTheAggregator)
        #expect(try await error(.broken, loopback, probe: FakeProbe(plain: Array("HTTP/".utf8))) == .unreachable)
        #expect(try await error(.broken, loopback, probe: FakeProbe(plain: [0x15, 3, 1], tls: [0x15, 3, 3])) == .tls)
    }

    @Test("a cancelled task waits no longer")
    func cancelled() async throws {
        let transport = FakeTransport { _ in .problem("unavailable", 503, ["Retry-After": "3600"]) }
        let client = try Client("http://127.0.0.1:1", transport: transport)
        let asking = Task { try await client.challenge() }
        while transport.requests.isEmpty { await Task.yield() }
        asking.cancel()
        await #expect(throws: CancellationError.self) { _ = try await asking.value }
    }
}
