import Foundation
import Testing

@testable import PFLMobile

/// The client over the system's own HTTP, against sockets of this machine.
@Suite struct URLSessionTransportTests {
    private let challenge = FakeAnswer.of(#"{"challenge":"c","expires":1.5}"#)

    private func client(_ address: String) throws -> Client { try Client(address, backoff: quick, timeoutS: 20) }

    private func failure(_ client: Client) async -> PFLError? {
        do {
            _ = try await client.challenge()
            return nil
        } catch {
            return error as? PFLError
        }
    }

    @Test("requests go out as they are, and answers come back")
    func wholeWay() async throws {
        let answer = challenge
        let server = try TinyServer { _ in answer.wire }
        let client = try client(server.address)
        client.credential = "secret"
        #expect(try await client.challenge().challenge == "c")
        let request = try #require(server.requests.first)
        #expect(request.line == "POST /v1/challenges" && request.body.isEmpty)
        #expect(request.headers["content-length"] == "0")
        #expect(request.headers["authorization"] == "Bearer secret")
        #expect(request.headers["accept-encoding"] == "identity")
        #expect(request.headers["cookie"] == nil)
        #expect(client.reached)
        try await client.decline(String(repeating: "0", count: 32), Decline(.plan))
        #expect(try parseJSON(bytes: server.requests[1].body) == parseJSON(#"{"reason":"plan"}"#))
        #expect(client.traffic.up == server.requests[1].body.count)
    }

    @Test("an update and the question for it go out with their headers")
    func updates() async throws {
        let data = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 * 7) }
        let task = String(repeating: "0123456789abcdef", count: 2)
        let has = FakeAnswer.of("", 200, ["Upload-Offset": "100000", "Upload-Complete": "?0"])
        let accepted = FakeAnswer.of(#"{"status":"accepted","task":"\#(task)","received":300000}"#)
        let server = try TinyServer { ($0.line.hasPrefix("HEAD") ? has : accepted).wire }
        let temporary = try TemporaryFolder()
        try Data(data).write(to: URL(fileURLWithPath: temporary("update")))
        let client = try client(server.address)
        let url = "/v1/tasks/\(task)/update"
        let state = try await upload(client, url, file: temporary("update"), key: "key", resume: true)
        #expect(state.status == .accepted)
        let put = try #require(server.requests.last)
        #expect(server.requests.map(\.line) == ["HEAD \(url)", "PUT \(url)"])
        #expect(put.headers["content-type"] == safetensorsType && put.headers["upload-offset"] == "100000")
        #expect(put.headers["content-length"] == "200000" && put.headers["idempotency-key"] == "key")
        #expect(put.body == Array(data[100_000...]))
        #expect(client.traffic.up == 200_000)
    }

    @Test("a download goes on where the connection broke")
    func resumed() async throws {
        let data = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 * 7) }
        let digest = Sha256.hex(data)
        let server = try TinyServer { request in
            guard let range = request.headers["range"], let from = Int(range.dropFirst(6).dropLast()) else {
                return FakeAnswer.of(data).cut().wire
            }
            let rest = Array(data[from...])
            return FakeAnswer.of(rest, 206, ["Content-Range": "bytes \(from)-299999/300000"]).wire
        }
        let temporary = try TemporaryFolder()
        let what = Download(sha256: digest, bytes: data.count, url: "/v1/sets/\(digest)")
        // What arrives of the half that is sent is not known before; sooner or later some does.
        try await download(try client(server.address), what, to: temporary(digest))
        #expect(try readBytes(temporary(digest)) == data)
        #expect(server.requests.count >= 2)
    }

    @Test("a redirect is not followed")
    func redirected() async throws {
        let answer = challenge
        let other = try TinyServer { _ in answer.wire }
        let redirect = FakeAnswer.stranger("", 307, ["Location": "\(other.address)/v1/challenges"])
        let server = try TinyServer { _ in redirect.wire }
        let error = try #require(await failure(try client(server.address)))
        #expect(error.code == .redirected && error.mend.contains(other.address))
        #expect(other.requests.isEmpty && server.requests.count == 1)
    }

    @Test("no answer takes more memory than any answer has")
    func endless() async throws {
        let head = "HTTP/1.1 200 OK\r\nPFL-Protocol: 1\r\nConnection: close\r\n\r\n"
        let piece = [UInt8](repeating: 0x20, count: 1 << 18)
        let server = try TinyServer { _ in
            AnySequence(sequence(first: Array(head.utf8)) { _ in piece })  // without an end
        }
        let client = try client(server.address)
        #expect(await failure(client)?.code == .protocol)
        #expect(client.traffic.down < mostAnswerBytes + 4 << 20)
    }

    @Test("what speaks no HTTP, no TLS, or nothing at all is told")
    func strangers() async throws {
        let ssh = try TinyServer(greeting: "SSH-2.0-x\r\n")
        #expect(await failure(try client(ssh.address))?.code == .notTheAggregator)
        let plain = try TinyServer(greeting: "HTTP/1.1 400 Bad Request\r\n\r\n")
        #expect(await failure(try client("https://127.0.0.1:\(plain.port)"))?.code == .tls)
        // An alert is all that this server knows of TLS.
        let tls = try TinyServer(greeting: "\u{15}\u{03}\u{03}\u{00}\u{02}\u{02}\u{28}")
        #expect(await failure(try client(tls.address))?.code == .tls)
        ssh.close()
        #expect(await failure(try client(ssh.address))?.code == .unreachable)
    }

    @Test("a cancelled task ends its request")
    func cancelled() async throws {
        let (came, tell) = AsyncStream<Void>.makeStream()
        let server = try TinyServer { _ in
            tell.yield()
            let silence = AnyIterator<[UInt8]> {
                Thread.sleep(forTimeInterval: 15)  // longer than a test may take that waited for it
                return nil
            }
            return AnySequence(silence)
        }
        let client = try client(server.address)
        let asking = Task { try await client.challenge() }
        for await _ in came { break }
        asking.cancel()
        await #expect(throws: CancellationError.self) { _ = try await asking.value }
    }
}
