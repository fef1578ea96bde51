import Foundation
import PFLMobile
import PFLMobileSDK

/// What the user chose about rounds with other phones. It outlives the process; jobs ask it too.
public protocol RoundsChoice: AnyObject, Sendable {
    /// Whether the user takes part.
    var takesPart: Bool { get set }
    /// Address of the rounds' server; empty where this keyboard knows none.
    var server: String { get }
}

/// Rounds with other phones, which the user turns on; the app does them in the background.
public struct Participation: Sendable {
    /// Fails closed: besides what the library asks for, nothing is sent that no noise hides, so no numbers measured on the user's
    /// sentences either.
    private static func policy() throws -> PrivacyPolicy { try PrivacyPolicy(report: false) }

    private let choice: any RoundsChoice
    private let scheduler: RoundsScheduler
    private let transport: (any Transport)?

    /// - Parameters:
    ///   - choice: of the user
    ///   - scheduler: whose `federationWith` is `federation(of:)`
    ///   - transport: to reach the server with; nil for the system's
    public init(_ choice: any RoundsChoice, _ scheduler: RoundsScheduler, transport: (any Transport)? = nil) {
        self.choice = choice
        self.scheduler = scheduler
        self.transport = transport
    }

    /// Where the user takes part now; nil where nowhere.
    public static func federation(of choice: any RoundsChoice, transport: (any Transport)? = nil) throws -> Federation?
    {
        choice.takesPart && !choice.server.isEmpty ? try federation(at: choice.server, transport) : nil
    }

    /// A user who leaves does not wait long.
    private static func federation(at server: String, _ transport: (any Transport)?) throws -> Federation {
        try Federation(
            server, policy: try policy(), patienceS: 0, transport: transport, backoff: Backoff(attempts: 2))
    }

    /// Takes part from now on.
    func join() throws {
        // an address that is none is refused before anything else
        _ = try Self.federation(at: choice.server, transport)
        // before the job, which asks for it
        choice.takesPart = true
        do {
            try scheduler.schedule()
        } catch {
            choice.takesPart = false
            throw error
        }
    }

    /// Leaves; where the server is out of reach, a job of the library tells it later.
    func leave(_ model: PersonalModel) async throws {
        choice.takesPart = false
        scheduler.cancel()
        if choice.server.isEmpty { return }
        let left = try await scheduler.leave(model, try Self.federation(at: choice.server, transport))
        if case .failed(let error) = left { throw error }
    }

    /// Has a job of rounds where the user wants one, and none where not: the process may have ended between the two.
    func reconcile() throws {
        if choice.takesPart && !choice.server.isEmpty {
            do {
                _ = try Self.federation(at: choice.server, transport)
                try scheduler.schedule()
            } catch {
                scheduler.cancel()
                throw error
            }
        } else if !scheduler.isLeaving {
            scheduler.cancel()
        }
    }

    /// A job that still has to leave has no credential for it any more once everything is erased.
    func erased() {
        choice.takesPart = false
        scheduler.cancel()
    }

    /// What the settings show of it; nil where this keyboard knows no server.
    ///
    /// - Parameter trouble: why no round can be scheduled; nil where one can
    func standing(_ model: PersonalModel, _ given: RoundsStatus?, trouble: String?) async throws -> Standing.Rounds? {
        if choice.server.isEmpty { return nil }
        let isOn = choice.takesPart
        return Standing.Rounds(
            server: choice.server, isOn: isOn,
            waits: isOn ? try await scheduler.whyWaiting(model).map(\.words).sorted() : [], count: given?.rounds ?? 0,
            bytes: given?.bytesSent ?? 0, spent: given?.spent.epsilon ?? 0, budget: try Self.policy().maxEpsilon,
            delta: given?.spent.delta ?? 0, isLeaving: scheduler.isLeaving, unknown: given?.problem?.message,
            trouble: trouble)
    }
}
