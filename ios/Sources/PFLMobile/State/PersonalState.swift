/// What personalization changed.
public struct PersonalState: Sendable {
    /// Every device tensor by name.
    public var tensors: TensorSet
    /// Copies of tensors that phases train, by copy and tensor (Ditto, APFL).
    public var copies: [String: TensorSet]
    /// The user's words in slot order.
    public var words: [String]
    /// Measured when the state was adopted.
    public var metrics: [String: Double]

    /// A state.
    public init(
        tensors: TensorSet, copies: [String: TensorSet] = [:], words: [String] = [], metrics: [String: Double] = [:]
    ) {
        self.tensors = tensors
        self.copies = copies
        self.words = words
        self.metrics = metrics
    }
}

/// One version of a personal state as a file: tensors, `copy:<copy>:<tensor>` for copies, the rest in the head.
struct StateFile: Sendable {
    var model: ModelId
    var state: PersonalState
    let parent: Int
    let created: Double

    private static let form = "pfl-personal-state"
    private static let schemaVersion = 1
    private static let copyPrefix = "copy:"

    init(_ model: ModelId, _ state: PersonalState, parent: Int, created: Double) {
        self.model = model
        self.state = state
        self.parent = parent
        self.created = created
    }

    /// The bytes of the file, which are Python's for the same state.
    ///
    /// - Throws: `.nonFinite`: a tensor is NaN or infinite
    func encode() throws -> [UInt8] {
        var tensors = state.tensors
        for (copy, values) in state.copies {
            for (name, value) in values { tensors[copyKey(copy, name)] = value }
        }
        let metrics = state.metrics.filter { $0.value.isFinite }.map { (key: $0.key, value: JSON.double($0.value)) }
        let head = object(
            ("schema_version", .integer(StateFile.schemaVersion)),
            ("model", .texts([model.name, model.version, model.fingerprint])), ("parent", .integer(parent)),
            ("created", .double(created)), ("words", .texts(state.words)), ("metrics", .object(JSONObject(metrics))))
        return try Sealed.seal(tensors, head: pythonJSON(head), form: StateFile.form, finite: true)
    }

    /// Why a file cannot be used: it does not hold what was written, and another version may.
    struct Damaged: Error {
        let error: PFLError
    }

    /// Reads a file.
    ///
    /// - Throws: `Damaged`: it is not what was written; `.state`: it is of a newer schema
    init(reading path: String) throws {
        func damaged(_ error: any Error, _ message: String) -> Damaged {
            Damaged(error: PFLError(.state, message, mend: "revert to another version", cause: error))
        }
        do {
            let (tensors, head) = try Sealed.unseal(
                try map(path), form: StateFile.form, schemaVersion: StateFile.schemaVersion, what: path)
            self = try Sealed.damagedHead(path) { try StateFile(tensors, head) }
        } catch let error as PFLError where error.code == .newerFile {
            throw PFLError(.state, error.message, mend: error.mend, cause: error)
        } catch let error as PFLError {
            throw damaged(error, error.message)
        } catch let error as SystemError {
            throw damaged(error, "cannot read \(path): \(error)")
        } catch let error as Malformed {
            throw damaged(error, "cannot read \(path): \(error)")
        }
    }

    private init(_ tensors: TensorSet, _ head: JSONObject) throws {
        let model = try StateFile.texts(head, "model")
        if model.count != 3 { throw Malformed("a model has three parts") }
        var own: TensorSet = [:]
        var copies: [String: TensorSet] = [:]
        for (key, value) in tensors {
            guard key.hasPrefix(StateFile.copyPrefix) else {
                own[key] = value
                continue
            }
            let parts = key.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false).map(String.init)
            guard parts.count == 3 else { throw Malformed("'\(key)' is the tensor of no copy") }
            copies[parts[1], default: [:]][parts[2]] = value
        }
        guard let measured = head["metrics"]?.object else { throw Malformed("metrics are no object") }
        var metrics: [String: Double] = [:]
        for (name, value) in measured {
            guard let number = value.number else { throw Malformed("a number is missing") }
            metrics[name] = number
        }
        guard let parent = head["parent"]?.integer, let created = head["created"]?.number else {
            throw Malformed("a number is missing")
        }
        self.init(
            ModelId(name: model[0], version: model[1], fingerprint: model[2]),
            PersonalState(tensors: own, copies: copies, words: try StateFile.texts(head, "words"), metrics: metrics),
            parent: parent, created: created)
    }

    private static func texts(_ head: JSONObject, _ name: String) throws -> [String] {
        guard let items = head[name]?.array else { throw Malformed("\(name) is no list") }
        return try items.map { item in
            guard let text = item.string else { throw Malformed("a name or word is no text") }
            return text
        }
    }
}
