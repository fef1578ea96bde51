/// A lock for tasks, which are let in in the order in which they came; no thread waits.
final class AsyncMutex: Sendable {
    private struct State {
        var isHeld = false
        var waiting: [(ticket: Int, continuation: CheckedContinuation<Void, any Error>)] = []
        var tickets = 0
        /// Cancelled before they waited.
        var gone: Set<Int> = []
    }

    private let state = Locked(State())

    /// What `body` gives, with no other at it.
    ///
    /// - Parameter cancellable: whether a task that is cancelled while it waits gives up
    /// - Throws: `CancellationError`; what `body` throws
    func withLock<Result: Sendable>(
        cancellable: Bool = true, isolation: isolated (any Actor)? = #isolation, _ body: () async throws -> Result
    ) async throws -> Result {
        if cancellable { try await enter() } else { try await Task { try await enter() }.value }
        defer { leave() }
        return try await body()
    }

    private func enter() async throws {
        try Task.checkCancellation()
        let ticket = state { state in
            state.tickets += 1
            return state.tickets
        }
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                let answer: Swift.Result<Void, any Error>? = state { state in
                    if state.gone.remove(ticket) != nil { return .failure(CancellationError()) }
                    if !state.isHeld {
                        state.isHeld = true
                        return .success(())
                    }
                    state.waiting.append((ticket, continuation))
                    return nil
                }
                if let answer { continuation.resume(with: answer) }
            }
        } onCancel: {
            let waiting = state { state in
                guard let place = state.waiting.firstIndex(where: { $0.ticket == ticket }) else {
                    state.gone.insert(ticket)
                    return nil as CheckedContinuation<Void, any Error>?
                }
                return state.waiting.remove(at: place).continuation
            }
            waiting?.resume(throwing: CancellationError())
        }
        // Cancelled just as it was let in: it is in, and nobody keeps its ticket.
        state { _ = $0.gone.remove(ticket) }
    }

    private func leave() {
        let next = state { state in
            if state.waiting.isEmpty {
                state.isHeld = false
                return nil as CheckedContinuation<Void, any Error>?
            }
            return state.waiting.removeFirst().continuation
        }
        next?.resume()
    }
}
