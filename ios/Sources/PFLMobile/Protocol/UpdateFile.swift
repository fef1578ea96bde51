import Foundation

/// Where each tensor lies in a flat vector: names and shapes in order; copies are named as `copyKey` does.
struct UpdateLayout: Sendable {
    let shapes: [(name: String, shape: [Int])]

    /// Number of values.
    var size: Int { shapes.reduce(0) { $0 + length($1.shape) } }

    /// The layout of tensors in an update: sorted by the bytes of their UTF-8 names.
    static func canonical(_ shapes: [(name: String, shape: [Int])]) -> UpdateLayout {
        UpdateLayout(shapes: shapes.sorted { nameOrder($0.name, $1.name) })
    }

    var isCanonical: Bool {
        zip(shapes, shapes.dropFirst()).allSatisfy { nameOrder($0.name, $1.name) }
    }

    /// Calls `use` with name, first place and shape of every tensor, in order.
    func forEach(_ use: (_ name: String, _ start: Int, _ shape: [Int]) throws -> Void) rethrows {
        var start = 0
        for (name, shape) in shapes {
            try use(name, start, shape)
            start += length(shape)
        }
    }

    /// Tensors one after the other, float32 [P]; a missing one becomes zero.
    func pack(_ values: [String: FloatTensor]) -> [Float] {
        shapes.flatMap { values[$0.name]?.values ?? [Float](repeating: 0, count: length($0.shape)) }
    }

    /// Copies of the tensors in a flat vector [P], by name.
    func unpack(_ flat: [Float]) -> [String: FloatTensor] {
        var found: [String: FloatTensor] = [:]
        forEach { name, start, shape in
            found[name] = FloatTensor(Array(flat[start..<start + length(shape)]), shape)
        }
        return found
    }
}

/// `head` in the metadata of an update file, as JSON.
struct UpdateHead: Sendable {
    let task: String
    let round: Int
    let version: Int
    /// What the update was trained on.
    let examples: Int
    let steps: Int
    /// Whether clipping shortened it.
    var clipped = false
    /// In the order in which they are written.
    var reports: [(name: String, value: Double)] = []

    private static let mostCount = (1 << 53) - 1
    private static let mostReports = 64

    init(
        task: String, round: Int, version: Int, examples: Int, steps: Int, clipped: Bool = false,
        reports: [(name: String, value: Double)] = []
    ) {
        self.task = task
        self.round = round
        self.version = version
        self.examples = examples
        self.steps = steps
        self.clipped = clipped
        self.reports = reports
    }

    init(_ json: JSON) throws {
        func count(_ json: JSON, _ path: String) throws -> Int {
            let value = try Fields.whole(json, path)
            if !(0...UpdateHead.mostCount).contains(value) { throw Malformed("\(path): it is no count") }
            return value
        }
        var fields = try Fields(json)
        task = try fields.required("task", Fields.text)
        round = try fields.required("round", count)
        version = try fields.required("version", count)
        examples = try fields.required("examples", count)
        steps = try fields.required("steps", count)
        clipped = try fields.field("clipped", Fields.truth, default: false)
        reports = try fields.field("reports", Fields.named(Fields.finite), default: []).map { ($0.name, $0.value) }
        try fields.done()
        let hex = task.utf8.allSatisfy { $0 >= 0x30 && $0 <= 0x39 || $0 >= 0x61 && $0 <= 0x66 }
        if task.utf8.count != 32 || !hex { throw Malformed("task: it is no id") }
        if reports.count > UpdateHead.mostReports { throw Malformed("reports: more than \(UpdateHead.mostReports)") }
    }

    var json: JSON {
        object(
            ("task", .string(task)), ("round", .integer(round)), ("version", .integer(version)),
            ("examples", .integer(examples)), ("steps", .integer(steps)), ("clipped", .bool(clipped)),
            ("reports", .object(JSONObject(reports.map { (key: $0.name, value: JSON.double($0.value)) }))))
    }

    /// As Python's `json.dumps` lays it out.
    fileprivate var text: String {
        let reports = reports.map { "\(jsonString($0.name, ascii: true)): \(pythonFloat($0.value))" }
        let counts =
            "\"round\": \(round), \"version\": \(version), \"examples\": \(examples), \"steps\": \(steps)"
        return "{\"task\": \"\(task)\", \(counts), \"clipped\": \(clipped), "
            + "\"reports\": {\(reports.joined(separator: ", "))}}"
    }
}

/// What a device uploads: a canonical safetensors file, so that its bytes after the header are one flat vector.
///
///     8 bytes             length N of the header, unsigned, little-endian; a multiple of 8
///     N bytes             JSON, filled up with spaces:
///                         {"__metadata__": {"format": "pfl-update", "head": "<UpdateHead as JSON>"},
///                          "<name>": {"dtype": "F32", "shape": [...], "data_offsets": [from, to]}, ...}
///     4 bytes a value     float32, little-endian: the tensors in the order of the task's layout, without gaps
///
/// The layout is sorted by the bytes of the tensors' UTF-8 names. A copy's tensor is named `copy:<copy>:<tensor>`.
enum UpdateFile {
    private static let form = "pfl-update"
    private static let again = "write the update again: names, shapes, order and offsets as the task's layout says"

    /// Bytes that a header may have beside its tensors' entries.
    private static let mostHeadBytes = 64 << 10

    /// Bytes of a tensor's entry beside its name and shape.
    private static let entryBytes = 160

    /// The layout of what a plan sends.
    ///
    /// - Throws: `.config`: an upload pattern matches nothing, or personal tensors only
    static func layout(_ plan: Plan, _ table: [DeviceTensor]) throws -> UpdateLayout {
        UpdateLayout.canonical(try updateShapes(plan, table))
    }

    /// The most bytes that such an update may have.
    static func sizeLimit(_ layout: UpdateLayout) -> Int { 8 + headerLimit(layout) + 4 * layout.size }

    private static func headerLimit(_ layout: UpdateLayout) -> Int {
        // A byte of a name takes six in JSON where it is escaped; a size takes up to 20 digits and a comma.
        layout.shapes.reduce(mostHeadBytes) { $0 + entryBytes + 6 * $1.name.utf8.count + 21 * $1.shape.count }
    }

    /// The bytes of an update: the same for the same content, in every language.
    ///
    /// - Parameters:
    ///   - head: which task it belongs to, and what was done
    ///   - tensors: those of the layout
    ///   - layout: of the task, in canonical order
    /// - Throws: `.tensorMismatch`: a tensor is missing, unknown, or of another shape; `.nonFinite`: a value is NaN or
    ///   infinite; `.updateFile`: the layout is not in canonical order, or the head is too long
    static func encode(_ head: UpdateHead, _ tensors: [String: FloatTensor], _ layout: UpdateLayout) throws -> [UInt8] {
        if !layout.isCanonical {
            throw PFLError(.updateFile, "the layout is not sorted by name", mend: "take the task's own layout")
        }
        let asked = Dictionary(layout.shapes.map { ($0.name, $0.shape) }) { first, _ in first }
        for name in Set(asked.keys).union(tensors.keys).sorted(by: nameOrder) {
            let shape = asked[name]
            if shape == nil || tensors[name]?.shape != shape {
                let found = tensors[name].map { "float32\($0.shape)" } ?? "missing"
                let want = shape.map { "is to be float32\($0)" } ?? "is not asked for"
                throw PFLError(
                    .tensorMismatch, "tensor '\(name)' of the update is \(found); it \(want)",
                    mend: "send what the plan uploads")
            }
        }
        try Safetensors.checkFinite(tensors.mapValues(Tensor.float))
        let text = Array(header(head, layout).utf8)
        let padding = -text.count & 7  // the values begin at a multiple of 8
        if text.count + padding > headerLimit(layout) {
            throw PFLError(
                .updateFile,
                "the header of the update has \(text.count + padding) bytes, the most is \(headerLimit(layout))",
                mend: "send fewer reports")
        }
        var out: [UInt8] = []
        withUnsafeBytes(of: UInt64(text.count + padding).littleEndian) { out += $0 }
        out += text
        out += repeatElement(UInt8(ascii: " "), count: padding)
        layout.pack(tensors).withUnsafeBytes { out += $0 }
        return out
    }

    private static func header(_ head: UpdateHead, _ layout: UpdateLayout) -> String {
        var entries = ["\"__metadata__\":{\"format\":\"\(form)\",\"head\":\(jsonString(head.text, ascii: false))}"]
        layout.forEach { name, start, shape in
            let lengths = shape.map(String.init).joined(separator: ",")
            entries.append(
                "\(jsonString(name, ascii: false)):{\"dtype\":\"F32\",\"shape\":[\(lengths)],"
                    + "\"data_offsets\":[\(4 * start),\(4 * (start + length(shape)))]}")
        }
        return "{\(entries.joined(separator: ","))}"
    }

    /// Where the values begin in an update of this length; as many bytes are needed by `parsePrefix`.
    ///
    /// - Throws: `.updateTensors`: no update of this layout has this length
    static func payloadOffset(_ layout: UpdateLayout, totalLength: Int) throws -> Int {
        let offset = totalLength - 4 * layout.size
        if offset < 16 || offset > 8 + headerLimit(layout) {
            throw PFLError(
                .updateTensors,
                "the update has \(totalLength) bytes; those of the task have \(4 * layout.size) of values and a header",
                mend: again)
        }
        return offset
    }

    /// The head of an update, and the offset of its values in bytes; nothing of these is read. A device reads what it wrote
    /// before it sends it again.
    ///
    /// - Parameters:
    ///   - data: the beginning of the file, at least up to `payloadOffset`
    ///   - totalLength: bytes of the whole file
    /// - Throws: `.updateTensors`: other tensors, shapes, types or offsets than the layout's, or another length; `.updateFile`:
    ///   not an update file
    static func parsePrefix(
        _ data: [UInt8], _ layout: UpdateLayout, totalLength: Int
    ) throws -> (head: UpdateHead, offset: Int) {
        let offset = try payloadOffset(layout, totalLength: totalLength)
        if data.count < offset { throw bad("the update ends after \(data.count) bytes, inside its header") }
        let said = data.withUnsafeBytes { UInt64(littleEndian: $0.loadUnaligned(as: UInt64.self)) }
        if said != UInt64(offset - 8) {
            throw PFLError(
                .updateTensors,
                "the header of the update says \(said) bytes, where \(offset - 8) leave the layout's values",
                mend: again)
        }
        if said % 8 != 0 { throw bad("the header has \(said) bytes, not a multiple of 8") }
        if data[8] != UInt8(ascii: "{") { throw bad("the header of the update is not a JSON object") }
        var header = try json("header") { try parseJSON(bytes: data[8..<offset]).object ?? JSONObject() }
        let metadata = header["__metadata__"]
        header["__metadata__"] = nil
        try checkTensors(header, layout)
        return (try head(metadata), offset)
    }

    private static func checkTensors(_ header: JSONObject, _ layout: UpdateLayout) throws {
        let asked = Set(layout.shapes.map { Exact($0.name) })
        for name in header.keys where !asked.contains(Exact(name)) {
            throw PFLError(.updateTensors, "the update has a tensor '\(name)' that is not asked for", mend: again)
        }
        try layout.forEach { name, start, shape in
            guard let entry = header[name] else {
                throw PFLError(.updateTensors, "the update lacks the tensor '\(name)'", mend: again)
            }
            let expected: [(key: String, value: JSON)] = [
                ("dtype", .string("F32")), ("shape", .array(shape.map(JSON.integer))),
                ("data_offsets", .array([.integer(4 * start), .integer(4 * (start + length(shape)))])),
            ]
            guard let fields = entry.object, Set(fields.keys) == Set(expected.map(\.key)) else {
                throw bad("the entry of tensor '\(name)' is malformed")
            }
            for (key, value) in expected where fields[key] != value {
                throw PFLError(
                    .updateTensors, "tensor '\(name)' of the update has another \(key) than \(pythonJSON(value))",
                    mend: again)
            }
        }
    }

    private static func head(_ metadata: JSON?) throws -> UpdateHead {
        guard let fields = metadata?.object, Set(fields.keys) == ["format", "head"] else {
            throw bad("the metadata of the update is not its format and head")
        }
        guard fields["format"]?.string == form, let text = fields["head"]?.string else {
            throw bad("the file is not of the format '\(form)'")
        }
        return try json("head") { try UpdateHead(try parseJSON(text)) }
    }

    /// Not the error's own words in the message, which may repeat a part of what was sent.
    private static func json<Result>(_ what: String, _ read: () throws -> Result) throws -> Result {
        do {
            return try read()
        } catch is Malformed {
            throw bad("the \(what) of the update is not what it should be")
        }
    }

    private static func bad(_ message: String) -> PFLError { PFLError(.updateFile, message, mend: again) }
}
