import Foundation
import Testing

@testable import PFLMobile
@testable import PFLOnnxRuntime

/// Bundles that Python exported, and the states that it ended with: `python android/desktop.py` makes them. Tests that need them
/// are left out where they are not.
let bundles: String = {
    if let given = ProcessInfo.processInfo.environment["PFL_BUNDLES"] { return given }
    var folder = URL(fileURLWithPath: #filePath)
    for _ in 0..<4 { folder.deleteLastPathComponent() }
    return folder.appendingPathComponent("android/target/bundles").path
}()

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
        let (name, steps, hasWords) = (user.name, user.steps, user.hasWords)
        let bundle = try ModelBundle.open(URL(fileURLWithPath: "\(bundles)/\(name).pflb"))
        let session = try openSession(bundle, engines: [OnnxRuntimeEngine()], trusted: true)
        try goldenCheck(bundle, session).require()
        let shipped = try bundle.values()
        let trainer = try LocalTrainer(
            session, plan: Plan(json: bundle.planJSON()), tensors: bundle.manifest.tensors, initial: shipped,
            encoder: textEncoder(bundle).map { TrainingEncoder($0) })
        let report = try trainer.personalize(try examples(name, "train"), holdout: try examples(name, "holdout"))
        #expect(report.status == .adopted)
        #expect(report.steps == steps)
        let ours = try #require(report.state)
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
