import ExecuTorch
import Foundation
import Testing

@testable import PFLExecuTorch
@testable import PFLMobile

/// Our side of ExecuTorch, against a stand-in of its Swift package; what ExecuTorch itself computes is not looked at here.
@Suite(.serialized) final class ExecuTorchEngineTests {
    private let file = FileManager.default.temporaryDirectory.appendingPathComponent("pfl-\(UUID().uuidString).pte")
    private let spec = ProgramSpec(
        name: "predict",
        inputs: [
            TensorSpec(name: "tokens", shape: [2], dtype: .int64),
            TensorSpec(name: "scale", shape: [1], dtype: .float32),
        ],
        outputs: [
            TensorSpec(name: "ids", shape: [2], dtype: .int64), TensorSpec(name: "scores", shape: [1], dtype: .float32),
        ])
    private let inputs: TensorSet = [
        "tokens": .long(LongTensor([3, 1 << 40], [2])), "scale": .float(FloatTensor([0.5], [1])),
    ]

    init() throws { try Data().write(to: file) }

    deinit { try? FileManager.default.removeItem(at: file) }

    private func session(_ programs: [ProgramSpec]? = nil) throws -> any EngineSession {
        try ExecuTorchEngine().open(files: ["model": file.path], programs: programs ?? [spec], threads: 1)
    }

    private func refusal(_ body: () throws -> Void) -> PFLError? {
        do {
            try body()
            return nil
        } catch {
            return error as? PFLError
        }
    }

    @Test("inputs and outputs go in their order, and the same room serves each call")
    func calls() throws {
        nonisolated(unsafe) var seen: [ObjectIdentifier] = []
        StubExecuTorch.shared.has([
            "predict": { given in
                seen += given.map { ObjectIdentifier($0) }
                return given.map { Value($0) }
            }
        ])
        let session = try session()
        let first = try session.run("predict", inputs)
        var others = inputs
        others["tokens"] = .long(LongTensor([7, 8], [2]))
        #expect(try session.run("predict", others)["ids"]?.long?.values == [7, 8])
        #expect(first["ids"]?.long?.values == [3, 1 << 40])
        #expect(first["scores"]?.float?.values == [0.5])
        #expect(seen.count == 4 && seen[0] == seen[2] && seen[1] == seen[3])
    }

    @Test("a schedule's constants are read where they are, and values go from call to call")
    func scheduled() throws {
        nonisolated(unsafe) var seen: [[Float]] = []
        StubExecuTorch.shared.has([
            "add": { given in
                let numbers = given.map { tensor in
                    var found: [Float] = []
                    tensor.bytes { start, count, _ in
                        found = Array(UnsafeRawBufferPointer(start: start, count: 4 * count).bindMemory(to: Float.self))
                    }
                    return found[0]
                }
                seen.append(numbers)
                let room = UnsafeMutableRawPointer.allocate(byteCount: 4, alignment: 64)
                room.storeBytes(of: numbers.reduce(0, +), as: Float.self)
                return [Value(AnyTensor(bytesNoCopy: room, shape: [1], dataType: .float))]
            }
        ])
        func one(_ name: String) -> TensorSpec { TensorSpec(name: name, shape: [1], dtype: .float32) }
        let spec = #"{"name":"a","shape":[1],"dtype":"float32"}"#
        let schedule = """
            {"schema_version":1,"kind":"pfl-schedule",
            "parts":[{"name":"add","inputs":[\(spec),\(spec.replacingOccurrences(of: "\"a\"", with: "\"b\""))],"outputs":[\(spec)]}],
            "constants":{"c":{"shape":[1],"dtype":"float32","offset":0}},
            "programs":{"predict":{"calls":[{"part":"add","inputs":["input:x","constant:c"],"outputs":[0]},
            {"part":"add","inputs":["value:0","value:0"],"outputs":[1]}],"outputs":["value:1"]}}}
            """
        let place = file.appendingPathExtension("json")
        let constants = file.appendingPathExtension("bin")
        defer { for made in [place, constants] { try? FileManager.default.removeItem(at: made) } }
        try Data(schedule.utf8).write(to: place)
        try withUnsafeBytes(of: Float(10)) { Data($0) }.write(to: constants)
        let files = ["model": file.path, "schedule": place.path, "constants": constants.path]
        let program = ProgramSpec(name: "predict", inputs: [one("x")], outputs: [one("y")])
        let session = try openScheduled(ExecuTorchEngine(), files, [program], 1)
        for _ in 0..<2 {
            #expect(try session.run("predict", ["x": .float(FloatTensor([1], [1]))])["y"]?.float?.values == [22])
        }
        #expect(seen == [[1, 10], [11, 11], [1, 10], [11, 11]])
    }

    @Test("what does not fit is an error that names it")
    func refusals() throws {
        StubExecuTorch.shared.has(["evaluate": { _ in [] }])
        #expect(refusal { _ = try self.session() }?.message.contains("no method 'predict'") == true)
        StubExecuTorch.shared.has(["predict": { _ in throw StubError("out of memory") }])
        #expect(
            refusal { _ = try self.session().run("predict", self.inputs) }?.message.contains("out of memory") == true)
        StubExecuTorch.shared.has(["predict": { _ in [Value(), Value()] }])
        #expect(refusal { _ = try self.session().run("predict", self.inputs) }?.code == .tensorMismatch)
        StubExecuTorch.shared.has(["predict": { given in [Value(given[1]), Value(given[0])] }])
        #expect(refusal { _ = try self.session().run("predict", self.inputs) }?.message.contains("'ids'") == true)
        let gone = refusal {
            _ = try ExecuTorchEngine().open(files: ["model": "/nowhere/x.pte"], programs: [self.spec], threads: 1)
        }
        #expect(gone?.code == .engine)
    }
}
