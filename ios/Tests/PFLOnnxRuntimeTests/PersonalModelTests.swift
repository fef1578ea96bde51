import Foundation
import Testing

@testable import PFLMobile
@testable import PFLOnnxRuntime

private let said = ["see you at the zorp tonight", "the zorp is late again", "ok see you there"]
private let count = 30
private let time = 1_700_000_000.0

private func text(_ number: Int) -> String { said[number % said.count] + (number % 4 == 0 ? " now" : "") }

private func learn(_ model: PersonalModel) async throws {
    for number in 0..<count {
        guard case .kept = try await model.remember(text(number)) else {
            Issue.record("\(number) was refused")
            return
        }
    }
}

private func adopted(_ result: PersonalizeResult) throws -> UserResult {
    guard case .adopted(let report) = result else {
        Issue.record("it ended otherwise: \(result)")
        throw CancellationError()
    }
    return report
}

private func state(_ model: PersonalModel) throws -> PersonalState {
    let store = try PersonalStateStore(model.folder.appendingPathComponent("state"), model: model.model)
    return try #require(try store.load().state)
}

private func expectSame(_ one: PersonalState, _ other: PersonalState) {
    #expect(one.words == other.words)
    #expect(one.tensors.keys.sorted() == other.tensors.keys.sorted())
    for (name, value) in one.tensors { #expect(other.tensors[name]?.sameBits(value) == true, "\(name)") }
}

private func expectError(
    _ code: PFLError.Code, _ says: String = "", _ location: SourceLocation = #_sourceLocation,
    _ body: () async throws -> Void
) async {
    do {
        try await body()
        Issue.record("nothing was refused", sourceLocation: location)
    } catch let error as PFLError {
        #expect(error.isA(code) && (says.isEmpty || error.message.contains(says)), "\(error)", sourceLocation: location)
    } catch {
        Issue.record("\(error)", sourceLocation: location)
    }
}

/// What an app does with a model, over real bundles and the real ONNX Runtime.
@Suite(.enabled(if: isThere("tiny"))) struct PersonalModelTests {
    private let folder: TestFolder
    private let engine = CountingEngine()
    private let kept = TestExamples()

    init() throws { folder = try TestFolder() }

    private func options(
        _ engine: CountingEngine? = nil, blocked: Set<String> = [], test: Double = 0.2, idleMs: Int = 0,
        discard: Bool = false
    ) throws -> ModelOptions {
        try ModelOptions(
            trusted: true, engines: [engine ?? self.engine], blockedWords: blocked, test: test, engineIdleMs: idleMs,
            discardOtherState: discard)
    }

    private func open(
        _ given: ModelOptions? = nil, _ bundle: String = "tiny", home: String = "model", disk: any Disk = RealDisk(),
        examples: (any ExampleStore)? = nil
    ) async throws -> PersonalModel {
        let kept: any ExampleStore = examples ?? self.kept
        return try await PersonalModel.open(
            URL(fileURLWithPath: "\(bundles)/\(bundle).pflb"), folder(home), given ?? options(), { time }, disk
        ) { _ in kept }
    }

    /// Closes a model, and holds that nothing stays open.
    private func end(_ model: PersonalModel) async throws {
        try await model.close()
        #expect(engine.open.now == 0)
        #expect(try await !PersonalModel.isOpen(folder: model.folder))
    }

    @Test("it learns what the user says, and serves it after it was opened again")
    func learns() async throws {
        let model = try await open()
        #expect(model.takesText)
        #expect(model.scriptsNotServed.contains("Thai") && !model.scriptsNotServed.contains("Latn"))
        #expect(try await model.learnedWords() == [])
        try await learn(model)
        let steps = Locked(0)
        let result = try adopted(try await model.personalize { progress in steps.now = progress.step })
        #expect(steps.now == result.report.steps)
        #expect(try #require(result.after["loss"]) < #require(result.before["loss"]))
        #expect(try await model.learnedWords().contains("zorp"))
        let suggested = try await model.suggest("see you at the")
        #expect(suggested.first?.word == "zorp")
        #expect(zip(suggested, suggested.dropFirst()).allSatisfy { $0.probability >= $1.probability })
        #expect(try await model.complete("see you at the", prefix: "zo") == ["zorp"])
        #expect(try await model.complete("see you at", prefix: "TH").first == "the")
        let status = try await model.status()
        #expect(status.examples == count && status.version == 1 && status.words == 1)
        #expect(status.last?.after == result.after && status.last?.at == time)
        try await end(model)
        #expect(kept.closings.now == 1)

        let again = try await open()
        #expect(try await again.suggest("see you at the") == suggested)
        #expect(try await again.status() == status)
        try await end(again)
    }

    @Test("it does what the evaluator does, bit for bit")
    func evaluator() async throws {
        let model = try await open()
        try await learn(model)
        try await model.personalize()
        let bundle = try ModelBundle.open(URL(fileURLWithPath: "\(bundles)/tiny.pflb"))
        let session = try openSession(bundle, engines: [OnnxRuntimeEngine()], trusted: true)
        let want = try Evaluator(bundle, session).personalize(.texts((0..<count).map(text))).report.state
        expectSame(try #require(want), try state(model))
        try await end(model)
    }

    @Test("arrays are remembered, learned and told apart")
    func arrays() async throws {
        let model = try await open(nil, "arrays")
        #expect(!model.takesText)
        func features(_ label: Int) -> [Float] { (0..<6).map { $0 == label ? 2 : 0 } }
        for number in 0..<40 {
            #expect(try await model.remember(features(number % 4), label: number % 4) == .kept(id: number + 1))
        }
        _ = try adopted(try await model.personalize())
        for label in 0..<4 {
            let best = try #require(try await model.predict(features(label)).labels.first)
            #expect(best.label == label && best.probability > 0.25 && best.probability <= 1)
        }
        await expectError(.tensorMismatch) { _ = try await model.predict([Float](repeating: 0, count: 5)) }
        await expectError(.tensorMismatch) {
            try await model.remember(["y": .float(FloatTensor([Float](repeating: 0, count: 6), [6]))])
        }
        await expectError(.data) { try await model.remember([Float](repeating: 0, count: 6), label: 4) }
        await expectError(.data) { try await model.remember([Float](repeating: .nan, count: 6), label: 1) }
        await expectError(.config) { try await model.remember("a text") }
        await expectError(.config) { _ = try await model.suggest("a text") }
        await expectError(.config) { try await model.forgetWord("word") }
        try await end(model)
    }

    @Test("what must not be kept is refused with a reason")
    func refused() async throws {
        let model = try await open(try options(blocked: ["Kestrel"]))
        #expect(try await model.remember("the kestrel's nest") == .refused(.blocked))
        #expect(try await model.remember("  \n") == .refused(.empty))
        try await model.pause()
        #expect(try await model.remember("see you") == .refused(.paused))
        guard case .paused = try await model.personalize() else {
            Issue.record("it learned")
            return
        }
        try await end(model)
        let again = try await open(try options(blocked: ["Kestrel"]))
        #expect(try await again.status().paused)
        try await again.resume()
        kept.fault.now = PFLError(.storageFull, "full", mend: "make room")
        #expect(try await again.remember("see you") == .refused(.storageFull))
        #expect(try await again.status().examples == 0)
        await expectError(.config) { _ = try await again.predict([0, 0, 0]) }
        try await end(again)
    }

    @Test("too few examples are said")
    func few() async throws {
        let model = try await open()
        for have in 0..<2 {
            guard case .notEnoughExamples(have) = try await model.personalize() else {
                Issue.record("it learned from \(have)")
                return
            }
            try await model.remember("see you")
        }
        try await end(model)
    }

    @Test("cancelled in the middle it ends as if it never was, though more was said meanwhile")
    func resumed() async throws {
        let whole = try await open(home: "whole")
        try await learn(whole)
        try await whole.personalize()
        let want = try state(whole)
        try await end(whole)
        _ = try kept.inner.eraseAll()

        let model = try await open()
        try await learn(model)
        let begun = Locked<Task<PersonalizeResult, any Error>?>(nil)
        let seen = Locked(0)
        let task = Task {
            try await model.personalize { progress in
                seen.now = progress.step
                if progress.step == 5 {
                    while begun.now == nil { usleep(100) }
                    begun.now?.cancel()
                }
            }
        }
        begun.now = task
        await #expect(throws: CancellationError.self) { try await task.value }
        #expect(seen.now == 5)
        let status = try await model.status()
        #expect(status.version == 0 && !status.training)
        try await model.remember("the bus is late")
        let result = try adopted(try await model.personalize())
        #expect(result.report.resumedAt == 5)
        expectSame(want, try state(model))
        #expect(!FileManager.default.fileExists(atPath: model.folder.appendingPathComponent("under-way").path))
        begun.now = nil
        try await end(model)
    }

    @Test("a training that is paused ends within a step, and measuring within a batch")
    func stopped() async throws {
        let model = try await open()
        try await learn(model)
        let stepped = Locked(false)
        let running = Task {
            try await model.personalize { _ in
                stepped.now = true
                while !model.room.isStopping { usleep(100) }  // until somebody wants it to end
            }
        }
        while !stepped.now { await Task.yield() }
        try await model.pause()
        guard case .cancelled = try await running.value else {
            Issue.record("it was not stopped")
            return
        }
        #expect(engine.runs.now.filter { $0 == "gradients" }.count == 2, "a golden call and a step")
        try await model.resume()
        try await end(model)

        let measuring = Locked<Task<PersonalizeResult, any Error>?>(nil)
        let slow = CountingEngine { program in
            if program == "evaluate" {
                while measuring.now == nil { usleep(100) }
                measuring.now?.cancel()
            }
        }
        let other = try await open(try options(slow), home: "other")
        let task = Task { try await other.personalize() }
        measuring.now = task
        await #expect(throws: CancellationError.self) { try await task.value }
        #expect(slow.runs.now.filter { $0 == "evaluate" }.count <= 2, "\(slow.runs.now)")
        #expect(slow.open.now == 0)
        measuring.now = nil
        try await end(other)
    }

    @Test("a suggestion is not kept waiting by a training, and a second training is refused")
    func meanwhile() async throws {
        let model = try await open()
        try await learn(model)
        let asked = Locked(false)
        let result = try await model.personalize { progress in
            if progress.step != 3 { return }
            let done = DispatchSemaphore(value: 0)
            Task {
                let words = try await model.suggest("see you").count
                let training = try await model.status().training
                if case .failed = try await model.personalize(), words > 0, training { asked.now = true }
                done.signal()
            }
            done.wait()
        }
        _ = try adopted(result)
        #expect(asked.now)
        try await end(model)
    }

    @Test("a forgotten word is in no state, no example and no suggestion, and is not learned again")
    func forgotten() async throws {
        let model = try await open()
        try await learn(model)
        try await model.personalize()
        #expect(try await model.forgetWord("Zorp").slots == 1)
        #expect(try await model.learnedWords() == [])
        #expect(try await !model.examples().isEmpty)
        #expect(try await !model.suggest("see you at the").map(\.word).contains("zorp"))
        #expect(try await model.remember("at the zorp") == .refused(.blocked))
        let one = try #require(try await model.examples().first)
        #expect(try await model.forgetExample(one.id))
        #expect(try await !model.forgetExample(one.id))
        try await model.personalize()
        #expect(try await model.learnedWords() == [])
        await expectError(.config) { try await model.forgetWord("two words") }
        try await end(model)
    }

    @Test("forgetting stops a training, which goes on without the word")
    func forgottenMeanwhile() async throws {
        let model = try await open()
        try await learn(model)
        let stepped = Locked(false)
        let running = Task {
            try await model.personalize { _ in
                stepped.now = true
                while !model.room.isStopping { usleep(100) }  // until somebody wants it to end
            }
        }
        while !stepped.now { await Task.yield() }
        try await model.forgetWord("zorp")
        guard case .cancelled = try await running.value else {
            Issue.record("it was not stopped")
            return
        }
        try await model.personalize()
        #expect(try await model.learnedWords() == [])
        try await end(model)
    }

    @Test("it goes back to what served before")
    func reverted() async throws {
        let model = try await open()
        let shipped = try await model.suggest("see you at the")
        try await learn(model)
        try await model.personalize()
        #expect(try await model.versions().map(\.version) == [1])
        #expect(try await model.revert() == 0)
        #expect(try await model.suggest("see you at the") == shipped)
        #expect(try await model.revert(1) == 1)
        #expect(try await model.learnedWords().contains("zorp"))
        await expectError(.state) { try await model.revert(7) }
        try await end(model)
    }

    @Test("erased, no file is left")
    func erased() async throws {
        let home = folder("model")
        let model = try await PersonalModel.open(
            bundle: URL(fileURLWithPath: "\(bundles)/tiny.pflb"), folder: home, engines: [engine], trusted: true)
        let shipped = try await model.suggest("see you at the")
        try await learn(model)
        _ = try adopted(try await model.personalize())
        try await model.eraseEverything()
        #expect(try await model.suggest("see you at the") == shipped)
        let status = try await model.status()
        #expect(status.examples == 0 && status.last == nil && status.words == 0)
        try await model.close()
        let left = FileManager.default.enumerator(atPath: home.path)?.compactMap { $0 as? String } ?? []
        #expect(left.filter { !$0.hasPrefix("unpacked") } == ["state"])
    }

    @Test("an erasure that one fault stops erases the rest, and the next one all")
    func faults() async throws {
        let model = try await open()
        try await learn(model)
        _ = try adopted(try await model.personalize())
        kept.fault.now = PFLError(.state, "the database does not answer", mend: "try again")
        await expectError(.state, "does not answer") { try await model.eraseEverything() }
        let half = try await model.status()
        #expect(half.version == 0 && half.words == 0 && half.examples == count && half.last == nil)
        kept.fault.now = nil
        try await end(model)
        let again = try await open()  // which ends what was begun
        #expect(try await again.status().examples == 0)
        try await end(again)
    }

    @Test("without space for a new state the old one serves, nothing is lost, and the next training does it")
    func fullDisk() async throws {
        let first = try await open()
        try await learn(first)
        _ = try adopted(try await first.personalize())
        let suggested = try await first.suggest("see you at the")
        for _ in 0..<count { try await first.remember("see you at the blick tonight") }
        try await end(first)

        let full = try await open(disk: FullDisk(room: 500))  // a note of what it began with, and no more
        guard case .failed(let error) = try await full.personalize() else {
            Issue.record("it was kept")
            return
        }
        #expect(error.code == .storageFull)
        let status = try await full.status()
        #expect(status.version == 1 && status.examples == 2 * count)
        #expect(try await full.suggest("see you at the") == suggested)
        try await end(full)

        let again = try await open()
        _ = try adopted(try await again.personalize())
        #expect(try await again.status().version == 2)
        try await end(again)
    }

    @Test("a second opening shares the model, and one with other options is refused")
    func shared() async throws {
        let first = try await open()
        #expect(try await open() === first)
        await expectError(.config) { _ = try await open(try options(test: 0.5)) }
        await expectError(.state) { try await PersonalModel.erase(folder: folder("model")) }
        try await first.close()
        try await first.remember("see you")
        try await end(first)
        await expectError(.state) { try await first.remember("see you") }
        await expectError(.state) { _ = try await first.suggest("see you") }
        await expectError(.state) { try await first.personalize() }
        try await PersonalModel.erase(folder: folder("model"))
        #expect(!FileManager.default.fileExists(atPath: folder("model").path))
    }

    @Test("another process that has it open is named")
    func otherProcess() async throws {
        try FileManager.default.createDirectory(at: folder("model"), withIntermediateDirectories: true)
        let lock = try #require(try FolderLock.take(folder("model").path, seconds: 0))
        await expectError(.state, "another process") { _ = try await open() }
        await expectError(.state, "another process") { try await PersonalModel.erase(folder: folder("model")) }
        withExtendedLifetime(lock) {}
    }

    @Test("a bundle that cannot be opened, and an opening that is cancelled, leave nothing open")
    func notOpened() async throws {
        let home = folder("model")
        let whole = try Data(contentsOf: URL(fileURLWithPath: "\(bundles)/tiny.pflb"))
        try whole.prefix(whole.count / 2).write(to: folder("damaged.pflb"))
        await expectError(.bundle) {
            _ = try await PersonalModel.open(bundle: folder("damaged.pflb"), folder: home, options: try options())
        }
        #expect(try await !PersonalModel.isOpen(folder: home))

        let kept = kept
        let given = try options()
        let task = Task {
            try await PersonalModel.open(
                bundle: URL(fileURLWithPath: "\(bundles)/tiny.pflb"), folder: home, options: given
            ) { _ in
                withUnsafeCurrentTask { $0?.cancel() }
                return kept
            }
        }
        let opening = Task { try await task.value }
        task.cancel()
        await #expect(throws: CancellationError.self) { _ = try await opening.value }
        #expect(try await !PersonalModel.isOpen(folder: home))
        try await end(try await open())
    }

    @Test("closing stops a training, and goes on where the task that asked for it was cancelled")
    func closed() async throws {
        let model = try await open()
        try await learn(model)
        let stepped = Locked(false)
        let running = Task {
            try await model.personalize { _ in
                stepped.now = true
                while !model.room.isStopping { usleep(100) }  // until somebody wants it to end
            }
        }
        while !stepped.now { await Task.yield() }
        let closing = Task {
            while !Task.isCancelled { await Task.yield() }
            try await model.close()
        }
        closing.cancel()
        try await closing.value
        guard case .cancelled = try await running.value else {
            Issue.record("it was not stopped")
            return
        }
        #expect(kept.closings.now == 1 && engine.open.now == 0)
        #expect(try await !PersonalModel.isOpen(folder: model.folder))
    }

    @Test("an idle engine is let go")
    func idle() async throws {
        let model = try await open()
        _ = try await model.suggest("see you")
        #expect(engine.open.now == 0)
        _ = try await model.suggest("see you")
        #expect(engine.openings.now == 2)
        let patient = try await open(try options(idleMs: 3_600_000), home: "patient")
        _ = try await patient.suggest("see you")
        _ = try await patient.suggest("see you")
        #expect(engine.openings.now == 3)
        #expect(try await patient.status().engineOpen)
        try await patient.close()
        try await end(model)
    }

    @Test("a new version of the bundle keeps what was learned, another model is refused or set aside")
    func newer() async throws {
        let model = try await open()
        try await learn(model)
        try await model.personalize()
        let words = try await model.learnedWords()
        let state = model.folder.appendingPathComponent("state")
        try await end(model)
        let again = try await open(nil, "tiny-2")
        #expect(try await again.learnedWords() == words && words == ["zorp"])
        let id = again.model
        try await end(again)

        let foreign = try #require(try PersonalStateStore(state, model: id).load().state)
        let other = try PersonalStateStore(
            state, model: ModelId(name: id.name, version: id.version, fingerprint: String(repeating: "0", count: 64)))
        try other.carryOver(sameWeights: false, discard: true)
        _ = try other.save(foreign)
        await expectError(.state, "belongs to") { _ = try await open(nil, "tiny-2") }
        let fresh = try await open(try options(discard: true), "tiny-2")
        #expect(try await fresh.learnedWords() == [])
        #expect(try await fresh.status().examples == count)
        _ = try adopted(try await fresh.personalize())
        try await end(fresh)
    }

    // ---- rounds

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

    @Test("who has too few examples, or paused, asks nobody")
    func asksNobody() async throws {
        let model = try await open(nil, "talk")
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
        #expect(silence.asked.now == 0 && engine.openings.now == 0)
        #expect(try await model.leave(try federation(silence)) == .notThere)
        try await end(model)
    }

    @Test("without a network it says so, loads no engine, and shows what it gave")
    func noNetwork() async throws {
        let model = try await open(nil, "talk")
        try await learn(model)
        #expect(try await model.status().rounds == nil)
        guard case .unreachable(let error, waiting: 0) = try await model.takePart(try federation(NoNetwork())) else {
            Issue.record("it was reached")
            return
        }
        #expect(error.passing && engine.openings.now == 0)
        let rounds = try #require(try await model.status().rounds)
        #expect(rounds.rounds == 0 && rounds.waiting == 0 && rounds.server == nil && rounds.spent.epsilon == 0)
        await expectError(.config) { _ = try Federation("ftp://nowhere") }
        try await end(model)
    }

    @Test("pause, forgetting and closing stop rounds that wait for a network; so does a cancelled task")
    func roundsStopped() async throws {
        let model = try await open(nil, "talk")
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
        let model = try await open(nil, "talk")
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
        try await end(model)
    }
}
