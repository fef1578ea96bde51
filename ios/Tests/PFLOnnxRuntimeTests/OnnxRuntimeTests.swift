import Foundation
import Testing

@testable import PFLMobile
@testable import PFLOnnxRuntime

/// A signed bundle of the vectors.
private func openVector(_ path: String) throws -> ModelBundle {
    let key = try Vectors.read("bundles.json")["keys"]["right"].text
    return try ModelBundle.open(
        URL(fileURLWithPath: "\(Vectors.folder)/\(path)"), publicKey: try VerificationKey(key))
}

@Suite struct OnnxRuntimeTests {
    let bundle: ModelBundle

    init() throws { bundle = try openVector("bundles/arrays") }

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
            // Options, three programs, and room for the inputs of one program at a time; no outputs.
            var rooms: [String: Int] = [:]
            for call in golden.values {
                for (form, inputs) in Dictionary(grouping: call.inputs.values, by: \.signature) {
                    rooms[form] = max(rooms[form] ?? 0, inputs.count)
                }
            }
            #expect(open.count == 1 + 3 + rooms.values.reduce(0, +))
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
        let unpinned = try ModelBundle.open(URL(fileURLWithPath: "\(Vectors.folder)/bundles/arrays"))
        expectError(.signature) { _ = try openSession(unpinned, engines: [OnnxRuntimeEngine()]) }
        _ = try openSession(unpinned, engines: [OnnxRuntimeEngine()], trusted: true)
        expectError(.engineUnavailable) { _ = try openSession(unpinned, engines: [], trusted: true) }
    }

    @Test("the newest examples tell what personalization brought")
    func evaluated() throws {
        let vectors = try Vectors.read("runs.json")
        let evaluator = try Evaluator(bundle, try session())
        #expect(evaluator.golden.ok)
        let all = Examples.arrays(joinRows(try vectors["train"].tensors, try vectors["holdout"].tensors))
        let result = try evaluator.personalize(all)
        #expect(result.train + result.holdout + result.test == all.size)
        #expect(result.older == 0)
        let tested = try parts(all).test
        #expect(try evaluator.measure(tested) == result.before)
        #expect(result.report.status == .adopted)
        #expect(try evaluator.measure(tested, state: result.report.state) == result.after)
        #expect(result.before != result.after)
    }

    @Test("a real bundle ends where Python ends, and its state is kept", arguments: ["runs.json", "block_runs.json"])
    func wholeRun(_ file: String) throws {
        let vectors = try Vectors.read(file)
        let bundle = try openVector(try vectors["bundle"].text)
        let close = 1e-4  // two builds of one engine, up to 80 steps of AdamW in float32
        let temporary = try TemporaryFolder()
        let folder = temporary.url("state")
        let session = try openSession(bundle, engines: [OnnxRuntimeEngine()])
        let store = try PersonalStateStore(folder, model: ModelId(bundle.manifest))
        let trainer = try LocalTrainer(
            session, plan: Plan(json: bundle.planJSON()), tensors: bundle.manifest.tensors, initial: bundle.values())
        let report = try trainer.personalize(
            .arrays(try vectors["train"].tensors), holdout: .arrays(try vectors["holdout"].tensors), store: store)
        #expect(try report.status.rawValue == vectors["status"].text)
        #expect(try report.steps == vectors["steps"].int)
        for (want, found) in zip(try vectors["losses"].items, report.losses) {
            #expect(abs(try want.bits - found) < close)
        }
        let state = try #require(report.state)
        for (name, want) in try vectors["tensors"].tensors {
            let found = try #require(state.tensors[name]).doubles
            #expect(zip(want.doubles, found).allSatisfy { abs($0 - $1) < close }, "\(name)")
        }
        for (name, want) in try vectors["after"].fields {
            #expect(abs(try want.bits - (report.after[name] ?? .nan)) < close, "\(name)")
        }
        let kept = try PersonalStateStore(folder, model: ModelId(bundle.manifest)).load()
        #expect(kept.version == report.version)
        for (name, value) in state.tensors { #expect(kept.state?.tensors[name]?.sameBits(value) == true, "\(name)") }
    }
}

/// A bundle whose blocks repeat, and so are in it once.
@Suite struct ScheduledBundleTests {
    let bundle: ModelBundle

    init() throws { bundle = try openVector("bundles/blocks") }

    private func session(_ engine: any Engine = OnnxRuntimeEngine()) throws -> any EngineSession {
        try openSession(bundle, engines: [engine])
    }

    @Test("blocks that repeat are one part, and the golden calls give what PyTorch gave")
    func golden() throws {
        let path = try #require(try bundle.engineFiles("onnxruntime")[PartSchedule.purpose])
        let schedule = try PartSchedule.parse(try readBytes(path), bundle.manifest.programs)
        let calls = try #require(schedule.programs["gradients"]).calls
        #expect(Set(calls.map(\.part.name)).count < calls.count)
        let report = try goldenCheck(bundle, try session())
        try report.require()
        #expect(report.worstRelErr < 1e-5, "\(report)")
    }

    @Test("no call leaves more behind than the one before, and all is given back")
    func givenBack() throws {
        let inputs = try #require(try bundle.golden()["gradients"]).inputs
        let open = OpenObjects()
        try OpenObjects.$ofTask.withValue(open) {
            let session = try session()
            let first = try session.run("gradients", inputs)
            let held = open.count
            for _ in 0..<3 {
                for (name, value) in try session.run("gradients", inputs) {
                    #expect(first[name]?.sameBits(value) == true, "\(name)")
                }
            }
            #expect(open.count == held)
        }
        #expect(open.count == 0)
    }

    @Test("the arena goes with the last session that takes from it, and comes again")
    func arena() throws {
        let inputs = try #require(try bundle.golden()["gradients"]).inputs
        var sessions = [try session(), try session()]
        let first = try sessions[0].run("gradients", inputs)
        for _ in 0..<3 {
            while let last = sessions.popLast() {
                for (name, value) in try last.run("gradients", inputs) {
                    #expect(first[name]?.sameBits(value) == true, "\(name)")
                }
            }
            sessions = [try session()]
        }
    }

    @Test("any other engine runs schedules too")
    func otherEngine() throws {
        /// It is not known by this package.
        struct Other: Engine {
            let name = "onnxruntime"

            func open(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any EngineSession {
                try OnnxRuntimeEngine().open(files: files, programs: programs, threads: threads)
            }
        }
        let inputs = try #require(try bundle.golden()["gradients"]).inputs
        let ours = try session().run("gradients", inputs)
        let theirs = try session(Other()).run("gradients", inputs)
        for (name, value) in ours { #expect(theirs[name]?.sameBits(value) == true, "\(name)") }
    }

    @Test("a part that cannot be loaded is named with its call and program")
    func damagedPart() async throws {
        let folder = try TemporaryFolder()
        var files = try bundle.engineFiles("onnxruntime")
        let damaged = folder.url("damaged.onnx")
        try Data(count: 9).write(to: damaged)
        let schedule = try PartSchedule.parse(
            try readBytes(try engineFile(files, PartSchedule.purpose)), bundle.manifest.programs)
        let part = try #require(schedule.programs["gradients"]).calls[1].part.name
        files[part] = damaged.path
        let session = try openScheduled(OnnxRuntimeEngine(), files, bundle.manifest.programs, 1)
        let inputs = try #require(try bundle.golden()["gradients"]).inputs
        await expectRefused(.engine, "call 1 of program 'gradients', part '\(part)'") {
            _ = try session.run("gradients", inputs)
        }
    }
}
