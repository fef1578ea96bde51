import Foundation
import PFLMobile

/// Lets the system take part in rounds with a model when the phone has time and a network that costs nothing. The schedule outlives the
/// process and a restart of the phone. What the device keeps of the federation, its credential too, lies in the model's own folder, of
/// which there is no backup.
///
///     let rounds = RoundsScheduler(identifier: "com.example.rounds", openWith: openModel) {
///         userTakesPart ? try Federation("https://pfl.example.org") : nil
///     }
///     try rounds.register()  // before the app has started
///     try rounds.schedule()  // when the user agreed, and at each start
public final class RoundsScheduler: Sendable {
    private let scheduler: Scheduler<PersonalModel>
    private let leaving: JobSchedule

    init(
        _ identifier: String, openWith: @escaping @Sendable () async throws -> PersonalModel,
        federationWith: @escaping @Sendable () async throws -> Federation?, queue: any BackgroundQueue, schedules: URL,
        conditions: @escaping @Sendable () async -> DeviceConditions
    ) {
        let leaving = JobSchedule(schedules, "\(identifier).leave")
        self.leaving = leaving
        let job = ModelJob<PersonalModel>(
            kind: .rounds, openWith: openWith, close: { try? await $0.close() }, folder: { $0.folder },
            last: { leaving.constraints == nil ? try await $0.status().rounds?.asked : nil },
            work: { model in
                let federation = try await federationWith()
                if leaving.constraints != nil { return try await Self.leave(model, federation, leaving) }
                guard let federation else { return .init(code: "not-taking-part") }
                let result = try await model.takePart(federation, facts: DeviceFacts(await conditions()))
                return Self.done(result, training: try await model.status().training)
            }, conditions: conditions, clock: { Date().timeIntervalSince1970 }, watchEvery: .seconds(2))
        scheduler = Scheduler(identifier, job, queue: queue, schedules: schedules, network: true)
    }

    static func done(_ result: RoundsResult, training: Bool) -> ModelJob<PersonalModel>.Done {
        switch result {
        case .tookPart: .init(code: "took-part")
        case .noRound: .init(code: "no-round")
        case .notProtected: .init(code: "not-protected")
        case .notEnoughExamples: .init(code: "not-enough-examples")
        case .paused: .init(code: "paused")
        case .cancelled: .init(code: "cancelled")
        case .unreachable(let error, _): .failed(error, again: true)
        case .refused(let error): .failed(error)
        // a training that the app itself began
        case .failed(let error): training && error.code == .state ? .init(code: "busy", again: true) : .failed(error)
        }
    }

    private static func leave(
        _ model: PersonalModel, _ federation: Federation?, _ leaving: JobSchedule
    ) async throws -> ModelJob<PersonalModel>.Done {
        // also where the app knows of none any more
        guard let server = try await model.status().rounds?.leaving.first ?? federation?.server else {
            leaving.remove()
            return .init(code: "left")
        }
        switch try await model.leave(try federation ?? Federation(server)) {
        case .left, .notThere:
            leaving.remove()
            return .init(code: "left")
        case .unreachable(let error): return .failed(error, again: true)
        case .failed(let error): return .failed(error)
        }
    }

    /// Tells the system what to do when it begins the job. Call it once, before the app has started.
    ///
    /// - Throws: `.config`: the app's Info.plist does not permit the identifier, or it is registered already
    public func register() throws { try scheduler.register() }

    /// Asks for a task again and again, at most once in the interval of the constraints, and does it. The same schedule goes on; another
    /// one is replaced.
    ///
    /// - Parameter constraints: by default with a network that costs nothing
    /// - Throws: `.state`: the system refuses the job; `.storageFull` or `.unwritable`: the schedule cannot be kept
    public func schedule(_ constraints: PersonalizationConstraints? = nil) throws {
        leaving.remove()
        try scheduler.schedule(try constraints ?? PersonalizationConstraints(unmetered: true))
    }

    /// Ends the schedule. The device stays enrolled: see `leave`.
    public func cancel() {
        leaving.remove()
        scheduler.cancel()
    }

    /// Ends the schedule and the membership; see `PersonalModel.leave`. Where the aggregator cannot be reached, a job leaves as soon as
    /// there is a network, and tries until it has; `cancel` ends that too.
    ///
    /// - Throws: as `PersonalModel.leave`; `.state`: the system refuses the job
    @discardableResult
    public func leave(_ model: PersonalModel, _ federation: Federation) async throws -> LeaveResult {
        // before the first try, as the process may end in it
        let always = try PersonalizationConstraints(
            charging: false, idle: false, minBatteryPercent: 0, cool: false, fullPower: false, minFreeBytes: 0)
        try leaving.put(always)
        try scheduler.schedule(always)
        let result = try await model.leave(federation)
        if case .unreachable = result { return result }
        cancel()
        return result
    }

    /// Whether a job still has to tell the aggregator that the device left; see `leave`.
    public var isLeaving: Bool { leaving.constraints != nil }

    /// For what the next round waits; empty where it only waits for the system.
    ///
    /// - Throws: `.state`: the model is closed
    public func whyWaiting(_ model: PersonalModel) async throws -> Set<Waiting> {
        let status = try await model.status()
        return waiting(
            training: status.training, paused: status.paused, constraints: isLeaving ? nil : scheduler.constraints,
            last: status.rounds?.asked, outcome: lastJob(model), conditions: await scheduler.job.conditions(),
            now: scheduler.job.clock())
    }

    /// How the last job of a model ended; nil before the first, and after everything was erased.
    public func lastJob(_ model: PersonalModel) -> JobOutcome? { JobNotes(model.folder).outcome(.rounds) }
}

extension DeviceFacts {
    /// What a phone tells an aggregator of itself, so that it is asked only when it can.
    public init(_ now: DeviceConditions) {
        let version = ProcessInfo.processInfo.operatingSystemVersion
        self.init(
            platform: "ios-\(version.majorVersion)", idle: !now.isInUse, charging: now.isCharging,
            unmetered: now.isUnmetered,
            freeBytes: now.freeBytes)
    }
}
