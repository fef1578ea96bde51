import Foundation
import Testing

@testable import PFLMobile
@testable import PFLOnnxRuntime

func isThere(_ name: String) -> Bool {
    let examples = ["\(name)-examples.json", "\(name)-train.safetensors"].map { "\(bundles)/\($0)" }
    return examples.contains { FileManager.default.fileExists(atPath: $0) }
}

/// What a personalization is of, and what comes of it.
struct User: Sendable {
    let name: String
    let steps: Int
    let hasWords: Bool
}

let present = [
    User(name: "tiny", steps: 18, hasWords: true), User(name: "keyboard", steps: 50, hasWords: true),
    User(name: "activity", steps: 50, hasWords: false),
].filter { isThere($0.name) }

/// The same bundle and examples end in the same personal state as in Python: words, memory and trained tensors. ONNX Runtime has
/// another version in Python, which may add in another order.
@Suite struct ParityTests {
    private func examples(_ name: String, _ part: String) throws -> Examples {
        let texts = "\(bundles)/\(name)-examples.json"
        guard FileManager.default.fileExists(atPath: texts) else {
            let file = "\(bundles)/\(name)-\(part).safetensors"
            return .arrays(try Safetensors.read(try map(file), file).tensors)
        }
        let lists = try #require(try parseJSON(bytes: try readBytes(texts)).object)
        return .texts(try #require(lists[part]?.array).compactMap(\.string))
    }

    @Test(
        "Swift ends where Python ends",
        arguments: present)
    func parity(_ user: User) throws {
        let (name, steps) = (user.name, user.steps)
        let bundle = try ModelBundle.open(URL(fileURLWithPath: "\(bundles)/\(name).pflb"))
        let session = try openSession(bundle, engines: [OnnxRuntimeEngine()], trusted: true)
        try goldenCheck(bundle, session).require()
        let trainer = try LocalTrainer(
            session, plan: Plan(json: bundle.planJSON()), tensors: bundle.manifest.tensors, initial: bundle.values(),
            encoder: textEncoder(bundle).map { TrainingEncoder($0) })
        let report = try trainer.personalize(try examples(name, "train"), holdout: try examples(name, "holdout"))
        #expect(report.status == .adopted)
        #expect(report.steps == steps)
        try compare(user, bundle, try #require(report.state))
    }

    @Test("a personal model ends where Python ends, and in no other bits than the trainer", arguments: present)
    func personalModel(_ user: User) async throws {
        let bundle = try ModelBundle.open(URL(fileURLWithPath: "\(bundles)/\(user.name).pflb"))
        let folder = try TemporaryFolder()
        let model = try await PersonalModel.open(
            bundle: URL(fileURLWithPath: "\(bundles)/\(user.name).pflb"), folder: folder.url("model"),
            engines: [OnnxRuntimeEngine()], trusted: true)
        let holdout = try examples(user.name, "holdout")
        let train = try examples(user.name, "train")
        var said = 0
        for part in [train, holdout] { said += try await remember(part, by: model) }
        // The newest fifth of all is what nobody learns from.
        while said < Int((Double(train.size + holdout.size) / 0.8).rounded(.up)) {
            said += try await remember(holdout.cut(1).0, by: model)
        }
        guard case .adopted(let result) = try await model.personalize() else {
            Issue.record("it was not adopted")
            return
        }
        #expect(result.train == train.size && result.holdout == holdout.size)
        #expect(result.report.steps == user.steps)
        try compare(user, bundle, try #require(result.report.state))
        let session = try openSession(bundle, engines: [OnnxRuntimeEngine()], trusted: true)
        let trainer = try LocalTrainer(
            session, plan: Plan(json: bundle.planJSON()), tensors: bundle.manifest.tensors, initial: bundle.values(),
            encoder: textEncoder(bundle).map { TrainingEncoder($0) })
        let other = try #require(try trainer.personalize(train, holdout: holdout).state)
        for (name, value) in try #require(result.report.state).tensors {
            #expect(other.tensors[name]?.sameBits(value) == true, "\(name)")
        }
        try await model.close()
    }

    private func remember(_ examples: Examples, by model: PersonalModel) async throws -> Int {
        switch examples {
        case .texts(let texts): for text in texts { try await model.remember(text) }
        case .arrays(let rows): for row in 0..<examples.size { try await model.remember(take(rows, [row], 1)) }
        }
        return examples.size
    }

    private func compare(_ user: User, _ bundle: ModelBundle, _ ours: PersonalState) throws {
        let (name, hasWords) = (user.name, user.hasWords)
        let shipped = try bundle.values()
        let folder = URL(fileURLWithPath: "\(bundles)/\(name)-state-onnxruntime")
        let theirs = try #require(try PersonalStateStore(folder, model: ModelId(bundle.manifest)).load().state)
        #expect(ours.words == theirs.words)
        #expect(theirs.words.contains("zorp") == hasWords)
        #expect(ours.tensors.keys.sorted() == theirs.tensors.keys.sorted())
        for (key, want) in theirs.tensors {
            let found = try #require(ours.tensors[key])
            if want.sameBits(found) { continue }
            #expect(want.float != nil, "\(key)")
            // Of how far the tensor moved; not of each element: AdamW makes a whole step of a gradient that is noise.
            let share = distance(want, found) / distance(want, try #require(shipped[key]))
            #expect(share <= 1e-3, "\(name): \(key) ends \(share) of the way away from where Python ended")
        }
    }

    private func distance(_ one: Tensor, _ other: Tensor) -> Double {
        zip(one.doubles, other.doubles).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }.squareRoot()
    }
}
