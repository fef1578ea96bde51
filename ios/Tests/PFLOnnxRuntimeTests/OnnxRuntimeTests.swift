import Foundation
import Testing

@testable import PFLMobile
@testable import PFLOnnxRuntime

private let conformance = repository.appendingPathComponent("conformance").path

private func vectors(_ file: String) throws -> JSONObject {
    try #require(try parseJSON(bytes: try readBytes("\(conformance)/\(file)")).object)
}

private func double(_ json: JSON?) throws -> Double {
    let text = try #require(json?.string)
    return Double(bitPattern: try #require(UInt64(text, radix: 16)))
}

private func tensor(_ json: JSON) throws -> Tensor {
    let fields = try #require(json.object)
    let shape = try #require(fields["shape"]?.array).compactMap(\.integer)
    if let floats = fields["f32"]?.string {
        let values = floats.split(separator: " ").compactMap { UInt32($0, radix: 16).map(Float.init(bitPattern:)) }
        return .float(FloatTensor(values, shape))
    }
    return .long(LongTensor(try #require(fields["i64"]?.array).compactMap { $0.integer.map(Int64.init) }, shape))
}

private func tensors(_ json: JSON?) throws -> TensorSet {
    var found: TensorSet = [:]
    for (name, value) in try #require(json?.object) { found[name] = try tensor(value) }
    return found
}

@Suite struct OnnxRuntimeTests {
    let bundle: ModelBundle

    init() throws {
        let key = try #require(try vectors("bundles.json")["keys"]?.object?["right"]?.string)
        bundle = try ModelBundle.open(
            URL(fileURLWithPath: "\(conformance)/bundles/arrays"), publicKey: try VerificationKey(key))
    }

    private func session() throws -> any EngineSession { try openSession(bundle, engines: [OnnxRuntimeEngine()]) }

    @Test("the golden calls give what PyTorch gave")
    func golden() throws {
        let report = try goldenCheck(bundle, try session())
        try report.require()
        #expect(report.worstRelErr < 1e-5, "\(report)")
        #expect(report.engine == "onnxruntime")
    }

    @Test("all that the runtime holds is given back")
    func givenBack() throws {
        let golden = try bundle.golden()
        let open = OpenObjects()
        try OpenObjects.$ofTask.withValue(open) {
            let session = try session()
            for _ in 0..<3 { for (program, call) in golden { _ = try session.run(program, call.inputs) } }
            // Options, three programs, and each of their inputs; no outputs.
            #expect(open.count == 1 + 3 + golden.values.reduce(0) { $0 + $1.inputs.count })
        }
        #expect(open.count == 0)
    }

    @Test("a call does not see the one before")
    func apart() throws {
        let session = try session()
        let inputs = try #require(try bundle.golden()["gradients"]).inputs
        let first = try session.run("gradients", inputs)
        var zero = inputs
        zero["weight"] = .float(FloatTensor([0, 0, 0, 0], [4]))
        #expect(try session.run("gradients", zero)["weight_sum"]?.float?.values == [0])
        for (name, value) in try session.run("gradients", inputs) {
            #expect(first[name]?.sameBits(value) == true, "\(name)")
        }
    }

    private func expectError(
        _ code: PFLError.Code, _ location: SourceLocation = #_sourceLocation, _ body: () throws -> Void
    ) {
        do {
            try body()
            Issue.record("nothing was refused", sourceLocation: location)
        } catch let error as PFLError {
            #expect(error.isA(code), "\(error)", sourceLocation: location)
        } catch {
            Issue.record("\(error)", sourceLocation: location)
        }
    }

    @Test("wrong tensors are named")
    func wrongTensors() throws {
        let session = try session()
        var inputs = try #require(try bundle.golden()["gradients"]).inputs
        expectError(.unknownName) { _ = try session.run("gradient", inputs) }
        inputs["more"] = .long(LongTensor([1], [1]))
        _ = try session.run("gradients", inputs)
        inputs["weight"] = .float(FloatTensor([0, 0, 0], [3]))
        expectError(.tensorMismatch) { _ = try session.run("gradients", inputs) }
        inputs["weight"] = .long(LongTensor([0, 0, 0, 0], [4]))
        expectError(.tensorMismatch) { _ = try session.run("gradients", inputs) }
        inputs["weight"] = nil
        expectError(.tensorMismatch) { _ = try session.run("gradients", inputs) }
    }

    @Test("programs that are not what the manifest says are errors")
    func wrongPrograms() throws {
        let files = try bundle.engineFiles("onnxruntime")
        let inputs = try #require(try bundle.golden()["evaluate"]).inputs
        let spec = try bundle.manifest.program("evaluate")
        func run(_ changed: ProgramSpec, _ from: [String: String]? = nil) throws {
            let session = try OnnxRuntimeEngine().open(files: from ?? files, programs: [changed], threads: 1)
            _ = try session.run("evaluate", inputs)
        }
        let wide = spec.outputs.map { TensorSpec(name: $0.name, shape: [2], dtype: $0.dtype) }
        expectError(.tensorMismatch) { try run(ProgramSpec(name: spec.name, inputs: spec.inputs, outputs: wide)) }
        let nothing = [TensorSpec(name: "nothing", shape: [1], dtype: .float32)]
        expectError(.engine) { try run(ProgramSpec(name: spec.name, inputs: spec.inputs, outputs: nothing)) }
        let fewer = Array(spec.inputs.dropFirst())
        expectError(.engine) { try run(ProgramSpec(name: spec.name, inputs: fewer, outputs: spec.outputs)) }
        expectError(.engine) { try run(spec, [:]) }
        expectError(.engine) { try run(spec, ["evaluate": try bundle.path("plan.json")]) }
        expectError(.engine) { try run(spec, ["evaluate": "/nowhere/no.onnx"]) }
    }

    @Test("who vouches for nobody's programs has to say so")
    func trusted() throws {
        let unpinned = try ModelBundle.open(URL(fileURLWithPath: "\(conformance)/bundles/arrays"))
        expectError(.signature) { _ = try openSession(unpinned, engines: [OnnxRuntimeEngine()]) }
        _ = try openSession(unpinned, engines: [OnnxRuntimeEngine()], trusted: true)
        expectError(.engineUnavailable) { _ = try openSession(unpinned, engines: [], trusted: true) }
    }

    @Test("the newest examples tell what personalization brought")
    func evaluated() throws {
        let vectors = try vectors("runs.json")
        let evaluator = try Evaluator(bundle, try session())
        #expect(evaluator.golden.ok)
        let all = Examples.arrays(joinRows(try tensors(vectors["train"]), try tensors(vectors["holdout"])))
        let result = try evaluator.personalize(all)
        #expect(result.train + result.holdout + result.test == all.size)
        #expect(result.older == 0)
        let tested = try parts(all).test
        #expect(try evaluator.measure(tested) == result.before)
        #expect(result.report.status == .adopted)
        #expect(try evaluator.measure(tested, state: result.report.state) == result.after)
        #expect(result.before != result.after)
    }

    @Test("a real bundle ends where Python ends, and its state is kept")
    func wholeRun() throws {
        let vectors = try vectors("runs.json")
        let close = 1e-4  // two builds of one engine, 80 steps of AdamW in float32
        let folder = URL(fileURLWithPath: NSTemporaryDirectory()).appendingPathComponent("pfl-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: folder) }
        let session = try session()
        let store = try PersonalStateStore(folder, model: ModelId(bundle.manifest))
        let trainer = try LocalTrainer(
            session, plan: Plan(json: bundle.planJSON()), tensors: bundle.manifest.tensors, initial: bundle.values())
        let report = try trainer.personalize(
            .arrays(try tensors(vectors["train"])), holdout: .arrays(try tensors(vectors["holdout"])), store: store)
        #expect(report.status.rawValue == vectors["status"]?.string)
        #expect(report.steps == vectors["steps"]?.integer)
        for (want, found) in zip(try #require(vectors["losses"]?.array), report.losses) {
            #expect(abs(try double(want) - found) < close)
        }
        let state = try #require(report.state)
        for (name, want) in try tensors(vectors["tensors"]) {
            let found = try #require(state.tensors[name]).doubles
            #expect(zip(want.doubles, found).allSatisfy { abs($0 - $1) < close }, "\(name)")
        }
        for (name, want) in try #require(vectors["after"]?.object) {
            #expect(abs(try double(want) - (report.after[name] ?? .nan)) < close, "\(name)")
        }
        let kept = try PersonalStateStore(folder, model: ModelId(bundle.manifest)).load()
        #expect(kept.version == report.version)
        for (name, value) in state.tensors { #expect(kept.state?.tensors[name]?.sameBits(value) == true, "\(name)") }
    }
}
