import Foundation
import Testing

@testable import PFLMobile

/// A device and an aggregator that is told what to answer; the toy model trains.
@Suite struct DeviceTests {
    private let id = ModelId(name: "toy", version: "1", tensors: Toy.table)
    private let temporary: TemporaryFolder
    private let clock = FakeClock()
    private let told = Told()

    /// What a device told.
    private final class Told: @unchecked Sendable {
        var events: [Event] = []

        var steps: [Int] { events.compactMap { if case .stepped(let step, _, _) = $0 { step } else { nil } } }

        var kinds: [String] {
            events.compactMap {
                switch $0 {
                case .joined: "joined"
                case .assigned: "assigned"
                case .downloaded(_, _, let cached): cached ? "cached" : "downloaded"
                case .stepped: nil
                case .finished: "finished"
                case .uploaded(_, _, let duplicate): duplicate ? "duplicate" : "uploaded"
                case .reported: "reported"
                case .declined: "declined"
                case .dropped: "dropped"
                case .waiting: "waiting"
                case .offline: "offline"
                case .measured: "measured"
                }
            }
        }

        var dropped: [String] { events.compactMap { if case .dropped(_, _, let why) = $0 { why } else { nil } } }
    }

    init() throws {
        temporary = try TemporaryFolder()
    }

    private var folder: String { temporary("device") }

    private var rows: Rows {
        let count = 25
        return [
            "x": .float(FloatTensor((0..<2 * count).map { 1 + Float($0 % 2) }, [count, 2])),
            "y": .float(FloatTensor((0..<3 * count).map { -1 + Float($0 % 3) }, [count, 3])),
            "weight": .float(FloatTensor([Float](repeating: 1, count: count), [count])),
        ]
    }

    private struct Verdicts: Attest {
        func attest(challenge: String, kinds: [String]) -> AttestVerdict {
            AttestVerdict(kind: kinds[0], verdict: "for \(challenge)")
        }
    }

    private func device(
        _ fake: FakeAggregator, _ kept: DeviceFolder, policy: PrivacyPolicy = PrivacyPolicy(),
        patienceS: Double? = 600, attest: (any Attest)? = nil, client: Client? = nil,
        onEvent: @escaping (Event) -> Void = { _ in }
    ) throws -> Device {
        let zeros: TensorSet = [
            "a": .float(FloatTensor([0, 0], [2])), "b": .float(FloatTensor([0, 0, 0], [3])),
        ]
        let model = Model(id: id, session: Toy(), tensors: Toy.table, initial: zeros)
        let told = told
        let clock = clock
        return Device(
            model, .arrays(rows), kept, try client ?? fakeClient(fake.transport, clock), policy: policy, test: 0.2,
            facts: DeviceFacts(platform: "test", charging: false), group: "", token: nil, attest: attest,
            patienceS: patienceS,
            onEvent: {
                told.events.append($0)
                onEvent($0)
            }, clock: { clock.now }, noise: nil)
    }

    @discardableResult
    private func run(
        _ fake: FakeAggregator, policy: PrivacyPolicy = PrivacyPolicy(), patienceS: Double? = 600,
        attest: (any Attest)? = nil, rounds: Int? = nil
    ) async throws -> Summary {
        let kept = try DeviceFolder(folder, model: id)
        let device = try device(fake, kept, policy: policy, patienceS: patienceS, attest: attest)
        return try await device.run(rounds: rounds)
    }

    private func isPut(_ request: TransportRequest) -> Bool { request.method == "PUT" }

    @Test("rounds from enrolment to the last report")
    func rounds() async throws {
        let fake = try FakeAggregator(id, rounds: 2)
        let summary = try await run(fake)
        #expect(summary.ended == .done && summary.rounds == 2 && summary.dropped == 0)
        let first = ["assigned", "downloaded", "finished", "uploaded", "reported"]
        let second = ["assigned", "cached", "finished", "uploaded", "reported"]
        #expect(told.kinds == ["joined"] + first + second)
        #expect(told.steps == Array(1...12) + Array(1...12))
        let (head, values) = try fake.update(1)
        #expect(head.round == 1 && head.version == 0 && head.steps == 12 && head.clipped && head.examples > 0)
        #expect((0.0499...0.05).contains(try Clipping.norm(values)), "\(values)")
        let report = try #require(fake.sent("/evaluation").first?.object)
        #expect(Set(report.keys) == ["global", "personalized", "adopted"])
        let asked = try #require(fake.sent("/check-in").first)
        #expect(try asked["examples"].int == 16)
        #expect(try asked["facts"]["charging"].truth == false)
        #expect(try asked["facts"]["sdk"].text == "pfl-mobile-swift/0.1.0")
        #expect(summary.bytesUp > 0 && summary.bytesDown > 0)

        let kept = try DeviceFolder(folder, model: id)
        #expect(try kept.waiting == 0 && kept.enrolled && kept.personal.current > 0)
        let again = try device(fake, kept)
        #expect(try await again.measure().version == 2)
        #expect(told.events.contains(.joined(device: String(repeating: "d", count: 32), again: true)))
        try await again.leave()
        #expect(try !kept.enrolled && kept.personal.current > 0)
        #expect(fake.lines.last == "DELETE /v1/devices/me")
        #expect(fake.lines.filter { $0 == "POST /v1/devices" }.count == 1)
    }

    @Test("nothing leaves the device where nothing protects it")
    func privacy() async throws {
        let fake = try FakeAggregator(id, rounds: 2)
        fake.privacy = Tasks.none
        let summary = try await run(fake)
        #expect(summary.ended == .privacy && summary.declined == ["privacy": 1])
        #expect(!fake.lines.contains { $0.hasPrefix("PUT") || $0.contains("/sets/") })
        #expect(try fake.sent("/decline") == [parseJSON(#"{"reason":"privacy"}"#)])
        #expect(try await run(fake, policy: PrivacyPolicy(require: false)).ended == .done)
        #expect(fake.updates.count == 1)
        #expect(try DeviceFolder(folder, model: id).spent.unprotected == 1)
    }

    @Test("noise of the device is counted, and hides what the update was")
    func ownNoise() async throws {
        let fake = try FakeAggregator(id)
        fake.privacy = Tasks.local
        try await run(fake)
        let (head, values) = try fake.update(1)
        #expect(try !head.clipped && Clipping.norm(values) > 0)
        #expect(!fake.lines.contains { $0.hasSuffix("/evaluation") })
        let kept = try DeviceFolder(folder, model: id)
        #expect(kept.sentUnderOwnNoise == 1 && kept.ownEpsilon(1e-6) > 1)
    }

    @Test("an update that cannot be sent waits, and goes out first of all")
    func waits() async throws {
        let fake = try FakeAggregator(id)
        fake.instead = { $0.method == "PUT" ? .some(.stranger("", 502)) : nil }
        await expectRefused(.unreachable) { _ = try await run(fake, patienceS: 0) }
        #expect(told.kinds.filter { $0 == "finished" }.count == 1 && !told.kinds.contains("uploaded"))
        fake.instead = nil
        told.events = []
        #expect(try await run(fake).rounds == 1)
        #expect(told.kinds == ["joined", "uploaded", "reported"], "it was trained again")
    }

    @Test("what was accepted without an answer is not sent twice")
    func lostAnswer() async throws {
        let fake = try FakeAggregator(id)
        var lost = true
        fake.instead = { request in
            guard request.method == "PUT", lost else { return nil }
            lost = false
            fake.keep(request)
            return .some(.of("{\"status\":"))
        }
        #expect(try await run(fake, rounds: 1).rounds == 1)
        #expect(told.kinds.contains("duplicate"))
        #expect(try DeviceFolder(folder, model: id).waiting == 0)
    }

    @Test("an update of a round that is over is dropped, and the next task is done")
    func over() async throws {
        let fake = try FakeAggregator(id, rounds: 2)
        var refusals = 0
        fake.instead = { request in
            guard request.method == "PUT" else { return nil }
            refusals += 1
            return refusals == 1 ? .some(.problem("round-closed", 410)) : nil
        }
        let summary = try await run(fake)
        #expect(summary.rounds == 2 && summary.dropped == 1)
        #expect(told.dropped.first?.hasPrefix("round-closed") == true)
    }

    @Test("a device that is revoked ends, and keeps what waits")
    func revoked() async throws {
        let fake = try FakeAggregator(id)
        fake.instead = { $0.method == "PUT" ? .some(.problem("device-revoked", 403)) : nil }
        let error = await expectRefused(.serverProblem) { _ = try await run(fake) }
        #expect(error?.code.rawValue == "device-revoked" && error?.status == 403)
        #expect(try DeviceFolder(folder, model: id).waiting == 1)
    }

    @Test("an update whose time is over is dropped, and one that a stricter policy refuses")
    func stricter() async throws {
        let fake = try FakeAggregator(id)
        fake.instead = { $0.method == "PUT" ? .some(.stranger("", 502)) : nil }
        await expectRefused(.unreachable) { _ = try await run(fake, patienceS: 0) }
        fake.instead = nil
        #expect(try await run(fake, policy: PrivacyPolicy(onlyLocal: true)).dropped == 1)
        #expect(told.dropped.first?.contains("no noise of its own") == true)

        let other = try FakeAggregator(id)
        other.instead = { $0.method == "PUT" ? .some(.stranger("", 502)) : nil }
        await expectRefused(.unreachable) { _ = try await run(other, patienceS: 0) }
        other.instead = nil
        clock.now += 61
        try await run(other)
        #expect(told.dropped.last == "its task has expired")
    }

    @Test("plans that send what they must not, or nothing, are declined")
    func plans() async throws {
        let plan = FakeAggregator.plan
        let bad = [
            plan.replacingOccurrences(of: "\"upload\": [\"role:shared\"]", with: "\"upload\": [\"role:personal\"]"),
            plan.replacingOccurrences(of: "\"group\": [\"*\"]", with: "\"group\": [\"role:personal\"]"), "{}",
            plan.replacingOccurrences(of: "train", with: "dance"),
        ]
        for plan in bad {
            let fake = try FakeAggregator(id)
            fake.plan = plan
            #expect(try await run(fake).declined == ["plan": 1], "\(plan)")
            #expect(fake.updates.isEmpty)
        }
        let fake = try FakeAggregator(id)
        fake.layout = #"[{"name": "a", "shape": [2]}, {"name": "b", "shape": [3]}]"#
        #expect(try await run(fake).declined == ["plan": 1])
    }

    @Test("a federation of another model, and a folder of another server, are refused")
    func others() async throws {
        let fake = try FakeAggregator(id)
        let other = ModelId(name: id.name, version: "2", fingerprint: id.fingerprint)
        fake.instead = { $0.path == "/v1/federation" ? .some(.of(fake.federation(other))) : nil }
        await expectRefused(.device) { _ = try await run(fake) }
        fake.instead = nil
        try await run(fake)
        let client = try fakeClient(fake.transport, clock, server: "http://127.0.0.1:2")
        let kept = try DeviceFolder(folder, model: id)
        let device = try device(fake, kept, client: client)
        await expectRefused(.deviceFolder) { _ = try await device.run() }
        await expectRefused(.deviceFolder) { try await device.leave() }
        #expect(client.credential == nil && kept.enrolled)
    }

    @Test("a device that left already can forget its credential")
    func leftAlready() async throws {
        let fake = try FakeAggregator(id)
        try await run(fake)
        fake.instead = { $0.method == "DELETE" ? .some(.problem("unauthorized", 401)) : nil }
        let kept = try DeviceFolder(folder, model: id)
        try await device(fake, kept).leave()
        #expect(!kept.enrolled)
    }

    @Test("a verdict of the platform is bound to the challenge")
    func attested() async throws {
        let fake = try FakeAggregator(id)
        fake.attestation = #"["app-attest"]"#
        await expectRefused(.device) { _ = try await run(fake) }
        try await run(fake, attest: Verdicts())
        let sent = try #require(fake.sent("/v1/devices").first)
        let want = try parseJSON(#"{"kind":"app-attest","challenge":"c1","verdict":"for c1"}"#)
        #expect(try sent["attestation"] == want)
    }

    @Test("a sign-in page ends the run at first, and is waited for once the aggregator was heard")
    func signIn() async throws {
        let fake = try FakeAggregator(id)
        fake.instead = { _ in .some(.stranger("<html>", 200, ["Content-Type": "text/html"])) }
        await expectRefused(.notTheAggregator) { _ = try await run(fake) }
        var pages = 3
        fake.instead = { request in
            let heard = request.path != "/v1/federation" || pages < 3
            if !heard || pages == 0 { return nil }
            pages -= 1
            return .some(.stranger("<html>", 200, ["Content-Type": "text/html"]))
        }
        #expect(try await run(fake).rounds == 1)
        #expect(told.kinds.contains("offline"))
    }

    @Test("an address that is only in part the aggregator's ends the run")
    func inPart() async throws {
        let fake = try FakeAggregator(id)
        fake.instead = { $0.path == "/v1/check-in" ? .some(.stranger("", 404)) : nil }
        await expectRefused(.notTheAggregator) { _ = try await run(fake) }
        #expect(told.kinds.filter { $0 == "offline" }.count == 1)
    }

    @Test("an aggregator that asks for time gets it after the last try too")
    func busy() async throws {
        let fake = try FakeAggregator(id)
        var failures = 0
        fake.instead = { request in
            guard request.path == "/v1/check-in", failures < quick.attempts else { return nil }
            failures += 1
            return .some(.problem("unavailable", 503, ["Retry-After": "7"]))
        }
        let before = clock.now
        #expect(try await run(fake).rounds == 1)
        #expect(clock.now - before >= 4 * 7)
        let waits = told.events.compactMap { if case .offline(let seconds, _) = $0 { seconds } else { nil } }
        #expect(waits.count == 1 && waits[0] >= 7)
    }

    @Test("a cancelled device stops within a step, and goes on later from its checkpoint")
    func cancelled() async throws {
        let fake = try FakeAggregator(id)
        let stopping = Task {
            let kept = try DeviceFolder(folder, model: id)
            let device = try device(fake, kept) { event in
                if case .stepped(5, _, _) = event { withUnsafeCurrentTask { $0?.cancel() } }
            }
            try await device.run()
        }
        await #expect(throws: CancellationError.self) { try await stopping.value }
        #expect(told.steps.last == 5)
        #expect(try status("\(folder)/personal/checkpoint") != nil)
        #expect(fake.declined.isEmpty && fake.updates.isEmpty)
        told.events = []
        #expect(try await run(fake).rounds == 1)
        #expect(told.steps.first == 6)
    }

    @Test("a disk that is full at any moment lets nothing out that is not counted")
    func fullDisk() async throws {
        // Not a divisor of the steps of one write, so that each of them fails at some time.
        for steps in stride(from: 0, to: 1000, by: 5) {
            let place = temporary("full-\(steps)")
            let fake = try FakeAggregator(id)
            fake.privacy = Tasks.local
            let disk = FailingDisk(after: steps, ENOSPC)
            do {
                try await device(fake, try DeviceFolder(place, model: id, disk: disk)).run()
            } catch let error as PFLError {
                #expect(error.isA(.storageFull), "\(steps): \(error)")
            }
            #expect(try fake.updates.count <= SentNoise("\(place)/sent.json").updates, "\(steps)")
            let kept = try DeviceFolder(place, model: id)
            #expect(try await device(fake, kept).run().ended == .done, "\(steps)")
            #expect(try kept.waiting == 0 && kept.sentUnderOwnNoise >= fake.updates.count, "\(steps)")
            #expect(fake.updates.count + fake.declined.count > 0, "\(steps)")
            if disk.left >= 0 {
                #expect(fake.updates.count == 1 && steps > 50)
                return
            }
        }
        Issue.record("it never had room enough")
    }

    @Test("a folder is of one run at a time")
    func oneRun() async throws {
        let fake = try FakeAggregator(id)
        let kept = try DeviceFolder(folder, model: id)
        kept.running = true
        let device = try device(fake, kept)
        await expectRefused(.deviceFolder) { _ = try await device.run() }
        kept.running = false
        #expect(try await device.run().rounds == 1)
        #expect(!kept.running)
    }
}
