import Foundation
import PFLMobile

/// The system's queue of jobs, as far as this needs one.
protocol BackgroundQueue: Sendable {
    /// Says what to do when the system begins a job; before the app has started.
    ///
    /// - Returns: false where the app's Info.plist does not permit the identifier, or it is registered already
    func register(_ identifier: String, _ begin: @escaping @Sendable (any BackgroundJob) -> Void) -> Bool

    /// Asks the system to begin a job; one that waits already is replaced.
    func submit(_ identifier: String, earliest: Date, power: Bool, network: Bool) throws

    func cancel(_ identifier: String)
}

/// A job that the system has begun.
protocol BackgroundJob: Sendable {
    /// What to do when the system takes the phone back.
    func onExpiration(_ stop: @escaping @Sendable () -> Void)
    func complete(success: Bool)
}

/// A task that may be cancelled before there is one.
private final class Cancellable: @unchecked Sendable {
    private let lock = NSLock()
    private var task: Task<Void, Never>?
    private var isCancelled = false

    func hold(_ task: Task<Void, Never>) {
        lock.withLock {
            self.task = task
            if isCancelled { task.cancel() }
        }
    }

    func cancel() {
        lock.withLock {
            isCancelled = true
            task?.cancel()
        }
    }
}

/// What both schedulers do: one job of the system for one model, again and again.
final class Scheduler<Model: Sendable>: Sendable {
    let identifier: String
    let job: ModelJob<Model>
    private let queue: any BackgroundQueue
    private let schedules: URL
    private let network: Bool

    /// Until the next try of a job that was stopped or failed.
    private static var pause: Double { 15 * 60 }

    init(_ identifier: String, _ job: ModelJob<Model>, queue: any BackgroundQueue, schedules: URL, network: Bool) {
        self.identifier = identifier
        self.job = job
        self.queue = queue
        self.schedules = schedules
        self.network = network
    }

    private var plan: JobSchedule { JobSchedule(schedules, identifier) }

    var constraints: PersonalizationConstraints? { plan.constraints }

    func register() throws {
        let known = queue.register(identifier) { begun in
            let work = Cancellable()
            begun.onExpiration { work.cancel() }
            work.hold(Task { await self.run(begun) })
        }
        if !known {
            throw PFLError(
                .config, "the system knows no job '\(identifier)'",
                mend:
                    "put it into BGTaskSchedulerPermittedIdentifiers of the app's Info.plist, and register it once, before the app "
                    + "has started")
        }
    }

    /// The same schedule goes on, as scheduling anew would begin a new interval.
    func schedule(_ constraints: PersonalizationConstraints) throws {
        let same = plan.constraints == constraints
        try plan.put(constraints)
        // what waits in the system may be lost, by a restore of the phone for instance; so it is always asked again
        try submit(constraints, after: same ? Self.pause : 0)
    }

    func cancel() {
        plan.remove()
        queue.cancel(identifier)
    }

    private func submit(_ constraints: PersonalizationConstraints, after seconds: Double) throws {
        do {
            try queue.submit(
                identifier, earliest: Date(timeIntervalSince1970: job.clock() + seconds), power: constraints.charging,
                network: network || constraints.unmetered)
        } catch {
            throw PFLError(
                .state, "the system refuses the job '\(identifier)': \(error)",
                mend: "allow the app's background refresh in the settings; a simulator begins no jobs", cause: error)
        }
    }

    /// What the system began.
    func run(_ begun: any BackgroundJob) async {
        guard let constraints = plan.constraints else { return begun.complete(success: true) }
        // first of all, so that the schedule outlives whatever ends the process
        try? submit(constraints, after: Double(constraints.everyHours) * 3600)
        var again = true
        var success = false
        if let done = try? await job.run(constraints) {
            again = done.again
            success = !done.failed
        } else if !Task.isCancelled {
            (again, success) = (false, true)
        }
        if again, plan.constraints != nil { try? submit(constraints, after: Self.pause) }
        begun.complete(success: success)
    }
}
