import COnnxRuntime
import Foundation
import PFLMobile

/// ONNX Runtime: one `.onnx` per program beside a shared weight file, run by the stock inference runtime through its C API.
public struct OnnxRuntimeEngine: RuntimeEngine {
    /// The engine.
    public init() {}

    /// As bundles write it.
    public let name = "onnxruntime"

    /// Version of the runtime.
    public var version: String? { String(cString: pfl_ort_version()) }

    /// Loads programs when they are first run.
    public func open(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any EngineSession {
        try session(files: files, programs: programs, threads: threads)
    }

    package func runtime(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any ProgramRuntime {
        if !pfl_ort_available() {
            throw PFLError(
                .engineUnavailable, "ONNX Runtime \(version ?? "") is older than the headers it was built with",
                mend: "put the library of the same version into the app")
        }
        return try OnnxRuntimePrograms(files, threads)
    }
}

/// An error of the runtime, in its words.
struct OnnxRuntimeError: Error, CustomStringConvertible {
    let description: String
}

/// Throws what the runtime says, if it says anything.
private func check(_ status: OpaquePointer?) throws {
    guard let status else { return }
    defer { pfl_ort_release_status(status) }
    throw OnnxRuntimeError(description: String(cString: pfl_ort_message(status)))
}

/// Something of the runtime that is released when nobody holds it. What a task opens is counted where it wants that, so that
/// tests see that all of it is given back.
private final class Owned {
    let pointer: OpaquePointer
    private let release: (OpaquePointer) -> Void
    private let counted = OpenObjects.ofTask

    init(_ what: String, _ release: @escaping (OpaquePointer) -> Void, _ make: (inout OpaquePointer?) throws -> Void)
        throws
    {
        var made: OpaquePointer?
        try make(&made)
        guard let made else { throw OnnxRuntimeError(description: "it gives no \(what)") }
        pointer = made
        self.release = release
        counted?.add(1)
    }

    deinit {
        release(pointer)
        counted?.add(-1)
    }
}

/// How many objects of the runtime are not released.
final class OpenObjects: @unchecked Sendable {
    /// Where the objects that a task makes are counted; nil counts none. Other tests of the process make some too.
    @TaskLocal static var ofTask: OpenObjects?
    private let lock = NSLock()
    private var number = 0

    func add(_ change: Int) {
        lock.withLock { number += change }
    }

    var count: Int { lock.withLock { number } }
}

/// The runtime's environment: one for the process, made when first needed and never given back.
private final class Environment: @unchecked Sendable {
    static let shared = Result { try Environment() }
    let pointer: OpaquePointer

    private init() throws {
        var made: OpaquePointer?
        try check(pfl_ort_create_env(&made))
        guard let made else { throw OnnxRuntimeError(description: "it gives no environment") }
        pointer = made
    }
}

/// The arena that parts of schedules take their memory from in turns. What was touched of it stays, so it goes with the last
/// who needs it. The numbers are Python's, so that a step takes what the manifest's plan says.
private final class SharedArena: Sendable {
    private static let lock = NSLock()
    nonisolated(unsafe) private static var users = 0
    private let counted = OpenObjects.ofTask

    init() throws {
        let environment = try Environment.shared.get().pointer
        try Self.lock.withLock {
            if Self.users == 0 { try check(pfl_ort_share_arena(environment, 64 << 20, 1 << 18)) }
            Self.users += 1
        }
        counted?.add(1)
    }

    deinit {
        counted?.add(-1)
        Self.lock.withLock {
            Self.users -= 1
            guard Self.users == 0 else { return }
            // Sessions keep it alive until they are released.
            do {
                try check(pfl_ort_unshare_arena(try Environment.shared.get().pointer))
            } catch {
                preconditionFailure("the arena that was registered is unknown: \(error)")
            }
        }
    }
}

/// Programs are loaded when first used.
private final class OnnxRuntimePrograms: ProgramRuntime {
    let name = "onnxruntime"
    private let files: [String: String]
    private let options: Owned
    private let arena: SharedArena?
    private var loaded: [String: Loaded] = [:]
    private let rooms = Rooms(Room.init)

    init(_ files: [String: String], _ threads: Int) throws {
        self.files = files
        // Blocks are run one after another to take little. Each would keep the most that it ever took, so all take from one
        // arena.
        let frugal: Int32 = files[scheduleFilePurpose] == nil ? 0 : 1
        do {
            arena = frugal == 0 ? nil : try SharedArena()
            options = try Owned("options", pfl_ort_release_options) {
                try check(pfl_ort_create_options(Int32(clamping: threads), frugal, &$0))
            }
        } catch let error as OnnxRuntimeError {
            throw PFLError(.engine, "ONNX Runtime cannot start: \(error)", mend: "report it", cause: error)
        }
    }

    /// A tensor of the runtime, and the room that its elements are in, if that is used again.
    struct Value {
        let tensor: Owned
        var room: TakenRoom<Room>?
    }

    func mapped(_ spec: TensorSpec, _ bytes: UnsafeRawBufferPointer) throws -> Value {
        // It reads its inputs only.
        Value(tensor: try tensor(spec, UnsafeMutableRawBufferPointer(mutating: bytes)))
    }

    func given(_ spec: TensorSpec, _ tensor: Tensor) throws -> Value {
        let taken = try rooms.take(spec)
        taken.room.fill(tensor)
        return Value(tensor: taken.room.value, room: taken)
    }

    func run(_ program: ProgramSpec, _ inputs: [Value]) throws -> [Value] {
        try load(program).run(inputs.map(\.tensor)).map { Value(tensor: $0) }
    }

    func signature(_ value: Value) throws -> String {
        let (dtype, shape) = try described(value.tensor.pointer)
        return "\(dtype.rawValue)\(shape)"
    }

    func taken(_ value: Value) throws -> Tensor { try copied(value.tensor.pointer) }

    private func load(_ spec: ProgramSpec) throws -> Loaded {
        if let found = loaded[spec.name] { return found }
        let path = try engineFile(files, spec.name)
        do {
            let session = try Owned("session", pfl_ort_release_session) {
                try check(pfl_ort_create_session(try Environment.shared.get().pointer, path, options.pointer, &$0))
            }
            let made = Loaded(session, spec)
            loaded[spec.name] = made
            return made
        } catch let error as OnnxRuntimeError {
            throw PFLError(
                .engine, "ONNX Runtime cannot load \(URL(fileURLWithPath: path).lastPathComponent): \(error)",
                mend: "export the bundle again", cause: error)
        }
    }
}

/// A program and the names of what it takes and gives.
private final class Loaded {
    private let session: Owned
    private let inputNames: Names
    private let outputNames: Names

    init(_ session: Owned, _ spec: ProgramSpec) {
        self.session = session
        inputNames = Names(spec.inputs.map(\.name))
        outputNames = Names(spec.outputs.map(\.name))
    }

    func run(_ inputs: [Owned]) throws -> [Owned] {
        let given: [OpaquePointer?] = inputs.map(\.pointer)
        var outputs = [OpaquePointer?](repeating: nil, count: outputNames.pointers.count)
        // Those that nobody has taken over when something fails.
        defer { for output in outputs.compactMap({ $0 }) { pfl_ort_release_value(output) } }
        try check(
            pfl_ort_run(
                session.pointer, inputNames.pointers, given, given.count, outputNames.pointers, outputs.count, &outputs)
        )
        return try outputs.indices.map { at in
            try Owned("output", pfl_ort_release_value) { made in swap(&made, &outputs[at]) }
        }
    }
}

/// Names as C strings, for as long as it lives.
private final class Names {
    let pointers: [UnsafePointer<CChar>?]

    init(_ names: [String]) {
        pointers = names.map { UnsafePointer(strdup($0)) }
    }

    deinit {
        for pointer in pointers { free(UnsafeMutableRawPointer(mutating: pointer)) }
    }
}

/// Room for an input, which the runtime reads where it lies.
private final class Room {
    private let bytes: UnsafeMutableRawBufferPointer
    let value: Owned

    init(_ spec: TensorSpec) throws {
        let count = spec.shape.reduce(spec.dtype.bytes, *)
        // A tensor without elements has a place too.
        let start = UnsafeMutableRawPointer.allocate(byteCount: max(count, 1), alignment: 64)
        bytes = UnsafeMutableRawBufferPointer(start: start, count: count)
        do {
            value = try tensor(spec, bytes)
        } catch {
            start.deallocate()
            throw error
        }
    }

    deinit {
        // The tensor, which has no bytes of its own, is released after this; it does not look at them.
        bytes.baseAddress?.deallocate()
    }

    func fill(_ tensor: Tensor) {
        tensor.withBytes { bytes.copyMemory(from: $0) }
    }
}

/// A tensor over bytes that outlive it.
private func tensor(_ spec: TensorSpec, _ bytes: UnsafeMutableRawBufferPointer) throws -> Owned {
    try Owned("tensor", pfl_ort_release_value) { made in
        let shape = spec.shape.map { Int64($0) }
        let type = elementTypes[spec.dtype] ?? 0
        try check(pfl_ort_create_tensor(bytes.baseAddress, bytes.count, shape, shape.count, type, &made))
    }
}

/// `ONNXTensorElementDataType`.
private let elementTypes: [DType: Int32] = [
    .float32: 1, .uint8: 2, .int8: 3, .int16: 5, .int32: 6, .int64: 7, .bool: 9, .float16: 10, .float64: 11,
]

private func described(_ value: OpaquePointer) throws -> (DType, [Int]) {
    var type: Int32 = 0
    var dimensions = 0
    var shape = [Int64](repeating: 0, count: 32)
    try check(pfl_ort_describe(value, &type, &dimensions, &shape, shape.count))
    guard dimensions <= shape.count, let dtype = elementTypes.first(where: { $0.value == type })?.key else {
        throw OnnxRuntimeError(description: "an output has \(dimensions) dimensions of the type \(type)")
    }
    return (dtype, shape.prefix(dimensions).map { Int($0) })
}

private func copied(_ value: OpaquePointer) throws -> Tensor {
    let (dtype, shape) = try described(value)
    var data: UnsafeMutableRawPointer?
    try check(pfl_ort_data(value, &data))
    let bytes = shape.reduce(dtype.bytes, *)
    return Tensor(dtype, shape, copying: UnsafeRawBufferPointer(start: data, count: bytes))
}
