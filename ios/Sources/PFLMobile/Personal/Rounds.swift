import Foundation

/// The part of a personal model that is a device of a federation. Its folder is opened when it is first needed, so that a damaged
/// one keeps nobody from the model. Whoever changes something holds the model's own lock; while a device runs, the folder is its
/// alone, and others see what it last looked like.
final class Rounds: @unchecked Sendable {
    private let home: String
    private let id: ModelId
    private let state: PersonalStateStore
    private let clock: @Sendable () -> Double
    private let notes: ServeNotes

    private struct Content {
        var opened: DeviceFolder?
        var closed = false
        var isRunning = false
        /// What it last looked like, while a device runs.
        var last: RoundsStatus?
        var toLeave: [Membership] = []
        /// Those that were told while a device ran.
        var told: [Membership] = []
    }

    private let content = Locked(Content())

    /// - Parameters:
    ///   - home: where the device's folder lies, or will
    ///   - state: the model's
    init(_ home: String, _ id: ModelId, _ state: PersonalStateStore, _ clock: @escaping @Sendable () -> Double) {
        self.home = home
        self.id = id
        self.state = state
        self.clock = clock
        notes = ServeNotes("\(home)/\(DeviceFolder.servesName)")
    }

    /// What predictions use of a version that a round made; nil for any other.
    func serves(_ version: Int) -> Serve? { notes.of(version) }

    /// Versions that are gone may have their numbers given anew.
    func keepServes() throws { try notes.keep(try state.numbers()) }

    private func isThere() throws -> Bool { try diskErrors(home) { try PFLMobile.status(home) } != nil }

    private func folder(_ content: inout Content) throws -> DeviceFolder {
        if content.closed { throw closedModel() }
        let found = try content.opened ?? DeviceFolder(home, model: id, shared: state)
        content.opened = found
        return found
    }

    // ---- what it looks like

    /// What was given away; nil before the first time.
    func status() throws -> RoundsStatus? {
        try content { content in
            if content.closed { throw closedModel() }
            if content.isRunning { return content.last }
            if try !isThere() { return nil }
            do {
                return try Rounds.look(try folder(&content))
            } catch let error as PFLError {
                return RoundsStatus(
                    server: nil, rounds: 0, bytesSent: 0, waiting: 0, asked: nil, spent: .unknown, problem: error)
            }
        }
    }

    private static func look(_ folder: DeviceFolder) throws -> RoundsStatus {
        let spent = folder.spent
        let own = folder.ownEpsilon(Limits.deviceDelta)
        let promised = spent.promised
        return RoundsStatus(
            server: folder.membership?.server, rounds: spent.rounds, bytesSent: spent.bytes,
            waiting: try folder.waiting,
            asked: spent.asked,
            spent: PrivacySpent(
                epsilon: spent.unprotected > 0 ? .infinity : own + promised.epsilon,
                delta: promised.delta + (own > 0 ? Limits.deviceDelta : 0), own: own, promised: promised.epsilon,
                unprotected: spent.unprotected),
            leaving: folder.toLeave.map(\.server))
    }

    /// Whether something is finished that only has to be sent.
    var waits: Bool {
        get throws { try content { content in try isThere() && folder(&content).waiting > 0 } }
    }

    // ---- while a device runs

    /// The folder, for a device alone until `finish`.
    func begin() throws -> DeviceFolder {
        try content { content in
            let found = try folder(&content)
            content.isRunning = true
            content.last = try? Rounds.look(found)
            content.toLeave = found.toLeave
            return found
        }
    }

    /// What others see of the folder from now on.
    func show(_ folder: DeviceFolder) {
        guard let now = try? Rounds.look(folder) else { return }
        content {
            $0.last = now
            $0.toLeave = folder.toLeave
        }
    }

    func finish(_ folder: DeviceFolder) {
        content { content in
            content.isRunning = false
            for ended in content.told { try? folder.left(ended) }
            content.told = []
        }
    }

    // ---- leaving

    /// Ends the membership on this device; whether some aggregator is to be told.
    func end() throws -> Bool {
        if try !isThere() { return false }
        try discard()
        return try content { content in
            let folder = try folder(&content)
            try folder.leaveLater()
            return !folder.toLeave.isEmpty
        }
    }

    /// Aggregators that were left and are to be told.
    var toLeave: [Membership] {
        get throws { try content { try $0.isRunning ? $0.toLeave : folder(&$0).toLeave } }
    }

    /// An aggregator was told.
    func told(_ ended: Membership) throws {
        try content { content in
            if content.closed { return }
            if content.isRunning {
                content.told.append(ended)
            } else {
                try folder(&content).left(ended)
            }
        }
    }

    // ---- what the user controls

    /// What was made of examples that are to be forgotten is sent no more.
    func discard() throws {
        if try !isThere() { return }
        do {
            try content { try folder(&$0).discardWaiting() }
        } catch let error as PFLError where error.damaged {
            // What another uses, or what may be readable another time, is not thrown away.
            try erase()
        }
    }

    /// Makes an earlier version of the personal state serve, which what waits does not undo; returns its number.
    func revert(_ version: Int?) throws -> Int {
        if try !isThere() { return try state.revert(version) }
        do {
            return try content { try folder(&$0).revert(version) }
        } catch let error as PFLError where error.damaged {
            return try state.revert(version)  // nothing of it can be used
        }
    }

    /// Removes everything but how much was sent.
    func erase() throws {
        try content { content in
            content.opened?.close()
            content.opened = nil
            try DeviceFolder.clear(home)
        }
    }

    /// Nothing opens it afterwards.
    func close() {
        content { content in
            content.closed = true
            content.opened?.close()
            content.opened = nil
        }
    }
}

/// A thread of its own for an actor that blocks.
private final class OwnThread: SerialExecutor {
    private let queue = DispatchQueue(label: "pfl-mobile.rounds", qos: .utility)

    @available(macOS 14.0, iOS 17.0, *)
    func enqueue(_ job: consuming ExecutorJob) { enqueue(UnownedJob(job)) }

    func enqueue(_ job: UnownedJob) {
        queue.async { job.runSynchronously(on: self.asUnownedSerialExecutor()) }
    }

    func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }
}

/// Does what a device of a federation does, which computes and blocks, away from the threads of tasks.
actor RoundsWorker {
    private let thread = OwnThread()

    nonisolated var unownedExecutor: UnownedSerialExecutor { thread.asUnownedSerialExecutor() }

    /// One to learn from, one for the guard, one to test on.
    private static let fewest = 3

    /// One check-in and its task, or so many accepted updates as `count` says. A membership at another server ends first.
    ///
    /// - Throws: `CancellationError`
    func takePart(
        _ room: ModelRoom, _ federation: Federation, _ facts: DeviceFacts, _ count: Int?,
        _ onEvent: @escaping @Sendable (Event) -> Void
    ) async throws -> RoundsResult {
        let result: RoundsResult
        do {
            result = try await taken(room, federation, facts, count, onEvent)
        } catch let error as PFLError {
            result = .failed(error)
        } catch {
            try room.load()
            throw error
        }
        do {
            try room.load()
        } catch let error as PFLError {
            return .failed(error)
        }
        return result
    }

    private func taken(
        _ room: ModelRoom, _ federation: Federation, _ facts: DeviceFacts, _ count: Int?,
        _ onEvent: @escaping @Sendable (Event) -> Void
    ) async throws -> RoundsResult {
        try Task.checkCancellation()
        if room.isClosed { throw closedModel() }
        let given = room.asExamples(try room.usable())
        let few = given.size < RoundsWorker.fewest
        if try few && !room.rounds.waits { return .notEnoughExamples(have: given.size) }
        let session = try EngineOnDemand(room)
        let result: RoundsResult
        do {
            let model = try Model.unchecked(room.bundle, session)
            let folder = try room.rounds.begin()
            do {
                result = try await taken(room, federation, facts, count, onEvent, model, given, folder, few)
            } catch {  // no `defer`, which ends Swift 6.0's compiler here
                room.rounds.finish(folder)
                throw error
            }
            room.rounds.finish(folder)
        } catch {
            session.close()
            throw error
        }
        session.close()
        return result
    }

    private func taken(
        _ room: ModelRoom, _ federation: Federation, _ facts: DeviceFacts, _ count: Int?,
        _ onEvent: @escaping @Sendable (Event) -> Void, _ model: Model, _ given: Examples, _ folder: DeviceFolder,
        _ few: Bool
    ) async throws -> RoundsResult {
        let client = try federation.client()
        if let membership = folder.membership, membership.server != client.server { try folder.leaveLater() }
        for ended in folder.toLeave {
            do {
                try await PFLMobile.leave(ended, try federation.client(of: ended.server, Backoff(attempts: 1)))
                try folder.left(ended)
            } catch is PFLError {
                continue  // it is told another time
            }
        }
        var why = ""
        let device = Device(
            model, given, folder, client, policy: federation.policy, test: room.options.test, facts: facts,
            group: federation.group, token: federation.token, attest: federation.attest, patienceS: federation.patienceS
        ) { event in
            if case .declined(_, _, let said) = event { why = said }
            if case .stepped = event {} else { room.rounds.show(folder) }
            onEvent(event)
        }
        do {
            let summary = try await device.run(rounds: count, once: count == nil, until: { few })
            if !few { try folder.spent.asked(at: room.clock()) }
            if summary.ended == .privacy { return .notProtected(summary, why: why) }
            if summary.rounds > 0 { return .tookPart(summary) }
            return few ? .notEnoughExamples(have: given.size) : .noRound(summary)
        } catch let error as PFLError {
            if passes(error) { return .unreachable(error, waiting: (try? folder.waiting) ?? 0) }
            return error.isA(.serverProblem) ? .refused(error) : .failed(error)
        }
    }

    /// Tells the aggregators that were left, each with its own credential; nothing else waits for it.
    ///
    /// - Throws: `CancellationError`; `.deviceFolder`, `.unwritable`, `.storageFull`: the folder cannot be used
    func tell(_ room: ModelRoom, _ federation: Federation) async throws -> LeaveResult {
        var fault: PFLError?
        for ended in try room.rounds.toLeave {
            do {
                try await PFLMobile.leave(ended, try federation.client(of: ended.server, federation.backoff))
                try room.rounds.told(ended)
            } catch let error as PFLError {
                fault = fault ?? error
            }
        }
        guard let fault else { return .left }
        return passes(fault) ? .unreachable(fault) : .failed(fault)
    }

    private func passes(_ error: PFLError) -> Bool {
        error.passing || error.isA(.notTheAggregator) || error.isA(.tooLargeOnTheWay)
    }
}

/// The engine, from the first call on, which checks it. Where the work was stopped, no golden call and no batch of a measurement
/// begins; between steps the trainer looks itself, and keeps a checkpoint. It is one task's.
private final class EngineOnDemand: EngineSession, @unchecked Sendable {
    private let room: ModelRoom
    private var entered: (any EngineSession)?
    private let first: String
    var name: String { entered?.name ?? first }
    let programs: [String: ProgramSpec]

    init(_ room: ModelRoom) throws {
        self.room = room
        let manifest = room.bundle.manifest
        // Where there is none for this bundle, opening says so.
        first =
            try room.options.engines.first { manifest.engines[$0.name] != nil }?.name ?? room.engine.use { $0.name }
        programs = Dictionary(manifest.programs.map { ($0.name, $0) }) { first, _ in first }
    }

    func run(_ program: String, _ inputs: TensorSet) throws -> TensorSet {
        let session = try entered ?? checked()
        if program == "evaluate" { try Task.checkCancellation() }
        return try session.run(program, inputs)
    }

    private func checked() throws -> any EngineSession {
        let session = try room.engine.enter()
        do {
            try goldenCheck(room.bundle, Watched(session) { _ in try Task.checkCancellation() }).require()
        } catch {
            room.engine.leave()
            throw error
        }
        entered = session
        return session
    }

    func close() {
        if entered != nil { room.engine.leave() }
        entered = nil
    }
}
