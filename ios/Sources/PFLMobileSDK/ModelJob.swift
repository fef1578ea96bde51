import Foundation
import PFLMobile

/// What jobs with a model have in common: they look whether the phone has time for it, when they begin and while they run, do it at
/// most once in the interval, and note how they ended.
struct ModelJob<Model: Sendable>: Sendable {
    /// How a job ended.
    struct Done: Sendable, Equatable {
        let code: String
        /// Whether the system should try again before the next interval.
        var again = false
        var failed = false

        static func failed(_ error: any Error, again: Bool = false) -> Done {
            Done(code: (error as? PFLError)?.code.rawValue ?? "\(type(of: error))", again: again, failed: true)
        }

        /// The constraints do not hold, or ceased to.
        static var unmet: Done { Done(code: "stopped", again: true) }
    }

    let kind: JobNotes.Kind
    let openWith: @Sendable () async throws -> Model
    let close: @Sendable (Model) async -> Void
    let folder: @Sendable (Model) -> URL
    /// When this was last done with the model, in seconds since 1970; nil where it must not wait for the interval.
    let last: @Sendable (Model) async throws -> Double?
    let work: @Sendable (Model) async throws -> Done
    let conditions: @Sendable () async -> DeviceConditions
    let clock: @Sendable () -> Double
    let watchEvery: Duration

    /// Does it, unless something is in the way. Nil where it was done lately.
    ///
    /// - Throws: `CancellationError`: the system took the phone back, and nothing is noted
    func run(_ constraints: PersonalizationConstraints) async throws -> Done? {
        if !constraints.unmet(await conditions()).isEmpty { return .unmet }
        let began = clock()
        let model: Model
        do {
            model = try await openWith()
        } catch let error as PFLError where error.code == .state {
            // most likely the keyboard is on the screen; there is no folder to note it in
            return Done(code: "busy", again: true)
        } catch {
            try Task.checkCancellation()
            return .failed(error, again: true)
        }
        let done: Done?
        do {
            done = try await whileMet(constraints, model)
        } catch {
            await close(model)
            throw error
        }
        await close(model)
        if let done, done != .unmet {
            let outcome = JobOutcome(began: began, ended: clock(), code: done.code, failed: done.failed)
            JobNotes(folder(model)).ended(kind, outcome)
        }
        return done
    }

    private func whileMet(_ constraints: PersonalizationConstraints, _ model: Model) async throws -> Done? {
        do {
            let last = try await last(model)
            let outcome = JobNotes(folder(model)).outcome(kind)
            if constraints.tooSoon(outcome.map { $0.since(last) } ?? last, now: clock()) { return nil }
            return try await watched(constraints) { try await work(model) }
        } catch {
            try Task.checkCancellation()  // else it was not the system
            return .failed(error)
        }
    }

    /// What a step gives, as long as the constraints hold; it is cancelled when they cease to, and ends within one step of training.
    private func watched(
        _ constraints: PersonalizationConstraints, _ step: @escaping @Sendable () async throws -> Done
    ) async throws -> Done {
        try await withThrowingTaskGroup(of: Done?.self) { group in
            group.addTask { try await step() }
            group.addTask {
                repeat { try await Task.sleep(for: watchEvery) } while constraints.unmet(await conditions()).isEmpty
                return nil
            }
            if let done = try await group.next(), let done {
                group.cancelAll()
                return done
            }
            group.cancelAll()
            do {
                // it may have ended all the same
                if let done = try await group.next(), let done { return done }
            } catch is CancellationError {
                // it ended because of that
            }
            try Task.checkCancellation()
            return .unmet
        }
    }
}
