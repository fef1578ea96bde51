import Foundation

/// What an example is.
public enum Payload: Sendable {
    /// A text, for a bundle with an encoder.
    case text(String)
    /// One row: arrays as the inputs of the bundle's programs name them, `weight` among them, each with a first axis of 1.
    case arrays(TensorSet)

    /// The word for it in a file.
    public var kind: String {
        switch self {
        case .text: "text"
        case .arrays: "arrays"
        }
    }

    /// The bytes to store.
    ///
    /// - Throws: `.tensorFile`: a name that cannot be stored
    public func encode() throws -> [UInt8] {
        switch self {
        case .text(let text): Array(text.utf8)
        case .arrays(let arrays): try Safetensors.write(arrays)
        }
    }

    /// What was encoded.
    ///
    /// - Throws: `.state`: the bytes are damaged, or of another kind
    public init(kind: String, decoding data: [UInt8]) throws {
        switch kind {
        case "text":
            do {
                self = .text(try utf8(Data(data)))
            } catch {
                throw Payload.damaged("\(error)")
            }
        case "arrays":
            do {
                self = .arrays(try Safetensors.read(data, "an example").tensors)
            } catch let error as PFLError {
                throw Payload.damaged(error.message)
            }
        default:
            throw PFLError(
                .state, "an example is of the kind '\(kind)'", mend: "update the app, or erase the example")
        }
    }

    private static func damaged(_ why: String) -> PFLError {
        PFLError(.state, "an example is damaged: \(why)", mend: "erase it")
    }
}

/// One stored example.
public struct Example: Sendable {
    /// Increases with every addition; never used twice, until all are erased.
    public let id: Int
    /// Seconds since 1970, by the clock of that moment.
    public let created: Double
    /// What the user did.
    public let payload: Payload

    /// An example.
    public init(id: Int, created: Double, payload: Payload) {
        self.id = id
        self.created = created
        self.payload = payload
    }
}

/// What is kept; the oldest examples go first. Nil is no limit.
public struct Retention: Sendable, Equatable {
    /// Number of examples.
    public let maxExamples: Int?
    /// Seconds since an example was made.
    public let maxAge: Double?
    /// Payload bytes in all.
    public let maxBytes: Int?

    /// Limits.
    ///
    /// - Throws: `.config`: one that keeps nothing
    public init(maxExamples: Int? = 10_000, maxAge: Double? = nil, maxBytes: Int? = 64 << 20) throws {
        let given = [
            ("maxExamples", maxExamples.map(Double.init)), ("maxAge", maxAge), ("maxBytes", maxBytes.map(Double.init)),
        ]
        for case (let name, let value?) in given where !(value > 0) {
            throw PFLError(
                .config, "\(name) is \(value)", mend: "give a limit above 0, or nil for no limit")
        }
        self.init(unchecked: maxExamples, maxAge, maxBytes)
    }

    private init(unchecked maxExamples: Int?, _ maxAge: Double?, _ maxBytes: Int?) {
        self.maxExamples = maxExamples
        self.maxAge = maxAge
        self.maxBytes = maxBytes
    }

    /// 10,000 examples of 64 MiB, of any age.
    public static let standard = Retention(unchecked: 10_000, nil, 64 << 20)
}

/// The device's own examples: bounded, inspectable, erasable. A trained state can still remember what was erased here.
///
/// Calls may come from any thread, and block it; they are done one after the other. All of them throw `.state` where the store
/// is damaged or closed, and `.storageFull` where the disk is full; nothing is changed then.
public protocol ExampleStore: AnyObject, Sendable {
    /// Keeps an example, durable when this returns, then applies the limits; its id, or nil where a limit removed it at once.
    func add(_ payload: Payload) throws -> Int?

    /// The examples, oldest first; with `newest` only so many of the newest.
    func examples(newest: Int?) throws -> [Example]

    /// How many there are.
    func count() throws -> Int

    /// Erases examples by their ids, leaving no trace in the store's files; returns how many there were.
    func erase(_ ids: some Collection<Int>) throws -> Int

    /// Erases everything; returns how many there were.
    func eraseAll() throws -> Int

    /// Ends the use of it.
    func close() throws
}

/// Examples that are lost with the process: for previews, tests and kiosks.
public final class InMemoryExampleStore: ExampleStore {
    private struct Kept {
        var examples: [Example] = []
        var bytes: [Int: Int] = [:]
        var next = 1
        var closed = false
    }

    private let kept = Locked(Kept())
    private let retention: Retention
    private let clock: @Sendable () -> Double

    /// An empty store.
    ///
    /// - Parameter clock: seconds since 1970
    public init(
        _ retention: Retention = .standard, clock: @escaping @Sendable () -> Double = { Date().timeIntervalSince1970 }
    ) {
        self.retention = retention
        self.clock = clock
    }

    private func open<Result>(_ body: (inout Kept) throws -> Result) throws -> Result {
        try kept { kept in
            if kept.closed { throw closedExamples("in memory") }
            return try body(&kept)
        }
    }

    public func add(_ payload: Payload) throws -> Int? {
        let bytes = try payload.encode().count
        return try open { kept in
            let id = kept.next
            kept.next += 1
            if let most = retention.maxBytes, bytes > most { return nil }
            kept.examples.append(Example(id: id, created: clock(), payload: payload))
            kept.bytes[id] = bytes
            applyLimits(&kept)
            return id
        }
    }

    private func applyLimits(_ kept: inout Kept) {
        let now = clock()
        let entries = kept.examples.map { (age: now - $0.created, bytes: kept.bytes[$0.id] ?? 0) }
        for gone in kept.examples.prefix(retention.beyond(entries)) { kept.bytes[gone.id] = nil }
        kept.examples.removeFirst(retention.beyond(entries))
    }

    public func examples(newest: Int?) throws -> [Example] {
        try open { kept in
            if retention.maxAge != nil { applyLimits(&kept) }
            return Array(kept.examples.suffix(newest ?? kept.examples.count))
        }
    }

    public func count() throws -> Int { try open { $0.examples.count } }

    public func erase(_ ids: some Collection<Int>) throws -> Int {
        let ids = Set(ids)
        return try open { kept in
            let before = kept.examples.count
            kept.examples.removeAll { ids.contains($0.id) }
            for id in ids { kept.bytes[id] = nil }
            return before - kept.examples.count
        }
    }

    public func eraseAll() throws -> Int {
        try open { kept in
            defer { kept = Kept() }
            return kept.examples.count
        }
    }

    public func close() { kept { $0 = Kept(closed: true) } }
}

extension Retention {
    /// How many of the oldest are beyond the limits.
    ///
    /// - Parameter entries: seconds since each was made, and its bytes; oldest first
    func beyond(_ entries: [(age: Double, bytes: Int)]) -> Int {
        var first = maxExamples.map { max(entries.count - $0, 0) } ?? 0
        if let maxAge, let old = entries.lastIndex(where: { $0.age > maxAge }) { first = max(first, old + 1) }
        if let maxBytes {
            var total = 0
            for place in entries.indices.reversed() {
                total += entries[place].bytes
                if total > maxBytes {
                    first = max(first, place + 1)
                    break
                }
            }
        }
        return first
    }
}

func closedExamples(_ place: String) -> PFLError {
    PFLError(.state, "the examples \(place) are closed", mend: "open the model again")
}
