import Foundation

/// The engine, loaded when it is first needed and let go when it was idle for a while. One call runs at a time, in the order in
/// which they came: a suggestion waits for one step of training at most.
final class EngineRoom: Sendable {
    private struct State {
        var session: (any EngineSession)?
        var users = 0
        var uses = 0
        var closed = false
    }

    private let idleMs: Int
    private let load: @Sendable () throws -> any EngineSession
    private let state = Locked(State())
    private let turn = FairLock()

    /// - Parameter idleMs: 0 lets it go after each use
    init(idleMs: Int, load: @escaping @Sendable () throws -> any EngineSession) {
        self.idleMs = idleMs
        self.load = load
    }

    /// Whether the engine's memory is in use.
    var isOpen: Bool { state { $0.session != nil } }

    /// What `body` gives; the session is not let go meanwhile.
    func use<Result>(_ body: (any EngineSession) throws -> Result) throws -> Result {
        let session = try enter()
        defer { leave() }
        return try body(session)
    }

    func enter() throws -> any EngineSession {
        try state { state in
            if state.closed { throw closedModel() }
            let found = try state.session ?? InTurn(try load(), turn)
            state.session = found
            state.users += 1
            state.uses += 1
            return found
        }
    }

    func leave() {
        let uses: Int? = state { state in
            state.users -= 1
            if state.users > 0 { return nil }
            if state.closed || idleMs == 0 {
                state.session = nil
                return nil
            }
            return state.uses
        }
        guard let uses else { return }
        DispatchQueue.global(qos: .utility).asyncAfter(deadline: .now() + .milliseconds(idleMs)) { [weak self] in
            self?.state { if $0.users == 0 && $0.uses == uses { $0.session = nil } }
        }
    }

    /// Lets the engine go, after the calls that are under way.
    func close() {
        state { state in
            state.closed = true
            if state.users == 0 { state.session = nil }
        }
    }

    private final class InTurn: EngineSession {
        private let session: any EngineSession
        private let turn: FairLock

        init(_ session: any EngineSession, _ turn: FairLock) {
            self.session = session
            self.turn = turn
        }

        var name: String { session.name }
        var programs: [String: ProgramSpec] { session.programs }

        func run(_ program: String, _ inputs: TensorSet) throws -> TensorSet {
            try turn.withLock { try session.run(program, inputs) }
        }
    }
}

func closedModel() -> PFLError {
    PFLError(.state, "the personal model is closed", mend: "open it again")
}
