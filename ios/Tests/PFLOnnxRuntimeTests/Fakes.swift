import Foundation

@testable import PFLMobile
@testable import PFLOnnxRuntime

/// ONNX Runtime, whose openings and calls are counted.
final class CountingEngine: Engine {
    let name = "onnxruntime"
    let openings = Locked(0)
    let open = Locked(0)
    let runs = Locked<[String]>([])
    private let before: @Sendable (String) -> Void

    /// - Parameter before: told each program before it is run
    init(before: @escaping @Sendable (String) -> Void = { _ in }) {
        self.before = before
    }

    func open(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any EngineSession {
        openings { $0 += 1 }
        open { $0 += 1 }
        return Session(try OnnxRuntimeEngine().open(files: files, programs: programs, threads: threads), self)
    }

    private final class Session: EngineSession {
        let session: any EngineSession
        let engine: CountingEngine

        init(_ session: any EngineSession, _ engine: CountingEngine) {
            self.session = session
            self.engine = engine
        }

        deinit { engine.open { $0 -= 1 } }

        var name: String { session.name }
        var programs: [String: ProgramSpec] { session.programs }

        func run(_ program: String, _ inputs: TensorSet) throws -> TensorSet {
            engine.runs { $0.append(program) }
            engine.before(program)
            return try session.run(program, inputs)
        }
    }
}

/// Examples in memory that can fail.
final class TestExamples: ExampleStore {
    let inner = InMemoryExampleStore()
    let closings = Locked(0)
    let fault = Locked<PFLError?>(nil)

    private func check() throws { if let fault = fault.now { throw fault } }

    func add(_ payload: Payload) throws -> Int? {
        try check()
        return try inner.add(payload)
    }

    func examples(newest: Int?) throws -> [Example] { try inner.examples(newest: newest) }

    func count() throws -> Int { try inner.count() }

    func erase(_ ids: some Collection<Int>) throws -> Int {
        try check()
        return try inner.erase(ids)
    }

    func eraseAll() throws -> Int {
        try check()
        return try inner.eraseAll()
    }

    func close() { closings { $0 += 1 } }
}

/// A disk with room for so many bytes more.
final class FullDisk: Disk {
    private let real = RealDisk()
    private let left: Locked<Int>

    init(room: Int) { left = Locked(room) }

    func create(_ path: String) throws -> OpenFile { try real.create(path) }

    func write(_ file: OpenFile, _ data: [UInt8]) throws {
        let fits = left { left in
            if left < data.count { return false }
            left -= data.count
            return true
        }
        if !fits { throw SystemError(number: ENOSPC, what: "a test") }
        try real.write(file, data)
    }

    func sync(_ file: OpenFile) throws { try real.sync(file) }
    func rename(_ from: String, _ to: String) throws { try real.rename(from, to) }
    func syncFolder(_ folder: String) throws { try real.syncFolder(folder) }
    func delete(_ path: String) throws { try real.delete(path) }
}
