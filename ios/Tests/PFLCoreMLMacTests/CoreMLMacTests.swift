import Foundation
import PFLCoreML
import Testing

@testable import PFLMobile

/// Core ML itself, on a Mac or in a simulator: golden calls, and training that ends where Python ended on the interpreter. The bundles
/// are those of `python ios/bundles.py`; PFL_COREML_BUNDLES names their folder. Elsewhere this is only compiled.
@Suite(.enabled(if: isApple && !present.isEmpty), .serialized) struct CoreMLMacTests {
    private func opened(_ user: User) throws -> (ModelBundle, any EngineSession) {
        let bundle = try ModelBundle.open(URL(fileURLWithPath: "\(bundles)/\(user.name)-\(user.target).pflb"))
        return (bundle, try openSession(bundle, engines: [CoreMLEngine()], trusted: true))
    }

    @Test("the golden calls give what PyTorch gave", arguments: present)
    func golden(_ user: User) throws {
        let (bundle, session) = try opened(user)
        let report = try goldenCheck(bundle, session)
        print("\(user.name) for \(user.target): largest error \(report.worstRelErr) of \(report.tolerance)")
        try report.require()
    }

    @Test("training ends where Python ended", arguments: present)
    func training(_ user: User) throws {
        let (bundle, session) = try opened(user)
        let shipped = try bundle.values()
        let trainer = try LocalTrainer(
            session, plan: Plan(json: bundle.planJSON()), tensors: bundle.manifest.tensors, initial: shipped,
            encoder: textEncoder(bundle).map { TrainingEncoder($0) })
        let began = ContinuousClock.now
        let report = try trainer.personalize(
            try examples(user.name, "train"), holdout: try examples(user.name, "holdout"))
        print("\(user.name) for \(user.target): \(report.steps) steps in \(ContinuousClock.now - began)")
        #expect(report.status == .adopted)
        let ours = try #require(report.state)
        let folder = URL(fileURLWithPath: "\(bundles)/\(user.name)-\(user.target)-state")
        let theirs = try #require(try PersonalStateStore(folder, model: ModelId(bundle.manifest)).load().state)
        #expect(ours.words == theirs.words)
        for (name, want) in theirs.tensors {
            let found = try #require(ours.tensors[name])
            if want.sameBits(found) { continue }
            // Of how far the tensor moved. In mixed precision Core ML may round at other places than the interpreter does.
            let share = distance(want, found) / distance(want, try #require(shipped[name]))
            #expect(
                share <= (user.target == "ios-mixed" ? 0.1 : 1e-3),
                "\(user.name): \(name) ends \(share) of the way away")
        }
    }

    private func examples(_ name: String, _ part: String) throws -> Examples {
        let texts = "\(bundles)/\(name)-examples.json"
        guard FileManager.default.fileExists(atPath: texts) else {
            let file = "\(bundles)/\(name)-\(part).safetensors"
            return .arrays(try Safetensors.read(try map(file), file).tensors)
        }
        let lists = try #require(try parseJSON(bytes: try readBytes(texts)).object)
        return .texts(try #require(lists[part]?.array).compactMap(\.string))
    }

    private func distance(_ one: Tensor, _ other: Tensor) -> Double {
        zip(one.doubles, other.doubles).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }.squareRoot()
    }
}

struct User: Sendable {
    let name: String
    let target: String
}

private let bundles: String = {
    if let given = ProcessInfo.processInfo.environment["PFL_COREML_BUNDLES"] { return given }
    var folder = URL(fileURLWithPath: #filePath)
    for _ in 0..<3 { folder.deleteLastPathComponent() }
    return folder.appendingPathComponent("target/bundles").path
}()

private let present = ["tiny", "keyboard", "activity"].flatMap { name in
    ["ios", "ios17", "ios-mixed"].map { User(name: name, target: $0) }
}.filter { FileManager.default.fileExists(atPath: "\(bundles)/\($0.name)-\($0.target).pflb") }

#if canImport(Darwin)
    private let isApple = true
#else
    private let isApple = false
#endif
