import Foundation

/// A session of an engine's files, through their schedule where they have one.
///
/// - Throws: `.schemaVersion`: the schedule is of a newer schema; `.invalidManifest`: it is damaged, or not of these programs;
///   `.engine`: the engine refuses the files, or they cannot be read
func openScheduled(
    _ engine: any Engine, _ files: [String: String], _ programs: [ProgramSpec], _ threads: Int
) throws -> any EngineSession {
    guard let path = files[PartSchedule.purpose] else {
        return try engine.open(files: files, programs: programs, threads: threads)
    }
    let schedule = try PartSchedule.parse(try readOrRefuse("the schedule") { try readBytes(path) }, programs)
    var constants: MappedFile?
    if !schedule.constants.isEmpty {
        let file = try engineFile(files, PartSchedule.constantsPurpose)
        constants = try readOrRefuse("the file of constants") { try MappedFile(file) }
    }
    func session<Runtime: ProgramRuntime>(_ runtime: Runtime) throws -> any EngineSession {
        try ScheduledSession(runtime, schedule, constants, programs)
    }
    if let engine = engine as? any RuntimeEngine {
        return try session(try engine.runtime(files: files, programs: schedule.parts, threads: threads))
    }
    let own = files.filter { $0.key != PartSchedule.purpose && $0.key != PartSchedule.constantsPurpose }
    return try session(
        SessionRuntime(try engine.open(files: own, programs: schedule.parts, threads: threads)))
}

private func readOrRefuse<Found>(_ what: String, _ read: () throws -> Found) throws -> Found {
    do {
        return try read()
    } catch let error as PFLError {
        throw error
    } catch {
        throw PFLError(.engine, "cannot read \(what): \(error)", mend: obtainAgain, cause: error)
    }
}

/// Programs that are calls of parts. An input is converted when a call first reads it, a value is dropped after its last reader,
/// and constants stay in the mapped file. A lock keeps calls apart, so it may be shared.
final class ScheduledSession<Runtime: ProgramRuntime>: EngineSession, @unchecked Sendable {
    let name: String
    let programs: [String: ProgramSpec]
    private let file: MappedFile?
    private let runtime: Runtime
    private let schedule: PartSchedule
    private var constants: [Reference: Runtime.Value] = [:]
    private let lock = NSLock()

    init(_ runtime: Runtime, _ schedule: PartSchedule, _ file: MappedFile?, _ programs: [ProgramSpec]) throws {
        name = runtime.name
        self.programs = Dictionary(programs.map { ($0.name, $0) }) { first, _ in first }
        self.file = file
        self.runtime = runtime
        self.schedule = schedule
        for (constant, entry) in schedule.constants {
            let bytes = try constantBytes(entry)
            constants[.constant(constant)] = try runtime.named("constant '\(constant)'") {
                try runtime.mapped(entry.spec, bytes)
            }
        }
    }

    private func constantBytes(_ entry: ConstantEntry) throws -> UnsafeRawBufferPointer {
        let bytes = file?.bytes ?? UnsafeRawBufferPointer(start: nil, count: 0)
        let end = entry.offset + entry.bytes
        if end > bytes.count {
            throw PFLError(
                .engine, "the file of constants has \(bytes.count) bytes, and '\(entry.spec.name)' ends at \(end)",
                mend: obtainAgain)
        }
        return UnsafeRawBufferPointer(rebasing: bytes[entry.offset..<end])
    }

    func run(_ program: String, _ inputs: TensorSet) throws -> TensorSet {
        try lock.withLock { try runChecked(programs, program, inputs, execute) }
    }

    private func execute(_ program: ProgramSpec, _ inputs: [Tensor]) throws -> [Tensor] {
        guard let course = schedule.programs[program.name] else {
            throw PFLError(.unknownName, "there is no program '\(program.name)'", mend: obtainAgain)
        }
        var given: [Reference: (TensorSpec, Tensor)] = [:]
        for (spec, tensor) in zip(program.inputs, inputs) { given[.input(Exact(spec.name))] = (spec, tensor) }
        var values: [Reference: Runtime.Value] = [:]
        for (number, call) in course.calls.enumerated() {
            let place = "call \(number) of program '\(program.name)', part '\(call.part.name)'"
            let read = try call.inputs.map { reference in
                if let value = constants[reference] ?? values[reference] { return value }
                guard let (spec, tensor) = given[reference] else { throw missing(reference, place) }
                let value = try runtime.named(place) { try runtime.given(spec, tensor) }
                values[reference] = value
                return value
            }
            for (reference, value) in zip(call.outputs, try made(place, call.part, read)) { values[reference] = value }
            for reference in course.drops[number] { values[reference] = nil }
        }
        return try course.outputs.map { reference in
            if let tensor = given[reference]?.1 { return tensor }
            if case .constant(let name) = reference, let entry = schedule.constants[name] {
                return Tensor(entry.spec.dtype, entry.spec.shape, copying: try constantBytes(entry))
            }
            guard let value = values[reference] else { throw missing(reference, "the outputs") }
            return try runtime.named("program '\(program.name)'") { try runtime.taken(value) }
        }
    }

    private func made(_ place: String, _ part: ProgramSpec, _ inputs: [Runtime.Value]) throws -> [Runtime.Value] {
        let (made, found): ([Runtime.Value], [String])
        do {
            (made, found) = try runtime.named(place) {
                let made = try runtime.run(part, inputs)
                return (made, try made.map(runtime.signature))
            }
        } catch let error as PFLError where !error.message.contains(place) {
            throw PFLError(error.code, "\(place): \(error.message)", mend: error.mend, cause: error)
        }
        let want = part.outputs.map(\.signature)
        if found != want {
            throw PFLError(
                .tensorMismatch, "\(place) gave \(found), the schedule says \(want)", mend: "export the bundle again")
        }
        return made
    }

    // Parsing has seen that everything is there.
    private func missing(_ reference: Reference, _ place: String) -> PFLError {
        PFLError(.engine, "\(place): \(reference) is not there", mend: obtainAgain)
    }
}

/// The programs of any other engine: values are tensors, and constants are copied for each call.
private final class SessionRuntime: ProgramRuntime {
    private let session: any EngineSession

    init(_ session: any EngineSession) {
        self.session = session
    }

    var name: String { session.name }

    func mapped(_ spec: TensorSpec, _ bytes: UnsafeRawBufferPointer) -> () -> Tensor {
        { Tensor(spec.dtype, spec.shape, copying: bytes) }
    }

    func given(_ spec: TensorSpec, _ tensor: Tensor) -> () -> Tensor { { tensor } }

    func run(_ program: ProgramSpec, _ inputs: [() -> Tensor]) throws -> [() -> Tensor] {
        var given: TensorSet = [:]
        for (spec, value) in zip(program.inputs, inputs) { given[spec.name] = value() }
        let found = try session.run(program.name, given)
        // What is missing is seen by the number of outputs.
        return program.outputs.compactMap { spec in found[spec.name].map { tensor in { tensor } } }
    }

    func signature(_ value: () -> Tensor) -> String { value().signature }

    func taken(_ value: () -> Tensor) -> Tensor { value() }
}
