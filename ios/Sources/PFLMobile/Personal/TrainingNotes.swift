/// Which examples a training began with.
struct Began: Sendable, Equatable {
    /// Id of the oldest.
    let first: Int
    /// Id of the newest.
    let last: Int
    /// How many.
    let count: Int
}

/// Two small files: which examples the training under way began with, and how the last one ended. A damaged one counts as none.
struct TrainingNotes: Sendable {
    private let underWay: String
    private let ended: String
    private let files: AtomicFiles

    init(_ folder: String, _ files: AtomicFiles) {
        underWay = "\(folder)/under-way"
        ended = "\(folder)/last.json"
        self.files = files
    }

    func begin(_ with: Began) throws {
        try put(
            underWay,
            object(("first", .integer(with.first)), ("last", .integer(with.last)), ("count", .integer(with.count))))
    }

    var began: Began? {
        read(underWay) { fields in
            Began(
                first: try fields.required("first", Fields.whole), last: try fields.required("last", Fields.whole),
                count: try fields.required("count", Fields.whole))
        }
    }

    func done() throws { try files.delete(underWay) }

    func write(_ last: LastTraining) throws {
        func metrics(_ values: [String: Double]) -> JSON {
            .object(JSONObject(values.filter { $0.value.isFinite }.map { (key: $0.key, value: JSON.double($0.value)) }))
        }
        try put(
            ended,
            object(
                ("at", .double(last.at)), ("adopted", .bool(last.adopted)), ("version", .integer(last.version)),
                ("before", metrics(last.before)), ("after", metrics(last.after)), ("steps", .integer(last.steps)),
                ("examples", .integer(last.examples))))
    }

    var last: LastTraining? {
        read(ended) { fields in
            let metrics = Fields.named(Fields.finite)
            func numbers(_ name: String) throws -> [String: Double] {
                let found = try fields.required(name, metrics)
                return Dictionary(found.map { ($0.name, $0.value) }) { first, _ in first }
            }
            return LastTraining(
                at: try fields.required("at", Fields.finite), adopted: try fields.required("adopted", Fields.truth),
                version: try fields.required("version", Fields.whole), before: try numbers("before"),
                after: try numbers("after"), steps: try fields.required("steps", Fields.whole),
                examples: try fields.required("examples", Fields.whole))
        }
    }

    func erase() throws {
        try done()
        try files.delete(ended)
    }

    private func put(_ path: String, _ value: JSON) throws {
        try files.write(path, Array(pythonJSON(value).utf8))
    }

    private func read<Value>(_ path: String, _ take: (inout Fields) throws -> Value) -> Value? {
        guard let bytes = try? readBytes(path), var fields = try? Fields(try parseJSON(bytes: bytes)) else {
            return nil
        }
        return try? take(&fields)
    }
}
