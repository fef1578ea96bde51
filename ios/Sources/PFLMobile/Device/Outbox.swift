/// Why a run of a device ended.
public enum Ended: String, Sendable {
    /// As many updates were accepted as asked for.
    case rounds
    /// The federation trains no more.
    case done
    /// It checked in once.
    case once
    /// The app wanted no further task.
    case until
    /// The federation protects updates less than the policy asks for.
    case privacy
}

/// What a run of a device did.
public struct Summary: Sendable, Equatable {
    /// Why it ended.
    public let ended: Ended
    /// Updates that the aggregator accepted.
    public let rounds: Int
    /// Tasks without an update, by reason.
    public let declined: [String: Int]
    /// Updates that could not be sent or were refused.
    public let dropped: Int
    /// Of bodies, failed tries included.
    public let bytesUp: Int
    /// The same of answers.
    public let bytesDown: Int
}

/// What a summary is made of.
final class Counts {
    var rounds = 0
    var declined: [String: Int] = [:]
    var dropped = 0
}

/// Problems after which a task is over for this device, which goes on with the next.
let overCodes: Set = [
    "unknown-task", "task-expired", "round-closed", "too-stale", "not-found", "idempotency-key-reused",
    "already-uploaded", "update-of-another-task",
]

/// Problems with what this device made: a bug or a model that diverged. The update is dropped.
private let refusedCodes: Set = [
    "malformed-update", "wrong-tensors", "update-not-finite", "update-too-large", "bad-report", "bad-request",
    "body-too-large", "invalid-request",
]

extension PFLError {
    /// Whether it is a problem after which a task is over.
    var isOver: Bool { status != nil && overCodes.contains(code.rawValue) }

    /// Whether it is a problem after which an update or report is dropped.
    fileprivate var drops: Bool { isOver || status != nil && refusedCodes.contains(code.rawValue) }
}

/// Sends what is finished, and remembers it until it is accepted.
final class Outbox {
    private let folder: DeviceFolder
    private let client: Client
    private let pipeline: Pipeline
    private let counts: Counts
    private let tell: (Event) -> Void
    private let clock: () -> Double
    /// Tasks of which nothing was sent yet.
    private var fresh: Set<String> = []

    /// - Parameters:
    ///   - pipeline: that made the updates
    ///   - counts: of what is sent
    ///   - tell: told what happens
    ///   - clock: seconds
    init(
        _ folder: DeviceFolder, _ client: Client, _ pipeline: Pipeline, _ counts: Counts,
        tell: @escaping (Event) -> Void, clock: @escaping () -> Double
    ) {
        self.folder = folder
        self.client = client
        self.pipeline = pipeline
        self.counts = counts
        self.tell = tell
        self.clock = clock
    }

    /// Finishes what a killed process left.
    func goOn() throws {
        try folder.removeOrphans()
        let (found, damaged) = try folder.pending()
        for task in damaged { try drop(task, "update", "its file in the queue is damaged") }
        for entry in found { _ = try adopt(entry) }
    }

    /// Whether the update of this task waits.
    func holds(_ task: String) throws -> Bool { try folder.pending().found.contains { $0.task == task } }

    /// Makes the update safe first; then lets the new personal state serve. An update with noise of the device is counted before
    /// anything else: from here on it may be sent at any time.
    func put(_ task: RoundTask, deadline: Double, _ done: TaskResult) throws {
        let noise = task.privacy.localNoiseMultiplier
        if task.privacy.clipNorm != nil && noise > 0 { try folder.sent.add(noise) }
        try folder.spent.made(folder.membership?.device ?? "", task.privacy)
        var generator = SystemRandomNumberGenerator()
        let key = hex((0..<16).map { _ in UInt8.random(in: 0...255, using: &generator) })
        let pending = Pending(
            task: task, key: key, deadline: deadline, update: done.update, evaluation: done.evaluation,
            adopts: done.adopts, insteadOf: try folder.personal.current, copies: done.copies,
            membership: folder.membership)
        try folder.put(pending, done.update)
        fresh.insert(task.id)
        do {
            _ = try adopt(pending)
        } catch let error as PFLError where error.isA(.storageFull) {
            // The update is safe, and the state serves later: it is tried again before the update is sent.
        }
        let report = done.report
        tell(
            .finished(
                Event.Finished(
                    round: task.round, adopted: report.status == .adopted, steps: report.steps, seconds: report.seconds,
                    before: report.before, after: report.after, norm: done.protection.norm,
                    clipped: done.protection.clipped)))
    }

    /// Sends everything that waits, if the policy still allows it: it may be stricter than when it was made. What was made for
    /// another membership is dropped.
    ///
    /// - Throws: `.unreachable`: it goes on waiting
    func flush(isolation: isolated (any Actor)? = #isolation) async throws {
        for waiting in try folder.pending().found {
            let pending = try adopt(waiting)
            let what = pending.uploaded ? "evaluation" : "update"
            if isOfAnother(pending) {
                try drop(pending.task, what, "it was made for another membership", pending)
            } else if clock() >= pending.deadline {
                try drop(pending.task, what, "its task has expired", pending)
            } else {
                var accepted = pending.uploaded
                if !accepted { accepted = try await send(pending) }
                if accepted { try await report(pending) }
            }
        }
    }

    private func isOfAnother(_ pending: Pending) -> Bool {
        let now = folder.membership
        return pending.device != nil && (pending.device != now?.device || pending.server != now?.server)
    }

    /// Sends an update; whether it is accepted.
    private func send(_ pending: Pending, isolation: isolated (any Actor)? = #isolation) async throws -> Bool {
        if let why = pipeline.refusal(pending.privacy, pending.reports, counted: true) {
            try drop(pending.task, "update", why, pending)
            return false
        }
        let resume = fresh.remove(pending.task) == nil
        let state: UploadState
        do {
            state = try await upload(
                client, pending.url, file: folder.updatePath(pending.task), key: pending.key, resume: resume)
        } catch let problem as PFLError where problem.drops {
            try drop(pending.task, "update", "\(problem.code.rawValue): \(problem.message)", pending)
            return false
        }
        counts.rounds += 1
        try folder.spent.accepted(bytes: pending.bytes)
        var accepted = pending
        accepted.adopts = nil
        accepted.uploaded = true
        try folder.change(accepted)
        tell(.uploaded(round: pending.round, bytes: pending.bytes, duplicate: state.duplicate))
        return true
    }

    private func report(_ pending: Pending, isolation: isolated (any Actor)? = #isolation) async throws {
        if let report = pending.evaluation, pipeline.policy.mayReport(pending.privacy) {
            do {
                try await client.report(pending.task, report)
            } catch let problem as PFLError where problem.drops {
                return try drop(pending.task, "evaluation", "\(problem.code.rawValue): \(problem.message)")
            }
            tell(
                .reported(
                    round: pending.round, shared: means(report.global), personalized: means(report.personalized),
                    weight: report.personalized.values.map(\.weight).max() ?? 0))
        }
        try folder.remove(pending.task)
    }

    /// Forgets a task, and says so.
    ///
    /// - Parameters:
    ///   - what: `update`, `evaluation` or `task`
    ///   - why: in words
    ///   - pending: what was in the queue
    func drop(_ task: String, _ what: String, _ why: String, _ pending: Pending? = nil) throws {
        if let pending, !pending.uploaded {
            try takeBack(folder.personal, pending.copies, before: pending.insteadOf, folder.serves)
        }
        try folder.remove(task)
        counts.dropped += 1
        tell(.dropped(task: task, what: what, why: why))
    }

    private func adopt(_ pending: Pending) throws -> Pending {
        guard let adopts = pending.adopts else { return pending }
        let store = folder.personal
        // Else somebody reverted it meanwhile, or erased it.
        if try store.current == pending.insteadOf && isThere(adopts) { try store.adopt(adopts) }
        var now = pending
        now.adopts = nil
        try folder.change(now)
        return now
    }

    private func isThere(_ version: Int) throws -> Bool {
        do {
            _ = try folder.personal.read(version)
            return true
        } catch let error as PFLError where error.isA(.state) && !error.isA(.storageFull) {
            return false
        }
    }
}

private func means(_ sums: [String: MetricSum]) -> [String: Double] { sums.mapValues { $0.sum / $0.weight } }
