import Foundation
import Testing

@testable import PFLMobile

/// `schedules.json`: what is read, what is refused, and when values are dropped.
@Suite struct PartScheduleTests {
    private static func programs(_ json: JSON) throws -> [ProgramSpec] {
        func specs(_ json: JSON) throws -> [TensorSpec] {
            try json.items.map { spec in
                TensorSpec(
                    name: try spec["name"].text, shape: try spec["shape"].items.map { try $0.int },
                    dtype: try #require(DType(rawValue: try spec["dtype"].text)))
            }
        }
        return try json.items.map {
            ProgramSpec(name: try $0["name"].text, inputs: try specs($0["inputs"]), outputs: try specs($0["outputs"]))
        }
    }

    @Test("schedules are read or refused as they are in Python")
    func vectors() throws {
        let vectors = try Vectors.read("schedules.json")
        let programs = try PartScheduleTests.programs(vectors["programs"])
        for vector in try vectors["cases"].items {
            let (name, data) = (try vector["name"].text, Array(try vector["text"].text.utf8))
            if let error = vector.maybe("error") {
                expectError(PFLError.Code(rawValue: try error.text), "\(name)") {
                    _ = try PartSchedule.parse(data, programs)
                }
                continue
            }
            let found = try PartSchedule.parse(data, programs).programs.mapValues { course in
                course.drops.map { $0.map(\.description).sorted() }
            }
            var want: [String: [[String]]] = [:]
            for (program, ends) in try vector["drops"].fields { want[program] = try ends.items.map { try $0.texts } }
            #expect(found == want, "\(name)")
        }
    }

    private static func two(_ name: String) -> TensorSpec { TensorSpec(name: name, shape: [2], dtype: .float32) }

    private let bundle = ProgramSpec(
        name: "all", inputs: [two("x")], outputs: ["last", "again", "back", "constant"].map(two))

    private func chain(_ length: Int, _ part: String = "add") throws -> PartSchedule {
        func spec(_ name: String) -> String { #"{"name":"\#(name)","shape":[2],"dtype":"float32"}"# }
        let calls = (0..<length).map { at in
            let from = at == 0 ? "input:x" : "value:\(2 * at - 2)"
            return #"{"part":"\#(part)","inputs":["\#(from)","constant:c"],"outputs":[\#(2 * at),\#(2 * at + 1)]}"#
        }
        let last = "value:\(2 * length - 2)"
        let text = """
            {"schema_version":1,"kind":"pfl-schedule",
            "parts":[{"name":"\(part)","inputs":[\(spec("a")),\(spec("b"))],"outputs":[\(spec("y")),\(spec("z"))]}],
            "constants":{"c":{"shape":[2],"dtype":"float32","offset":64}},
            "programs":{"all":{"calls":[\(calls.joined(separator: ","))],
            "outputs":["\(last)","\(last)","input:x","constant:c"]}}}
            """
        return try PartSchedule.parse(Array(text.utf8), [bundle])
    }

    private func constants(_ folder: TemporaryFolder, count: Int = 72) throws -> MappedFile {
        var bytes = [UInt8](repeating: 0, count: 64)
        for value: Float in [1, 10] { withUnsafeBytes(of: value) { bytes += $0 } }
        let path = folder.url("constants.bin").path
        try Data(bytes.prefix(count)).write(to: URL(fileURLWithPath: path))
        return try MappedFile(path)
    }

    private let x: TensorSet = ["x": .float(FloatTensor([1, 2], [2]))]

    @Test("a value is dropped after its last reader, and constants are read where they are")
    func drops() throws {
        let folder = try TemporaryFolder()
        let file = try constants(folder)
        let runtime = Adding()
        let session = try ScheduledSession(runtime, try chain(9), file, [bundle])
        let found = try session.run("all", x)
        #expect(
            found.mapValues { $0.float?.values } == [
                "last": [10, 92], "again": [10, 92], "back": [1, 2], "constant": [1, 10],
            ])
        // The constant, the input, which is an output too, what is read, and two results.
        #expect(Set(runtime.peaks.dropFirst()) == [5])
        #expect(runtime.alive.count == 1)
        #expect(runtime.mapped == [file.bytes.baseAddress.map { $0 + 64 }])
    }

    @Test("a part that fails is named with its call and program")
    func failures() async throws {
        let folder = try TemporaryFolder()
        let file = try constants(folder)
        for (fails, part) in [("add", "add"), (nil, "wide")] {
            let session = try ScheduledSession(Adding(fails), try chain(3, part), file, [bundle])
            let error = await expectRefused(.engine, "call 0 of program 'all', part '\(part)'") {
                _ = try session.run("all", self.x)
            }
            #expect(error?.code == (fails == nil ? .tensorMismatch : .engine))
        }
    }

    @Test("a file of constants that is too short, or gone, is named")
    func damaged() async throws {
        let folder = try TemporaryFolder()
        for count in [0, 64, 71] {
            let file = try constants(folder, count: count)
            await expectRefused(.engine, "has \(count) bytes, and 'c' ends at 72") {
                _ = try ScheduledSession(Adding(), try self.chain(1), file, [self.bundle])
            }
        }
        let gone = [PartSchedule.purpose: folder.url("gone").path]
        await expectRefused(.engine, "cannot read the schedule") {
            _ = try openScheduled(NoEngine(), gone, [self.bundle], 1)
        }
    }
}

private struct NoEngine: Engine {
    let name = "none"

    func open(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any EngineSession {
        throw PFLError(.engineUnavailable, "there is none", mend: "take another")
    }
}

/// Adds, and counts what is held when a call is done.
private final class Adding: ProgramRuntime {
    final class Value {
        let numbers: [Float]
        private let of: Adding

        init(_ numbers: [Float], _ of: Adding) {
            self.numbers = numbers
            self.of = of
            of.alive.insert(ObjectIdentifier(self))
        }

        deinit { of.alive.remove(ObjectIdentifier(self)) }
    }

    let name = "adding"
    var alive: Set<ObjectIdentifier> = []
    var peaks: [Int] = []
    var mapped: [UnsafeRawPointer?] = []
    private let fails: String?

    init(_ fails: String? = nil) {
        self.fails = fails
    }

    func mapped(_ spec: TensorSpec, _ bytes: UnsafeRawBufferPointer) -> Value {
        mapped.append(bytes.baseAddress)
        return Value(Array(bytes.bindMemory(to: Float.self)), self)
    }

    func given(_ spec: TensorSpec, _ tensor: Tensor) throws -> Value { Value(try #require(tensor.float).values, self) }

    func run(_ program: ProgramSpec, _ inputs: [Value]) throws -> [Value] {
        if program.name == fails { throw Malformed("boom") }
        let sum = (0..<2).map { at in inputs.reduce(0) { $0 + $1.numbers[at] } }
        let made = program.outputs.map { _ in Value(program.name == "wide" ? [0, 0, 0] : sum, self) }
        peaks.append(alive.count)
        return made
    }

    func signature(_ value: Value) -> String { "float32\([value.numbers.count])" }

    func taken(_ value: Value) -> Tensor { .float(FloatTensor(value.numbers, [value.numbers.count])) }
}
