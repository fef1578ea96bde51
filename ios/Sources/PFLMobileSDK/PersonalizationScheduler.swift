import Foundation
import PFLMobile

/// Lets the system start training when the phone has time for it. The schedule outlives the process and a restart of the phone.
///
/// One process at a time opens a model: while a keyboard has it open, a job ends at once and is tried again later.
///
///     let scheduler = PersonalizationScheduler(identifier: "com.example.personalization") { try await openModel() }
///     try scheduler.register()  // before the app has started
///     try scheduler.schedule()  // whenever the user agrees; at each start is fine
public final class PersonalizationScheduler: Sendable {
    private let scheduler: Scheduler<PersonalModel>

    init(
        _ identifier: String, openWith: @escaping @Sendable () async throws -> PersonalModel,
        queue: any BackgroundQueue,
        schedules: URL, conditions: @escaping @Sendable () async -> DeviceConditions
    ) {
        let job = ModelJob<PersonalModel>(
            kind: .personalization, openWith: openWith, close: { try? await $0.close() }, folder: { $0.folder },
            last: { try await $0.status().last?.at }, work: { try await PersonalizationScheduler.train($0) },
            conditions: conditions, clock: { Date().timeIntervalSince1970 }, watchEvery: .seconds(2))
        scheduler = Scheduler(identifier, job, queue: queue, schedules: schedules, network: false)
    }

    private static func train(_ model: PersonalModel) async throws -> ModelJob<PersonalModel>.Done {
        switch try await model.personalize() {
        case .adopted: return .init(code: "adopted")
        case .kept: return .init(code: "kept")
        case .notEnoughExamples: return .init(code: "not-enough-examples")
        case .paused: return .init(code: "paused")
        case .cancelled: return .init(code: "cancelled")
        case .failed(let error):
            // a training that the app itself began
            let busy = try await model.status().training
            return busy && error.code == .state ? .init(code: "busy", again: true) : .failed(error)
        }
    }

    /// Tells the system what to do when it begins the job. Call it once, before the app has started.
    ///
    /// - Throws: `.config`: the app's Info.plist does not permit the identifier, or it is registered already
    public func register() throws { try scheduler.register() }

    /// Trains again and again, at most once in the interval of the constraints. The same schedule goes on; another one is replaced.
    ///
    /// - Throws: `.state`: the system refuses the job; `.storageFull` or `.unwritable`: the schedule cannot be kept
    public func schedule(_ constraints: PersonalizationConstraints? = nil) throws {
        try scheduler.schedule(try constraints ?? PersonalizationConstraints())
    }

    /// Ends the schedule; training that runs as a job goes on to its end.
    public func cancel() { scheduler.cancel() }

    /// For what the next training waits; empty where it only waits for the system.
    ///
    /// - Throws: `.state`: the model is closed
    public func whyWaiting(_ model: PersonalModel) async throws -> Set<Waiting> {
        let status = try await model.status()
        return waiting(
            training: status.training, paused: status.paused, constraints: scheduler.constraints, last: status.last?.at,
            outcome: lastJob(model), conditions: await scheduler.job.conditions(), now: scheduler.job.clock())
    }

    /// How the last job of a model ended; nil before the first, and after everything was erased.
    public func lastJob(_ model: PersonalModel) -> JobOutcome? { JobNotes(model.folder).outcome(.personalization) }
}
