import Foundation
import Testing

@testable import PFLMobile
@testable import PFLOnnxRuntime

/// What an app does with a model, over real bundles and the real ONNX Runtime.
@Suite(.enabled(if: isThere("tiny"))) struct PersonalModelTests {
    private let models: Models

    init() throws { models = try Models() }

    @Test("it learns what the user says, and serves it after it was opened again")
    func learns() async throws {
        let model = try await models.open()
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
        try await models.end(model)
        #expect(models.kept.closings.now == 1)

        let again = try await models.open()
        #expect(try await again.suggest("see you at the") == suggested)
        #expect(try await again.status() == status)
        try await models.end(again)
    }

    @Test("it does what the evaluator does, bit for bit")
    func evaluator() async throws {
        let model = try await models.open()
        try await learn(model)
        try await model.personalize()
        let bundle = try ModelBundle.open(URL(fileURLWithPath: "\(bundles)/tiny.pflb"))
        let session = try openSession(bundle, engines: [OnnxRuntimeEngine()], trusted: true)
        let want = try Evaluator(bundle, session).personalize(.texts((0..<count).map(text))).report.state
        expectSame(try #require(want), try state(model))
        try await models.end(model)
    }

    @Test("arrays are remembered, learned and told apart")
    func arrays() async throws {
        let model = try await models.open(nil, "arrays")
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
        await expectRefused(.tensorMismatch) { _ = try await model.predict([Float](repeating: 0, count: 5)) }
        await expectRefused(.tensorMismatch) {
            try await model.remember(["y": .float(FloatTensor([Float](repeating: 0, count: 6), [6]))])
        }
        let input = try model.room.row("gradients", features(0))
        for label in [4, -1] {
            await expectRefused(.data, "the label \(label) is not in 0..3") {
                try await model.remember(features(0), label: label)
            }
            let labels = Tensor.long(LongTensor([Int64(label)], [1]))
            await expectRefused(.data, "the label \(label) is not in 0..3") {
                try await model.remember([input.name: input.value, "labels": labels])
            }
        }
        #expect(try await model.examples().count == 40)
        await expectRefused(.data) { try await model.remember([Float](repeating: .nan, count: 6), label: 1) }
        await expectRefused(.config) { try await model.remember("a text") }
        await expectRefused(.config) { _ = try await model.suggest("a text") }
        await expectRefused(.config) { try await model.forgetWord("word") }
        try await models.end(model)
    }

    @Test("what must not be kept is refused with a reason")
    func refused() async throws {
        let model = try await models.open(try models.options(blocked: ["Kestrel"]))
        #expect(try await model.remember("the kestrel's nest") == .refused(.blocked))
        #expect(try await model.remember("  \n") == .refused(.empty))
        try await model.pause()
        #expect(try await model.remember("see you") == .refused(.paused))
        guard case .paused = try await model.personalize() else {
            Issue.record("it learned")
            return
        }
        try await models.end(model)
        let again = try await models.open(try models.options(blocked: ["Kestrel"]))
        #expect(try await again.status().paused)
        try await again.resume()
        models.kept.fault.now = PFLError(.storageFull, "full", mend: "make room")
        #expect(try await again.remember("see you") == .refused(.storageFull))
        #expect(try await again.status().examples == 0)
        await expectRefused(.config) { _ = try await again.predict([0, 0, 0]) }
        try await models.end(again)
    }

    @Test("too few examples are said")
    func few() async throws {
        let model = try await models.open()
        for have in 0..<2 {
            guard case .notEnoughExamples(have) = try await model.personalize() else {
                Issue.record("it learned from \(have)")
                return
            }
            try await model.remember("see you")
        }
        try await models.end(model)
    }

    @Test("cancelled in the middle it ends as if it never was, though more was said meanwhile")
    func resumed() async throws {
        let whole = try await models.open(home: "whole")
        try await learn(whole)
        try await whole.personalize()
        let want = try state(whole)
        try await models.end(whole)
        _ = try models.kept.inner.eraseAll()

        let model = try await models.open()
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
        try await models.end(model)
    }

    @Test("a training that is paused ends within a step, and measuring within a batch")
    func stopped() async throws {
        let model = try await models.open()
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
        #expect(models.engine.runs.now.filter { $0 == "gradients" }.count == 2, "a golden call and a step")
        try await model.resume()
        try await models.end(model)

        let measuring = Locked<Task<PersonalizeResult, any Error>?>(nil)
        let slow = CountingEngine { program in
            if program == "evaluate" {
                while measuring.now == nil { usleep(100) }
                measuring.now?.cancel()
            }
        }
        let other = try await models.open(try models.options(slow), home: "other")
        let task = Task { try await other.personalize() }
        measuring.now = task
        await #expect(throws: CancellationError.self) { try await task.value }
        #expect(slow.runs.now.filter { $0 == "evaluate" }.count <= 2, "\(slow.runs.now)")
        #expect(slow.open.now == 0)
        measuring.now = nil
        try await models.end(other)
    }

    @Test("a suggestion is not kept waiting by a training, and a second training is refused")
    func meanwhile() async throws {
        let model = try await models.open()
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
        try await models.end(model)
    }

    @Test("a forgotten word is in no state, no example and no suggestion, and is not learned again")
    func forgotten() async throws {
        let model = try await models.open()
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
        await expectRefused(.config) { try await model.forgetWord("two words") }
        try await models.end(model)
    }

    @Test("forgetting stops a training, which goes on without the word")
    func forgottenMeanwhile() async throws {
        let model = try await models.open()
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
        try await models.end(model)
    }

    @Test("it goes back to what served before")
    func reverted() async throws {
        let model = try await models.open()
        let shipped = try await model.suggest("see you at the")
        try await learn(model)
        try await model.personalize()
        #expect(try await model.versions().map(\.version) == [1])
        #expect(try await model.revert() == 0)
        #expect(try await model.suggest("see you at the") == shipped)
        #expect(try await model.revert(1) == 1)
        #expect(try await model.learnedWords().contains("zorp"))
        await expectRefused(.state) { try await model.revert(7) }
        try await models.end(model)
    }

    @Test("erased, no file is left")
    func erased() async throws {
        let home = models.folder.url("model")
        let model = try await PersonalModel.open(
            bundle: URL(fileURLWithPath: "\(bundles)/tiny.pflb"), folder: home, engines: [models.engine], trusted: true)
        let shipped = try await model.suggest("see you at the")
        try await learn(model)
        _ = try adopted(try await model.personalize())
        try await model.eraseEverything()
        #expect(try await model.suggest("see you at the") == shipped)
        let status = try await model.status()
        #expect(status.examples == 0 && status.last == nil && status.words == 0)
        try await model.close()
        let left = FileManager.default.enumerator(atPath: home.path)?.compactMap { $0 as? String } ?? []
        #expect(left.filter { !$0.hasPrefix("unpacked") }.sorted() == [".lock", "state", "state/.lock"])
    }

    @Test("an erasure that one fault stops erases the rest, and the next one all")
    func faults() async throws {
        let model = try await models.open()
        try await learn(model)
        _ = try adopted(try await model.personalize())
        models.kept.fault.now = PFLError(.state, "the database does not answer", mend: "try again")
        await expectRefused(.state, "does not answer") { try await model.eraseEverything() }
        let half = try await model.status()
        #expect(half.version == 0 && half.words == 0 && half.examples == count && half.last == nil)
        models.kept.fault.now = nil
        try await models.end(model)
        let again = try await models.open()  // which ends what was begun
        #expect(try await again.status().examples == 0)
        try await models.end(again)
    }

    @Test("without space for a new state the old one serves, nothing is lost, and the next training does it")
    func fullDisk() async throws {
        let first = try await models.open()
        try await learn(first)
        _ = try adopted(try await first.personalize())
        let suggested = try await first.suggest("see you at the")
        for _ in 0..<count { try await first.remember("see you at the blick tonight") }
        try await models.end(first)

        let full = try await models.open(disk: FullDisk(room: 500))  // a note of what it began with, and no more
        guard case .failed(let error) = try await full.personalize() else {
            Issue.record("it was kept")
            return
        }
        #expect(error.code == .storageFull)
        let status = try await full.status()
        #expect(status.version == 1 && status.examples == 2 * count)
        #expect(try await full.suggest("see you at the") == suggested)
        try await models.end(full)

        let again = try await models.open()
        _ = try adopted(try await again.personalize())
        #expect(try await again.status().version == 2)
        try await models.end(again)
    }

    @Test("a second opening shares the model, and one with other options is refused")
    func shared() async throws {
        let first = try await models.open()
        #expect(try await models.open() === first)
        await expectRefused(.config) { _ = try await models.open(try models.options(test: 0.5)) }
        await expectRefused(.state) { try await PersonalModel.erase(folder: models.folder.url("model")) }
        try await first.close()
        try await first.remember("see you")
        try await models.end(first)
        await expectRefused(.state) { try await first.remember("see you") }
        await expectRefused(.state) { _ = try await first.suggest("see you") }
        await expectRefused(.state) { try await first.personalize() }
        try await PersonalModel.erase(folder: models.folder.url("model"))
        #expect(!FileManager.default.fileExists(atPath: models.folder.url("model").path))
    }

    @Test("a folder of something else is neither opened nor removed")
    func folderOfAnother() async throws {
        let home = models.folder.url("model")
        let photo = home.appendingPathComponent("photo.jpg")
        try FileManager.default.createDirectory(at: home, withIntermediateDirectories: true)
        try Data([1]).write(to: photo)
        await expectRefused(.state, "no folder of a personal model") { try await PersonalModel.erase(folder: home) }
        await expectRefused(.config, "holds something else: photo.jpg") { _ = try await models.open() }
        #expect(try FileManager.default.contentsOfDirectory(atPath: home.path) == ["photo.jpg"])
        try FileManager.default.removeItem(at: photo)
        try await models.end(try await models.open())
        try Data([1]).write(to: photo)  // of somebody who knows what the folder is
        try await PersonalModel.erase(folder: home)
        #expect(!FileManager.default.fileExists(atPath: home.path))
        try await PersonalModel.erase(folder: home)
    }

    /// An engine that the app does not bring.
    private struct Absent: Engine {
        let name = "executorch"

        func open(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any EngineSession {
            throw PFLError(.engineUnavailable, "it is not in the app", mend: "add it")
        }
    }

    @Test("the engines are those that are linked in, and one that is absent is passed over")
    func engines() async throws {
        #expect(linkedEngines().last?.name == "onnxruntime")
        #expect(linkedEngines(["PFLNowhere"]).isEmpty)
        #expect(try ModelOptions().engines.map(\.name) == linkedEngines().map(\.name))
        await expectRefused(.config, "no engine") { _ = try ModelOptions(engines: []) }
        let two = try await models.open(try ModelOptions(trusted: true, engines: [Absent(), models.engine]))
        #expect(try await !two.suggest("see you").isEmpty)
        try await models.end(two)
        let none = try await models.open(try ModelOptions(trusted: true, engines: [Absent()]), home: "none")
        await expectRefused(.engineUnavailable, "not in the app") { _ = try await none.suggest("see you") }
        try await models.end(none)
    }

    @Test("what lies in the app is trusted, and nothing else")
    func shippedWithTheApp() async throws {
        let options = try ModelOptions(engines: linkedEngines(["PFLOnnxRuntime"]))
        let other = try await models.open(options, home: "other")
        await expectRefused(.signature) { _ = try await other.suggest("see you") }
        try await models.end(other)

        #if !canImport(Darwin)  // where tests are no app
            let url = Bundle.main.bundleURL.appendingPathComponent("pfl-test-\(UUID().uuidString).pflb")
            try FileManager.default.copyItem(at: URL(fileURLWithPath: "\(bundles)/tiny.pflb"), to: url)
            defer { try? FileManager.default.removeItem(at: url) }
            let model = try await PersonalModel.open(bundle: url, folder: models.folder.url("model"), options: options)
            #expect(try await !model.suggest("see you at the", count: 3).isEmpty)
            try await models.end(model)
        #endif
    }

    @Test("another process that has it open is named")
    func otherProcess() async throws {
        try FileManager.default.createDirectory(at: models.folder.url("model"), withIntermediateDirectories: true)
        let lock = try #require(try FolderLock.take(models.folder.url("model").path, seconds: 0))
        await expectRefused(.state, "another process") { _ = try await models.open() }
        await expectRefused(.state, "another process") {
            try await PersonalModel.erase(folder: models.folder.url("model"))
        }
        withExtendedLifetime(lock) {}
    }

    @Test("a bundle that cannot be opened, and an opening that is cancelled, leave nothing open")
    func notOpened() async throws {
        let home = models.folder.url("model")
        let whole = try Data(contentsOf: URL(fileURLWithPath: "\(bundles)/tiny.pflb"))
        try whole.prefix(whole.count / 2).write(to: models.folder.url("damaged.pflb"))
        await expectRefused(.bundle) {
            _ = try await PersonalModel.open(
                bundle: models.folder.url("damaged.pflb"), folder: home, options: try models.options())
        }
        #expect(try await !PersonalModel.isOpen(folder: home))

        let kept = models.kept
        let given = try models.options()
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
        try await models.end(try await models.open())
    }

    @Test("closing stops a training, and goes on where the task that asked for it was cancelled")
    func closed() async throws {
        let model = try await models.open()
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
        #expect(models.kept.closings.now == 1 && models.engine.open.now == 0)
        #expect(try await !PersonalModel.isOpen(folder: model.folder))
    }

    @Test("an idle engine is let go")
    func idle() async throws {
        let model = try await models.open()
        _ = try await model.suggest("see you")
        #expect(models.engine.open.now == 0)
        _ = try await model.suggest("see you")
        #expect(models.engine.openings.now == 2)
        let patient = try await models.open(try models.options(idleMs: 3_600_000), home: "patient")
        _ = try await patient.suggest("see you")
        _ = try await patient.suggest("see you")
        #expect(models.engine.openings.now == 3)
        #expect(try await patient.status().engineOpen)
        try await patient.close()
        try await models.end(model)
    }

    @Test("a new version of the bundle keeps what was learned, another model is refused or set aside")
    func newer() async throws {
        let model = try await models.open()
        try await learn(model)
        try await model.personalize()
        let words = try await model.learnedWords()
        let state = model.folder.appendingPathComponent("state")
        try await models.end(model)
        let again = try await models.open(nil, "tiny-2")
        #expect(try await again.learnedWords() == words && words == ["zorp"])
        let id = again.model
        try await models.end(again)

        let foreign = try #require(try PersonalStateStore(state, model: id).load().state)
        let other = try PersonalStateStore(
            state, model: ModelId(name: id.name, version: id.version, fingerprint: String(repeating: "0", count: 64)))
        try other.carryOver(sameWeights: false, discard: true)
        _ = try other.save(foreign)
        await expectRefused(.state, "belongs to") { _ = try await models.open(nil, "tiny-2") }
        let fresh = try await models.open(try models.options(discard: true), "tiny-2")
        #expect(try await fresh.learnedWords() == [])
        #expect(try await fresh.status().examples == count)
        #expect(try await fresh.status().last == nil)
        _ = try adopted(try await fresh.personalize())
        try await models.end(fresh)
    }
}
