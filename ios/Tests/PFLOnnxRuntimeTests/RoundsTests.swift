import Foundation
import Testing

@testable import PFLMobile
@testable import PFLOnnxRuntime

/// An app that has a personal model takes part in rounds, of an aggregator that can be told what to answer.
@Suite(.enabled(if: isThere("tiny"))) struct RoundsTests {
    private let models: Models

    init() throws { models = try Models() }

    /// Nobody answers, until the task is cancelled.
    private struct Silence: Transport {
        let asked = Locked(0)

        func exchange(_ request: TransportRequest, _ reader: any AnswerReader) async throws {
            asked { $0 += 1 }
            try await Task.sleep(nanoseconds: 3_600_000_000_000)
        }
    }

    private struct NoNetwork: Transport {
        func exchange(_ request: TransportRequest, _ reader: any AnswerReader) async throws {
            throw TransportFault(.refused, "a test")
        }
    }

    private func federation(_ transport: any Transport) throws -> Federation {
        try Federation(
            "http://127.0.0.1:9", patienceS: 0, transport: transport, backoff: Backoff(attempts: 1, firstS: 0))
    }

    // ---- what a round serves

    private func aggregator() throws -> FakeAggregator {
        let bundle = try ModelBundle.open(URL(fileURLWithPath: "\(bundles)/talk.pflb"))
        let values = try bundle.values()
        let shared = bundle.manifest.tensors.filter { $0.role == .shared }
        let given = try shared.map { ($0.name, try #require(values[$0.name]?.float)) }
        let fake = try FakeAggregator(
            ModelId(bundle.manifest), values: Dictionary(given) { first, _ in first })
        fake.layout = pythonJSON(
            .array(
                shared.sorted { $0.name < $1.name }.map { tensor in
                    object(("name", .string(tensor.name)), ("shape", .array(tensor.shape.map(JSON.integer))))
                }))
        fake.plan = try dittoPlan(bundle.planJSON())
        return fake
    }

    /// Of Ditto: the shared model hardly learns, and a copy that stays here learns much and serves.
    private func dittoPlan(_ plan: String) throws -> String {
        var ditto = try #require(try parseJSON(plan).object)
        let train = try #require(ditto["phases"]?.array?.last?.object)
        func training(_ what: String, _ epochs: Int, _ lr: Double) -> JSON {
            var phase = train
            phase["trains"] = .string(what)
            phase["epochs"] = .integer(epochs)
            phase["optimizer"] = object(("kind", .string("sgd")), ("lr", .double(lr)))
            return .object(phase)
        }
        ditto["phases"] = .array([training("theta", 1, 1e-6), training("own", 30, 1)])
        ditto["copies"] = object(("own", object(("of", .string("global")), ("group", .texts(["*"])))))
        ditto["keep"] = .texts(["own"])
        ditto["serve"] = .string("own")
        return pythonJSON(.object(ditto))
    }

    /// Mean loss of the shipped model on the newest examples.
    private func shippedLoss() throws -> Double {
        let bundle = try ModelBundle.open(URL(fileURLWithPath: "\(bundles)/talk.pflb"))
        let session = try openSession(bundle, engines: [OnnxRuntimeEngine()], trusted: true)
        let texts = (0..<count).map(text)
        return try #require(
            try Evaluator(bundle, session).measure(.texts(Array(texts.suffix(count / 5))))["loss"])
    }

    @Test("what a task's plan serves is served, also when the model is opened again")
    func served() async throws {
        let fake = try aggregator()
        let typed = "see you at the"
        let model = try await models.open(nil, "talk")
        try await learn(model)
        let shipped = try await model.suggest(typed)
        let adoptions = Locked<[Bool]>([])
        let result = try await model.takePart(try federation(fake.transport)) { event in
            if case .finished(let finished) = event { adoptions { $0.append(finished.adopted) } }
        }
        guard case .tookPart = result else {
            Issue.record("it took no part: \(result)")
            return
        }
        #expect(adoptions.now == [true])
        let own = try await model.suggest(typed)
        #expect(own.map(\.word) != shipped.map(\.word))
        // The bundle's plan trains theta, which has to be better than the copy that serves.
        let before: Double?
        switch try await model.personalize() {
        case .adopted(let result):
            before = result.before["loss"]
            try await model.revert(1)
        case .kept(let result): before = result.before["loss"]
        case let other:
            Issue.record("\(other)")
            return
        }
        #expect(try #require(before) < shippedLoss(), "before is of the copy")
        #expect(try await model.suggest(typed) == own)
        try await models.end(model)

        let again = try await models.open(nil, "talk")
        #expect(try await again.suggest(typed) == own)
        try await models.end(again)
        let notes = again.folder.appendingPathComponent("rounds/serves.json")
        let noted = try Data(contentsOf: notes)
        #expect(String(decoding: noted, as: UTF8.self) == "{\"1\": \"own\"}\n")
        try Data("damaged".utf8).write(to: notes)
        let lost = try await models.open(nil, "talk")
        #expect(try await lost.suggest(typed).map(\.word) == shipped.map(\.word), "theta was hardly trained")
        try await lost.eraseEverything()
        #expect(try await lost.suggest(typed) == shipped)
        #expect(!FileManager.default.fileExists(atPath: notes.path))
        try await models.end(lost)
    }

    // ---- without an aggregator

    @Test("who has too few examples, or paused, asks nobody")
    func asksNobody() async throws {
        let model = try await models.open(nil, "talk")
        let silence = Silence()
        guard case .notEnoughExamples(0) = try await model.takePart(try federation(silence)) else {
            Issue.record("it took part")
            return
        }
        try await learn(model)
        try await model.pause()
        guard case .paused = try await model.takePart(try federation(silence)) else {
            Issue.record("it took part")
            return
        }
        #expect(silence.asked.now == 0 && models.engine.openings.now == 0)
        #expect(try await model.leave(try federation(silence)) == .notThere)
        try await models.end(model)
    }

    @Test("without a network it says so, loads no engine, and shows what it gave")
    func noNetwork() async throws {
        let model = try await models.open(nil, "talk")
        try await learn(model)
        #expect(try await model.status().rounds == nil)
        guard case .unreachable(let error, waiting: 0) = try await model.takePart(try federation(NoNetwork())) else {
            Issue.record("it was reached")
            return
        }
        #expect(error.passing && models.engine.openings.now == 0)
        let rounds = try #require(try await model.status().rounds)
        #expect(rounds.rounds == 0 && rounds.waiting == 0 && rounds.server == nil && rounds.spent.epsilon == 0)
        await expectRefused(.config) { _ = try Federation("ftp://nowhere") }
        try await models.end(model)
    }

    @Test("pause, forgetting and closing stop rounds that wait for a network; so does a cancelled task")
    func roundsStopped() async throws {
        let model = try await models.open(nil, "talk")
        try await learn(model)
        func taking(_ stop: (Task<RoundsResult, any Error>) async throws -> Void) async throws -> RoundsResult {
            let silence = Silence()
            let federation = try federation(silence)
            let running = Task { try await model.takePart(federation) }
            while silence.asked.now == 0 { await Task.yield() }
            #expect(try await model.status().training)
            guard case .failed = try await model.personalize() else {
                Issue.record("it trained meanwhile")
                return .paused
            }
            try await stop(running)
            return try await running.value
        }
        let stops: [@Sendable () async throws -> Void] = [
            { try await model.pause() }, { try await model.forgetWord("zorp") }, { try await model.eraseEverything() },
        ]
        for stop in stops {
            guard case .cancelled = try await taking({ _ in try await stop() }) else {
                Issue.record("it was not stopped")
                return
            }
            try await model.resume()
            for number in 0..<5 { try await model.remember("see you there \(number)") }
        }
        await #expect(throws: CancellationError.self) { _ = try await taking { $0.cancel() } }
        guard case .cancelled = try await taking({ _ in try await model.close() }) else {
            Issue.record("it was not stopped")
            return
        }
        #expect(try await !PersonalModel.isOpen(folder: model.folder))
    }

    @Test("a damaged device keeps nobody from the model, and is thrown away where something is forgotten")
    func damagedDevice() async throws {
        let model = try await models.open(nil, "talk")
        try await learn(model)
        let home = model.folder.appendingPathComponent("rounds")
        try FileManager.default.createDirectory(at: home, withIntermediateDirectories: true)
        try Data("no JSON".utf8).write(to: home.appendingPathComponent("device.json"))
        let rounds = try #require(try await model.status().rounds)
        #expect(rounds.problem?.damaged == true && rounds.spent.epsilon == .infinity)
        guard case .failed = try await model.takePart(try federation(NoNetwork())) else {
            Issue.record("it took part")
            return
        }
        let first = try #require(try await model.examples().first)
        #expect(try await model.forgetExample(first.id))
        #expect(!FileManager.default.fileExists(atPath: home.appendingPathComponent("device.json").path))
        try await models.end(model)
    }
}
