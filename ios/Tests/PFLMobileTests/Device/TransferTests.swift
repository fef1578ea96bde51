import Foundation
import Testing

@testable import PFLMobile

@Suite struct TransferTests {
    private let data = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 * 7 + $0 / 256) }
    private let temporary: TemporaryFolder
    private let digest: String
    private let what: Download
    private let task = String(repeating: "0123456789abcdef", count: 2)
    private var url: String { "/v1/tasks/\(task)/update" }
    private var to: String { temporary(digest) }
    private var part: String { "\(to).part" }

    init() throws {
        temporary = try TemporaryFolder()
        digest = Sha256.hex(data)
        what = Download(sha256: digest, bytes: data.count, url: "/v1/sets/\(digest)")
    }

    private func write(_ path: String, _ bytes: some Sequence<UInt8>) throws {
        try Data(bytes).write(to: URL(fileURLWithPath: path))
    }

    private func rest(_ from: Int) -> FakeAnswer {
        .of(Array(data[from...]), 206, ["Content-Range": "bytes \(from)-\(data.count - 1)/\(data.count)"])
    }

    private func expectArrived(_ location: SourceLocation = #_sourceLocation) throws {
        #expect(try readBytes(to) == data, sourceLocation: location)
        #expect(try status(part) == nil, sourceLocation: location)
    }

    // -- downloads

    @Test("a set is downloaded, and a broken download goes on where it broke")
    func download() async throws {
        let transport = FakeTransport([.of(data).cut(), rest(150_000).cut(after: 50_000), rest(200_000)])
        let client = try fakeClient(transport)
        try await PFLMobile.download(client, what, to: to)
        try expectArrived()
        #expect(transport.requests.map { $0.headers["Range"] } == [nil, "bytes=150000-", "bytes=200000-"])
        #expect(transport.requests[1].headers["If-Range"] == "\"\(digest)\"")
        #expect(client.traffic.down == data.count)
    }

    @Test("what a killed process left is gone on with, and a whole file is not asked for again")
    func killed() async throws {
        try write(part, data[..<1234])
        let transport = FakeTransport([rest(1234)])
        try await PFLMobile.download(try fakeClient(transport), what, to: to)
        try expectArrived()
        try write(part, data)
        let none = FakeTransport()
        try await PFLMobile.download(try fakeClient(none), what, to: to)
        try expectArrived()
        #expect(none.requests.isEmpty)
    }

    @Test("wrong bytes are thrown away, and all is asked for again")
    func wrong() async throws {
        try write(part, [UInt8](repeating: 0, count: 1234))
        try await PFLMobile.download(try fakeClient(FakeTransport([rest(1234), .of(data)])), what, to: to)
        try expectArrived()
        try write(part, data + [1])
        try await PFLMobile.download(try fakeClient(FakeTransport([.of(data)])), what, to: to)
        try expectArrived()
        // A server without ranges sends all, and that is taken.
        try write(part, [UInt8](repeating: 0, count: 1234))
        try await PFLMobile.download(try fakeClient(FakeTransport([.of(data)])), what, to: to)
        try expectArrived()
    }

    @Test("other ranges and more bytes than told are refused, before they take a place")
    func otherRanges() async throws {
        try write(part, data[..<1234])
        let other = FakeTransport([
            .of(Array(data[1000...]), 206, ["Content-Range": "bytes 1000-299999/300000"])
        ])
        await expectRefused(.protocol) { try await PFLMobile.download(try fakeClient(other), what, to: to) }
        try write(part, [])
        let more = FakeTransport([.of(data + [UInt8](repeating: 1, count: 1 << 20))])
        await expectRefused(.protocol) { try await PFLMobile.download(try fakeClient(more), what, to: to) }
        #expect(try status(to) == nil)
        #expect(try #require(try status(part)).st_size <= data.count)
    }

    @Test("bytes that are always wrong are given up")
    func alwaysWrong() async throws {
        let answer = FakeAnswer.of([UInt8](repeating: 0, count: data.count))
        let transport = FakeTransport { _ in answer }
        await expectRefused(.unreachable) { try await PFLMobile.download(try fakeClient(transport), what, to: to) }
        #expect(try status(to) == nil && status(part) == nil)
        let none = Download(sha256: Sha256.hex([UInt8]()), bytes: 0, url: "/v1/sets/x")
        try await PFLMobile.download(try fakeClient(FakeTransport()), none, to: temporary("none"))
        #expect(try readBytes(temporary("none")).isEmpty)
    }

    // -- uploads

    private func file() throws -> String {
        try write(temporary("update"), data)
        return temporary("update")
    }

    private var accepted: FakeAnswer {
        .of(#"{"status":"accepted","task":"\#(task)","received":\#(data.count),"duplicate":false}"#)
    }

    private func has(_ bytes: String, complete: Bool = false) -> FakeAnswer {
        .of("", 200, ["Upload-Offset": bytes, "Upload-Complete": complete ? "?1" : "?0"])
    }

    private func expectSent(
        _ from: Int, _ request: TransportRequest, _ location: SourceLocation = #_sourceLocation
    ) {
        #expect(request.method == "PUT", sourceLocation: location)
        #expect(request.headers["Idempotency-Key"] == "key", sourceLocation: location)
        #expect(request.headers["Upload-Offset"] == "\(from)", sourceLocation: location)
        #expect(request.headers["Upload-Length"] == "\(data.count)", sourceLocation: location)
        #expect(request.headers["Content-Type"] == safetensorsType, sourceLocation: location)
        #expect(request.body.map(Array.init) == Array(data[from...]), sourceLocation: location)
    }

    private func send(
        _ answers: [FakeAnswer?], resume: Bool = false
    ) async throws -> (UploadState, [TransportRequest]) {
        let transport = FakeTransport(answers)
        let state = try await upload(try fakeClient(transport), url, file: try file(), key: "key", resume: resume)
        return (state, transport.requests)
    }

    @Test("an update is sent whole, and nothing is asked before")
    func whole() async throws {
        let (state, requests) = try await send([accepted])
        #expect(state.status == .accepted && !state.duplicate && requests.count == 1)
        expectSent(0, requests[0])
    }

    @Test("an upload goes on where the connection broke")
    func goesOn() async throws {
        let (_, requests) = try await send([nil, has("100000"), accepted])
        #expect(requests.map(\.method) == ["PUT", "HEAD", "PUT"])
        #expect(requests[1].path == url)
        expectSent(100_000, requests[2])
    }

    @Test("a lost answer is not a second update, and a process that was started again asks first")
    func lost() async throws {
        let (state, requests) = try await send([accepted.cut(), has("\(data.count)", complete: true)])
        #expect(state.duplicate && state.task == task && requests.count == 2)
        let (_, others) = try await send([has("299999"), accepted], resume: true)
        #expect(others.map(\.method) == ["HEAD", "PUT"])
        expectSent(299_999, others[1])
    }

    @Test("another part there, or only a part there, is asked for")
    func otherPart() async throws {
        let partial = FakeAnswer.of(#"{"status":"partial","task":"\#(task)","received":20,"duplicate":false}"#, 202)
        let (_, requests) = try await send([problem("offset-mismatch", 409), has("10"), partial, has("20"), accepted])
        #expect(requests.map(\.method) == ["PUT", "HEAD", "PUT", "HEAD", "PUT"])
        expectSent(20, requests[4])
    }

    private func problem(_ code: String, _ status: Int) -> FakeAnswer { .problem(code, status) }

    @Test("a task that is over says why when the update is sent; more there than there is, is refused")
    func over() async throws {
        let error = await expectRefused(.serverProblem) {
            _ = try await send([.of("", 404), problem("task-expired", 404)], resume: true)
        }
        #expect(error?.code.rawValue == "task-expired")
        for offset in ["300001", "-1", "x"] {
            await expectRefused(.protocol) { _ = try await send([has(offset)], resume: true) }
        }
    }

    @Test(
        "a file that cannot be read is not taken for the network, and a proxy that lets no such body pass is told its size"
    )
    func otherFaults() async throws {
        let client = try fakeClient(FakeTransport())
        let error = await expectRefused(.deviceFolder) {
            _ = try await upload(client, url, file: temporary.path, key: "key")
        }
        #expect(error?.message.contains("cannot be read") == true && !client.reached)
        let large = await expectRefused(.tooLargeOnTheWay) { _ = try await send([.stranger("", 413)]) }
        #expect(large?.message.contains("300000 bytes") == true)
    }
}
