/// What a device gave to federations, for a status screen: how much was sent, and what was promised for it. What the device's
/// own noise cost is counted by `SentNoise` alone.
///
/// An update counts for the promises once it is made, as it may be sent at any time from then on; for the rounds once it is
/// accepted.
final class Spent {
    private var file: CountFile<Content>
    private var now: Content { file.now }

    /// - Parameters:
    ///   - path: of the file; where there is none, nothing was sent
    ///   - begun: whether it must be there, so that one that is missing was lost
    /// - Throws: `.deviceFolder`: the file is damaged or was lost
    init(_ path: String, begun: Bool = false, files: AtomicFiles = AtomicFiles()) throws {
        file = try CountFile(
            path, begun: begun, nothing: Content(), files: files, unknown: "what was sent",
            mend: "restore it; only the user can decide to erase everything and to begin to count anew")
    }

    /// Updates that were accepted.
    var rounds: Int { now.rounds }

    /// Bytes of these.
    var bytes: Int { now.bytes }

    /// When the aggregator was last asked for a task, in seconds since 1970; nil before the first time.
    var asked: Double? { now.asked }

    /// Updates that nothing protected.
    var unprotected: Int { now.unprotected }

    /// Epsilon and delta that the aggregators promise for what this device gave them, added up over its memberships.
    var promised: (epsilon: Double, delta: Double) {
        now.promises.values.reduce((0, 0)) { ($0.0 + $1.epsilon, $0.1 + $1.delta) }
    }

    /// Epsilon that was promised to other memberships than that of a device.
    func promisedElsewhere(_ device: String?) -> Double {
        now.promises.filter { $0.key != device }.values.reduce(0) { $0 + $1.epsilon }
    }

    /// Has the file, so that a loss of it is seen.
    func begin() throws { try file.begin() }

    /// Counts an update. What a policy without any limit would not believe is no promise.
    ///
    /// - Parameter device: its id in the federation, which counts a device that left and came again as two
    func made(_ device: String, _ privacy: TaskPrivacy) throws {
        let own = privacy.clipNorm != nil && privacy.localNoiseMultiplier > 0
        var more = now
        if PrivacyPolicy.believes(privacy), let epsilon = privacy.epsilonAfter, let delta = statedDelta(privacy) {
            let before = now.promises[device]
            let promise = Promise(epsilon: max(epsilon, before?.epsilon ?? 0), delta: max(delta, before?.delta ?? 0))
            if promise == before { return }
            more.promises[device] = promise
        } else if own {
            return
        } else {
            more.unprotected += 1
        }
        try file.write(more)
    }

    /// An update of so many bytes was accepted.
    func accepted(bytes: Int) throws {
        var more = now
        more.rounds += 1
        more.bytes += bytes
        try file.write(more)
    }

    /// The aggregator is asked for a task now.
    func asked(at seconds: Double) throws {
        var more = now
        more.asked = seconds
        try file.write(more)
    }

    private struct Promise: Body, Equatable {
        let epsilon: Double
        let delta: Double

        init(epsilon: Double, delta: Double) {
            self.epsilon = epsilon
            self.delta = delta
        }

        init(_ fields: inout Fields) throws {
            epsilon = try fields.required("epsilon", Fields.finite)
            delta = try fields.required("delta", Fields.finite)
        }

        var json: JSON { object(("epsilon", .double(epsilon)), ("delta", .double(delta))) }
    }

    private struct Content: Body {
        var rounds = 0
        var bytes = 0
        var unprotected = 0
        var asked: Double?
        var promises: [String: Promise] = [:]

        init() {}

        init(_ fields: inout Fields) throws {
            _ = try fields.required("schema_version", Fields.whole)
            rounds = try fields.field("rounds", Fields.whole, default: 0)
            bytes = try fields.field("bytes", Fields.whole, default: 0)
            unprotected = try fields.field("unprotected", Fields.whole, default: 0)
            asked = try fields.maybe("asked", Fields.finite)
            promises = try fields.byName("promises", optional: true)
        }

        var json: JSON {
            object(
                ("schema_version", .integer(DeviceFolder.schemaVersion)), ("rounds", .integer(rounds)),
                ("bytes", .integer(bytes)), ("unprotected", .integer(unprotected)),
                ("asked", .maybe(asked, JSON.double)),
                ("promises", .named(promises)))
        }
    }
}
