import Foundation
import PFLMobile
import PFLMobileSDK

/// What the settings show.
public struct Standing: Sendable, Equatable {
    public struct Result: Sendable, Equatable {
        /// Right next words of the user's own sentences that were held out, between 0 and 1.
        public let before: Double
        public let after: Double
        public let adopted: Bool
    }

    public struct Kept: Sendable, Equatable, Identifiable {
        public let id: Int
        public let text: String
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
    private var opening: Task<PersonalModel, any Error>?

    /// An assistant that opens its model when it is first needed.
    ///
    /// - Parameters:
    ///   - why: for what the next training waits
    ///   - open: opens the model
    public init(
        why: @escaping @Sendable (PersonalModel) async throws -> Set<Waiting> = { _ in [] },
        open: @escaping @Sendable () async throws -> PersonalModel
    ) {
        self.open = open
        self.why = why
    }

    /// The model; where it could not be opened, the next call tries again.
    private func model() async throws -> PersonalModel {
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
            waits: try await why(model).map(\.words).sorted(), paused: status.paused)
    }

    /// Trains now.
    ///
    /// - Parameter progress: is told the steps that are done
    public func train(_ progress: @escaping @Sendable (Int) -> Void) async throws {
        if case .failed(let error) = try await model().personalize({ progress($0.step) }) { throw error }
    }

    public func forgetWord(_ word: String) async throws { try await model().forgetWord(word) }
    public func forgetExample(_ id: Int) async throws { try await model().forgetExample(id) }
    public func pause(_ paused: Bool) async throws {
        let model = try await model()
        if paused { try await model.pause() } else { try await model.resume() }
    }

    /// Back to the shipped model.
    public func revert() async throws { try await model().revert(0) }
    public func eraseEverything() async throws { try await model().eraseEverything() }

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
