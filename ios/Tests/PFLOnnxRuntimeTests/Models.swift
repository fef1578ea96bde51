import Foundation
import Testing

@testable import PFLMobile
@testable import PFLOnnxRuntime

let said = ["see you at the zorp tonight", "the zorp is late again", "ok see you there"]
/// Examples that `learn` gives.
let count = 30
let time = 1_700_000_000.0

/// What the user said.
func text(_ number: Int) -> String { said[number % said.count] + (number % 4 == 0 ? " now" : "") }

/// Gives a model what the user said.
func learn(_ model: PersonalModel) async throws {
    for number in 0..<count {
        guard case .kept = try await model.remember(text(number)) else {
            Issue.record("\(number) was refused")
            return
        }
    }
}

/// The report of a training that was adopted.
func adopted(_ result: PersonalizeResult) throws -> UserResult {
    guard case .adopted(let report) = result else {
        Issue.record("it ended otherwise: \(result)")
        throw CancellationError()
    }
    return report
}

/// What a model learned.
func state(_ model: PersonalModel) throws -> PersonalState {
    let store = try PersonalStateStore(model.folder.appendingPathComponent("state"), model: model.model)
    return try #require(try store.load().state)
}

/// Fails unless words and every bit agree.
func expectSame(_ one: PersonalState, _ other: PersonalState) {
    #expect(one.words == other.words)
    #expect(one.tensors.keys.sorted() == other.tensors.keys.sorted())
    for (name, value) in one.tensors { #expect(other.tensors[name]?.sameBits(value) == true, "\(name)") }
}

/// Personal models in a folder of their own, over real bundles and the real ONNX Runtime.
struct Models {
    let folder: TemporaryFolder
    let engine = CountingEngine()
    let kept = TestExamples()

    init() throws { folder = try TemporaryFolder() }

    func options(
        _ engine: CountingEngine? = nil, blocked: Set<String> = [], test: Double = 0.2, idleMs: Int = 0,
        discard: Bool = false
    ) throws -> ModelOptions {
        try ModelOptions(
            trusted: true, engines: [engine ?? self.engine], blockedWords: blocked, test: test, engineIdleMs: idleMs,
            discardOtherState: discard)
    }

    func open(
        _ given: ModelOptions? = nil, _ bundle: String = "tiny", home: String = "model", disk: any Disk = RealDisk(),
        examples: (any ExampleStore)? = nil
    ) async throws -> PersonalModel {
        let kept: any ExampleStore = examples ?? self.kept
        return try await PersonalModel.open(
            URL(fileURLWithPath: "\(bundles)/\(bundle).pflb"), folder.url(home), given ?? options(), { time }, disk
        ) { _ in kept }
    }

    /// Closes a model, and holds that nothing stays open.
    func end(_ model: PersonalModel) async throws {
        try await model.close()
        #expect(engine.open.now == 0)
        #expect(try await !PersonalModel.isOpen(folder: model.folder))
    }
}
