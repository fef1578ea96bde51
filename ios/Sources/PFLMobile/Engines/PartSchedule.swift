/// What a call of a part reads, or a program gives.
enum Reference: Hashable, Sendable, CustomStringConvertible {
    /// An input of the program.
    case input(Exact)
    /// A tensor in the file of constants.
    case constant(String)
    /// What an earlier call gave.
    case value(Int)

    var description: String {
        switch self {
        case .input(let name): "input:\(name.text)"
        case .constant(let name): "constant:\(name)"
        case .value(let number): "value:\(number)"
        }
    }
}

/// One run of a part: what it reads, in the order of its inputs, and the values that its outputs become.
struct Call: Sendable {
    let part: ProgramSpec
    let inputs: [Reference]
    let outputs: [Reference]
}

/// The calls of one program, in order, and where its outputs are, in the order of the manifest.
struct Course: Sendable {
    let calls: [Call]
    let outputs: [Reference]
    /// For each call the inputs and values that nobody reads after it; what it makes for nobody is among them. Constants are in
    /// the mapped file, and never dropped.
    let drops: [Set<Reference>]

    init(calls: [Call], outputs: [Reference]) {
        self.calls = calls
        self.outputs = outputs
        var last: [Reference: Int] = [:]
        for (number, call) in calls.enumerated() {
            for reference in call.outputs + call.inputs {
                if case .constant = reference { continue }
                last[reference] = number
            }
        }
        for reference in outputs { last[reference] = nil }
        var ends = [Set<Reference>](repeating: [], count: calls.count)
        for (reference, number) in last { ends[number].insert(reference) }
        drops = ends
    }
}

/// Where a constant is in its file: row after row, little-endian, from `offset`.
struct ConstantEntry: Sendable {
    let spec: TensorSpec
    let offset: Int

    /// Its bytes.
    var bytes: Int { spec.shape.reduce(spec.dtype.bytes, *) }
}

/// The purpose of the file that says how programs are run as calls of parts, among an engine's files.
package let scheduleFilePurpose = "schedule"

/// Programs that are run as calls of parts, so that blocks which repeat are in a bundle once;
/// `pfl_mobile/engines/schedule.py` says more.
struct PartSchedule: Sendable {
    /// Purposes of an engine's files: the schedule, and the constants that it gives to parts.
    static let purpose = scheduleFilePurpose
    static let constantsPurpose = "constants"

    /// Signatures of the small programs in the engine's files.
    let parts: [ProgramSpec]
    /// What the file of constants holds, by name.
    let constants: [String: ConstantEntry]
    /// The calls of each program, by name.
    let programs: [String: Course]

    // One of sixty blocks has 20,000.
    private static let documents = Documents(
        what: "the schedule", kind: "pfl-schedule", newest: 1, values: 1_000_000)

    /// Parses and checks a schedule.
    ///
    /// - Parameter programs: of the bundle, which it has to be for
    /// - Throws: `.schemaVersion`: it is of a newer schema; `.invalidManifest`: it is not JSON, breaks the schema, or is not for
    ///   these programs
    static func parse(_ data: [UInt8], _ programs: [ProgramSpec]) throws -> PartSchedule {
        try documents.parse(data) { raw, _ in try ScheduleReader(programs, raw).schedule }
    }
}

/// Reads a schedule; every fault is `Malformed`.
private struct ScheduleReader {
    let schedule: PartSchedule

    init(_ programs: [ProgramSpec], _ json: JSON) throws {
        let bundle = Dictionary(programs.map { ($0.name, $0) }) { first, _ in first }
        var fields = try Fields(json)
        try ManifestReader.head(&fields)
        let parts = try ManifestReader.filled("parts", fields.required("parts", Fields.list(ManifestReader.program)))
        try Rules.unique("part", parts.map(\.name))
        for part in parts {
            for spec in part.inputs + part.outputs {
                try Rules.checkSize("part '\(part.name)'", spec.name, spec.shape, spec.dtype)
            }
        }
        var constants: [String: ConstantEntry] = [:]
        for entry in try fields.required("constants", Fields.named(ScheduleReader.part)) {
            try ScheduleReader.checkConstantName(entry.name, "constants")
            constants[entry.name] = try ScheduleReader.constant(entry.name, entry.value.json, entry.value.path)
        }
        let byName = Dictionary(parts.map { ($0.name, $0) }) { first, _ in first }
        var courses: [String: Course] = [:]
        for entry in try fields.required("programs", Fields.named(ScheduleReader.part)) {
            try ManifestReader.checkProgramName(entry.name, "programs")
            var reader = CourseReader(bundle[entry.name], byName, constants)
            courses[entry.name] = try reader.course(entry.value.json, entry.value.path)
        }
        try fields.done()
        if courses.isEmpty { throw Malformed("programs: it is empty") }
        for program in programs where courses[program.name] == nil {
            throw Malformed("programs: it has no program '\(program.name)'")
        }
        schedule = PartSchedule(parts: parts, constants: constants, programs: courses)
    }

    /// A value that is read when its name is known.
    private static func part(_ json: JSON, _ path: String) -> (json: JSON, path: String) { (json, path) }

    // Each constant is aligned when the file is mapped.
    private static let alignment = 64

    private static func constant(_ name: String, _ json: JSON, _ path: String) throws -> ConstantEntry {
        var fields = try Fields(json, path)
        let spec = TensorSpec(
            name: name, shape: try fields.required("shape", ManifestReader.shape),
            dtype: try fields.required("dtype", Fields.word(DType.self)))
        let offset = try fields.required("offset", ManifestReader.count)
        try fields.done()
        try Rules.checkSize("the schedule", spec.name, spec.shape, spec.dtype)
        if offset % alignment != 0 {
            throw Malformed("\(path): it begins at \(offset), which is no multiple of \(alignment)")
        }
        return ConstantEntry(spec: spec, offset: offset)
    }

    static func checkConstantName(_ name: String, _ path: String) throws {
        if !(1...64).contains(name.utf8.count) || !name.utf8.allSatisfy(ManifestReader.isWordOfName) {
            throw Malformed("\(path): '\(name)' is no name of a constant")
        }
    }
}

/// Reads the calls of one program.
private struct CourseReader {
    // Of a program that the bundle has not, which nobody will run, nothing is known.
    private let program: ProgramSpec?
    private let parts: [String: ProgramSpec]
    private var known: [Reference: TensorSpec] = [:]

    init(_ program: ProgramSpec?, _ parts: [String: ProgramSpec], _ constants: [String: ConstantEntry]) {
        self.program = program
        self.parts = parts
        for (name, entry) in constants { known[.constant(name)] = entry.spec }
        for input in program?.inputs ?? [] { known[.input(Exact(input.name))] = input }
    }

    mutating func course(_ json: JSON, _ path: String) throws -> Course {
        var fields = try Fields(json, path)
        let calls = try fields.required("calls") { json, path in
            guard let items = json.array, !items.isEmpty else { throw Malformed("\(path): calls are expected") }
            var calls: [Call] = []
            for (number, item) in items.enumerated() { calls.append(try call(item, "\(path)[\(number)]")) }
            return calls
        }
        let outputs = try ManifestReader.filled(
            "\(path).outputs", fields.required("outputs", Fields.list(CourseReader.reference)))
        try fields.done()
        let found = try outputs.map { try form($0, "\(path).outputs")?.signature }
        if let program, found != program.outputs.map(\.signature) {
            throw Malformed("\(path).outputs: they are \(found), and not \(program.outputs.map(\.signature))")
        }
        return Course(calls: calls, outputs: outputs)
    }

    private mutating func call(_ json: JSON, _ path: String) throws -> Call {
        var fields = try Fields(json, path)
        let name = try fields.required("part", ManifestReader.programName)
        let inputs = try fields.required("inputs", Fields.list(CourseReader.reference))
        let numbers = try fields.required("outputs", Fields.list(ManifestReader.count))
        try fields.done()
        guard let part = parts[name] else {
            throw Malformed("\(path): there is no part '\(name)'; \(near(name, parts.keys))")
        }
        if inputs.count != part.inputs.count || numbers.count != part.outputs.count {
            throw Malformed(
                "\(path): it gives '\(name)' \(inputs.count) inputs and takes \(numbers.count) outputs; it has "
                    + "\(part.inputs.count) and \(part.outputs.count)")
        }
        for (reference, want) in zip(inputs, part.inputs) {
            if let found = try form(reference, path), found.signature != want.signature {
                throw Malformed("\(path): it reads \(reference), \(found.signature); the part takes \(want.signature)")
            }
        }
        let outputs = numbers.map { Reference.value($0) }
        for (value, output) in zip(outputs, part.outputs) where known.updateValue(output, forKey: value) != nil {
            throw Malformed("\(path): it makes \(value), which is there already")
        }
        return Call(part: part, inputs: inputs, outputs: outputs)
    }

    /// The form of what is read; nil for an input of a program that the bundle has not.
    private func form(_ reference: Reference, _ path: String) throws -> TensorSpec? {
        if let found = known[reference] { return found }
        if case .input = reference, program == nil { return nil }
        throw Malformed("\(path): it reads \(reference), which is not there")
    }

    private static func reference(_ json: JSON, _ path: String) throws -> Reference {
        let text = try Fields.text(json, path)
        if let name = text.after("input:") {
            try ManifestReader.checkName(name, path)
            return .input(Exact(name))
        }
        if let name = text.after("constant:") {
            try ScheduleReader.checkConstantName(name, path)
            return .constant(name)
        }
        // One spelling for each.
        if let digits = text.after("value:"), (1...7).contains(digits.utf8.count),
            digits.utf8.allSatisfy(ManifestReader.isDigit), digits == "0" || !digits.hasPrefix("0"),
            let number = Int(digits)
        {
            return .value(number)
        }
        throw Malformed("\(path): '\(text)' is neither an input nor a constant nor a value")
    }
}

extension String {
    /// What follows a beginning of ASCII; nil where it begins otherwise.
    fileprivate func after(_ start: String) -> String? {
        utf8.starts(with: start.utf8) ? String(decoding: utf8.dropFirst(start.utf8.count), as: UTF8.self) : nil
    }
}
