import Foundation

/// Training under way, saved now and then in a file, so that a killed run goes on where it was. A checkpoint belongs to one job:
/// plan, examples, sets, model and the version it started from. Any other job discards it and says so. Going on gives bit for
/// bit what an uninterrupted run gives.
public struct Checkpoints: Sendable {
    /// Steps between checkpoints.
    public let every: Int
    private let path: String
    private let model: ModelId
    private let files = AtomicFiles()

    private static let what = "the checkpoint"

    /// Checkpoints in a file.
    ///
    /// - Parameters:
    ///   - path: of the file; its folder must exist
    ///   - model: that is trained
    ///   - every: steps between checkpoints
    /// - Throws: `.config`: `every` is less than 1
    public init(_ path: String, model: ModelId, every: Int) throws {
        if every < 1 { throw PFLError(.config, "a checkpoint every \(every) steps", mend: "give 1 or more") }
        self.path = path
        self.model = model
        self.every = every
    }

    /// Digest of everything that decides how training goes.
    func job(_ plan: Plan, version: Int, rows: Rows, texts: String, sets: [String: TensorSet]) -> String {
        var sha = Sha256()
        var parts = [
            plan.dump(), model.name, model.version, model.fingerprint, "\(version)", Sealed.digest(rows), texts,
        ]
        parts += sets.sorted { nameOrder($0.key, $1.key) }.map { "\($0.key)\n\(Sealed.digest($0.value))" }
        for part in parts {
            var one = Sha256()
            one.add(part)
            sha.add(one.bytes)
        }
        return hex(sha.bytes)
    }

    /// Writes the work atomically.
    func save(_ work: Work, job: String) throws {
        var flat: TensorSet = ["losses": doubles(work.losses)]
        for (name, value) in work.tensors { flat["tensor:\(name)"] = value }
        for (name, value) in work.optimizer.tensors { flat["optimizer:\(name)"] = value }
        for (name, value) in work.start { flat["start:\(name)"] = .float(value) }
        for (copy, values) in work.copies {
            for (name, value) in values { flat[copyKey(copy, name)] = value }
        }
        let reports = JSONObject(work.reports.map { (key: $0.key, value: JSON.double($0.value)) })
        let head = object(
            ("job", .string(job)), ("words", .texts(work.words)), ("reports", .object(reports)),
            ("phase", .integer(work.phase)), ("step", .integer(work.step)), ("done", .integer(work.done)),
            ("rate", .double(work.rate)))
        try files.write(path, try Sealed.seal(flat, head: pythonJSON(head), form: nil))
    }

    /// What a checkpoint gives to a job.
    enum Found {
        /// There is none.
        case none
        case work(Work)
        /// Why it cannot be used.
        case unusable(String)
    }

    /// The saved work of this job.
    func load(job: String) -> Found {
        do {
            let data = Data(try readBytes(path, most: .max))
            let (flat, head) = try Sealed.unseal(data, form: nil, schemaVersion: 0, what: Checkpoints.what)
            return try Sealed.damagedHead(Checkpoints.what) {
                if head["job"]?.string != job {
                    return .unusable(
                        "the checkpoint was of other examples, another plan or an older state, and was discarded")
                }
                return .work(try work(flat, head))
            }
        } catch let error as SystemError where error.isMissing {
            return .none
        } catch {
            let why = (error as? PFLError)?.message ?? "\(error)"
            return .unusable("the checkpoint could not be read and was discarded: \(why)")
        }
    }

    /// Removes the checkpoint if there is one.
    func discard() throws {
        try files.delete(path)
    }

    private func work(_ flat: TensorSet, _ head: JSONObject) throws -> Work {
        func part(_ kind: String) -> TensorSet {
            var found: TensorSet = [:]
            for (name, value) in flat where name.hasPrefix("\(kind):") {
                found[String(name.dropFirst(kind.count + 1))] = value
            }
            return found
        }
        func number(_ field: String) throws -> Int {
            guard let value = head[field]?.integer, value >= 0 else { throw Malformed("\(field) is no whole number") }
            return value
        }
        var work = Work(tensors: part("tensor"))
        for (key, value) in part("copy") {
            let parts = key.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            guard parts.count == 2 else { throw Malformed("copy:\(key) is the tensor of no copy") }
            work.copies[parts[0], default: [:]][parts[1]] = value
        }
        guard let words = head["words"]?.array, let rate = head["rate"]?.number,
            let reports = head["reports"]?.object
        else { throw Malformed("words, rate or reports are missing") }
        work.words = words.compactMap(\.string)
        work.rate = rate
        for (name, value) in reports { work.reports[name] = value.number }
        work.phase = try number("phase")
        work.step = try number("step")
        work.done = try number("done")
        work.optimizer = OptimizerState(part("optimizer"))
        work.start = part("start").compactMapValues(\.float)
        guard let losses = flat["losses"], losses.dtype == .float64 else { throw Malformed("there are no losses") }
        work.losses = losses.doubles
        return work
    }

    private func doubles(_ values: [Double]) -> Tensor {
        .raw(RawTensor(.float64, values.withUnsafeBytes { Array($0) }, [values.count]))
    }
}
