import Foundation
import PFLMobile
import PFLMobileSDK

/// What the settings show.
public struct Standing: Sendable, Equatable {
    /// What a training brought.
    public struct Result: Sendable, Equatable {
        /// Right next words of the user's own sentences that were held out, between 0 and 1.
        public let before: Double
        /// The same with what was learned.
        public let after: Double
        /// Whether what was learned is in use.
        public let adopted: Bool
    }

    /// A text that is kept to learn from.
    public struct Kept: Sendable, Equatable, Identifiable {
        /// By which it is forgotten.
        public let id: Int
        /// As it was typed.
        public let text: String
    }

    /// Rounds with other phones.
    public struct Rounds: Sendable, Equatable {
        /// Its address.
        public let server: String
        /// Whether the user takes part.
        public let isOn: Bool
        /// For what the next round waits; empty when it can begin.
        public let waits: [String]
        /// Updates that were accepted.
        public let count: Int
        /// Of these.
        public let bytes: Int
        /// Epsilon of all that was sent; infinite where something was sent without protection.
        public let spent: Double
        /// The largest epsilon.
        public let budget: Double
        /// That goes with it.
        public let delta: Double
        /// Whether the server still has to be told that the user left.
        public let isLeaving: Bool
        /// Why it is not known what was sent; nil where it is.
        public let unknown: String?
        /// Why no round can be scheduled; nil where one can.
        public let trouble: String?
    }

    /// Of the last training; nil before the first.
    public let result: Result?
    /// That the model learned from the user.
    public let words: [String]
    /// The newest kept texts.
    public let examples: [Kept]
    /// Of all that are kept.
    public let exampleCount: Int
    /// For what the next training waits; empty when it can begin.
    public let waits: [String]
    /// Rounds with other phones; nil where this keyboard knows no server, or takes part in none.
    public let rounds: Rounds?
    /// Whether the user paused learning.
    public let paused: Bool
}

/// The personal model, as the keyboard and its settings use it.
///
/// iOS ends a process that is suspended with a lock in a folder that it shares, and one process at a time opens a model: so it is open
/// only while its user is on the screen, or while a background task runs.
public actor Assistant {
    private static let newest = 20
    /// The share of next words that are the model's first.
    private static let right = "top1"

    private let open: @Sendable () async throws -> PersonalModel
    private let why: @Sendable (PersonalModel) async throws -> Set<Waiting>
    private let participation: Participation?
    private var opening: Task<PersonalModel, any Error>?
    /// Why rounds cannot be scheduled; nil where they can, or need not.
    private var trouble: String?

    /// An assistant that opens its model when it is first needed.
    ///
    /// - Parameters:
    ///   - why: for what the next training waits
    ///   - participation: rounds with other phones; nil for the keyboard itself, which has no network
    ///   - open: opens the model
    public init(
        why: @escaping @Sendable (PersonalModel) async throws -> Set<Waiting> = { _ in [] },
        participation: Participation? = nil,
        open: @escaping @Sendable () async throws -> PersonalModel
    ) {
        self.open = open
        self.why = why
        self.participation = participation
        // suggestions need no rounds
        do { try participation?.reconcile() } catch { trouble = Self.said(error) }
    }

    private static func said(_ error: any Error) -> String { (error as? PFLError)?.message ?? "\(error)" }

    /// The model; where it could not be opened, the next call tries again.
    private func model() async throws -> PersonalModel {
        try Task.checkCancellation()  // who gave up must not open it again
        let task = opening ?? Task { [open] in try await open() }
        opening = task
        do {
            return try await task.value
        } catch {
            if opening == task { opening = nil }
            throw error
        }
    }

    /// The likely next words after a text, or those that complete a prefix; the likeliest first.
    public func words(_ request: Request, count: Int) async throws -> [String] {
        let model = try await model()
        if request.prefix.isEmpty { return try await model.suggest(request.context, count: count).map(\.word) }
        return try await model.complete(request.context, prefix: request.prefix, count: count)
    }

    /// Keeps a text to learn from.
    public func remember(_ text: String) async throws { try await model().remember(text) }

    /// What the settings show.
    public func standing() async throws -> Standing {
        let model = try await model()
        let status = try await model.status()
        let examples = try await model.examples(newest: Self.newest).reversed().compactMap { kept -> Standing.Kept? in
            if case .text(let text) = kept.payload { Standing.Kept(id: kept.id, text: text) } else { nil }
        }
        return Standing(
            result: status.last.map {
                Standing.Result(
                    before: $0.before[Self.right] ?? 0, after: $0.after[Self.right] ?? 0, adopted: $0.adopted)
            }, words: try await model.learnedWords(), examples: examples, exampleCount: status.examples,
            waits: try await why(model).map(\.words).sorted(),
            rounds: try await participation?.standing(model, status.rounds, trouble: trouble), paused: status.paused)
    }

    /// Trains now.
    ///
    /// - Parameter progress: is told the steps that are done
    public func train(_ progress: @escaping @Sendable (Int) -> Void) async throws {
        if case .failed(let error) = try await model().personalize({ progress($0.step) }) { throw error }
    }

    /// Forgets a word for good.
    public func forgetWord(_ word: String) async throws { try await model().forgetWord(word) }
    /// Forgets a kept text.
    public func forgetExample(_ id: Int) async throws { try await model().forgetExample(id) }
    /// Pauses learning, or goes on with it.
    public func pause(_ paused: Bool) async throws {
        let model = try await model()
        if paused { try await model.pause() } else { try await model.resume() }
    }

    /// Takes part in rounds with other phones from now on, or leaves them; the settings show what is in the way.
    public func takePart(_ on: Bool) async throws {
        guard let participation else { return }
        let model = try await model()
        trouble = nil
        do {
            if on { try participation.join() } else { try await participation.leave(model) }
        } catch let error as PFLError {
            trouble = error.message
        }
    }

    /// Back to the shipped model.
    public func revert() async throws { try await model().revert(0) }

    /// Erases all that was kept and learned; what was sent cannot be taken back.
    public func eraseEverything() async throws {
        try await model().eraseEverything()
        participation?.erased()
        trouble = nil
    }

    /// Frees the model: the process leaves the screen. The next call opens it again.
    public func close() async {
        guard let task = opening else { return }
        opening = nil
        if let model = try? await task.value { try? await model.close() }
    }
}

extension Waiting {
    /// As the settings say it.
    var words: String {
        switch self {
        case .notScheduled: "nothing is scheduled"
        case .running: "it is under way"
        case .paused: "you paused it"
        case .interval: "the last one was less than a day ago"
        case .charging: "the phone does not charge"
        case .idle: "this app is in front"
        case .unmetered: "there is no network that costs nothing"
        case .battery: "there is too little in the battery"
        case .thermal: "the phone is hot"
        case .lowPower: "the phone saves power"
        case .storage: "there is too little space left"
        case .failed: "the last one failed and is tried again"
        }
    }
}
