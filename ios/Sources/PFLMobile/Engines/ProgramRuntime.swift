import Foundation

/// Loaded programs whose inputs and outputs stay the runtime's own until they are asked for, so that what one program gives
/// another can take. Not for several threads at once.
package protocol ProgramRuntime: AnyObject {
    /// A tensor of the runtime, which is given back when nobody holds it.
    associatedtype Value

    /// The engine's name.
    var name: String { get }

    /// What to do about a program that fails.
    var mend: String { get }

    /// A value over memory that nobody changes and that outlives it, which is read where it lies.
    func mapped(_ spec: TensorSpec, _ bytes: UnsafeRawBufferPointer) throws -> Value

    /// A value with a copy of a tensor.
    func given(_ spec: TensorSpec, _ tensor: Tensor) throws -> Value

    /// Runs a program on values in the order of its inputs.
    ///
    /// - Returns: its outputs in their order
    /// - Throws: the runtime's own errors, and `PFLError`
    func run(_ program: ProgramSpec, _ inputs: [Value]) throws -> [Value]

    /// `float32[2, 3]`
    func signature(_ value: Value) throws -> String

    /// The tensor of an output of a program.
    func taken(_ value: Value) throws -> Tensor
}

extension ProgramRuntime {
    package var mend: String { "run `pfl verify` on the bundle; if it fails too, export it again" }
}

/// An engine whose programs can be run on the runtime's own tensors.
package protocol RuntimeEngine: Engine {
    /// Loads programs, as `open` does.
    func runtime(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any ProgramRuntime
}

extension RuntimeEngine {
    /// A session of the programs as they are.
    package func session(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any EngineSession {
        func session<Runtime: ProgramRuntime>(_ runtime: Runtime) -> any EngineSession {
            ProgramSession(runtime, programs)
        }
        return session(try runtime(files: files, programs: programs, threads: threads))
    }
}

/// The programs of a runtime as they are. A lock keeps calls apart, so it may be shared.
private final class ProgramSession<Runtime: ProgramRuntime>: EngineSession, @unchecked Sendable {
    let name: String
    let programs: [String: ProgramSpec]
    private let runtime: Runtime
    private let lock = NSLock()

    init(_ runtime: Runtime, _ programs: [ProgramSpec]) {
        name = runtime.name
        self.programs = Dictionary(programs.map { ($0.name, $0) }) { first, _ in first }
        self.runtime = runtime
    }

    func run(_ program: String, _ inputs: TensorSet) throws -> TensorSet {
        try lock.withLock {
            try runChecked(programs, program, inputs) { spec, values in
                try runtime.named("program '\(program)'") {
                    let given = try zip(spec.inputs, values).map { try runtime.given($0, $1) }
                    return try runtime.run(spec, given).map(runtime.taken)
                }
            }
        }
    }
}

extension ProgramRuntime {
    /// Does something with the runtime, whose own errors are then ours.
    func named<Result>(_ place: String, _ body: () throws -> Result) throws -> Result {
        do {
            return try body()
        } catch let error as PFLError {
            throw error
        } catch {
            throw PFLError(.engine, "engine '\(name)' failed in \(place): \(error)", mend: mend, cause: error)
        }
    }
}

/// Rooms for tensors, used again: what a call takes has the forms of the call before.
package final class Rooms<Room> {
    private var spare: [String: [Room]] = [:]
    private let make: (TensorSpec) throws -> Room

    /// Rooms that are made so.
    package init(_ make: @escaping (TensorSpec) throws -> Room) {
        self.make = make
    }

    /// A room of the form.
    package func take(_ spec: TensorSpec) throws -> TakenRoom<Room> {
        let signature = spec.signature
        return TakenRoom(try spare[signature]?.popLast() ?? make(spec), self, signature)
    }

    fileprivate func put(_ room: Room, _ signature: String) {
        spare[signature, default: []].append(room)
    }
}

/// A room that goes back when nobody holds it.
package final class TakenRoom<Room> {
    /// The room.
    package let room: Room
    private let rooms: Rooms<Room>
    private let signature: String

    fileprivate init(_ room: Room, _ rooms: Rooms<Room>, _ signature: String) {
        self.room = room
        self.rooms = rooms
        self.signature = signature
    }

    deinit { rooms.put(room, signature) }
}
