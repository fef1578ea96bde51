import Foundation

/// What a device tells at check-in, so that it is asked only when it can; none of it identifies a person.
public struct DeviceFacts: Sendable {
    /// For instance `ios-18`; at most 40 characters.
    public var platform: String
    /// Whether nobody uses the device now.
    public var idle: Bool
    /// Whether it is connected to power.
    public var charging: Bool
    /// Whether its network costs nothing.
    public var unmetered: Bool
    /// On the disk; nil is not told.
    public var freeBytes: Int?

    /// Facts.
    public init(
        platform: String = "", idle: Bool = true, charging: Bool = true, unmetered: Bool = true, freeBytes: Int? = nil
    ) {
        self.platform = platform
        self.idle = idle
        self.charging = charging
        self.unmetered = unmetered
        self.freeBytes = freeBytes
    }
}

/// Makes a verdict of the platform (App Attest), where a federation asks for one.
public protocol Attest: Sendable {
    /// A verdict that is bound to the challenge.
    ///
    /// - Parameter kinds: of which the federation takes one
    func attest(challenge: String, kinds: [String]) async throws -> AttestVerdict
}

/// What the platform said.
public struct AttestVerdict: Sendable {
    /// One of the kinds that were asked for.
    public let kind: String
    /// The verdict itself.
    public let verdict: String

    /// A verdict.
    public init(kind: String, verdict: String) {
        self.kind = kind
        self.verdict = verdict
    }
}

/// One device of a federation: enrol, send what waits, check in, train, repeat.
///
/// ```swift
/// let model = try Model.open(bundle, session)  // runs the golden batch
/// let folder = try DeviceFolder(files, model: model.id)
/// let client = try Client("https://pfl.example.org")
/// try await Device(model, .texts(texts), folder, client).run(rounds: 3)
/// ```
///
/// A process may be killed and the network may be lost at any moment: a task that was begun is given out again and trained again
/// from the same state, an update that is finished waits in the folder, and sending it twice counts once. One call at a time.
///
/// It computes where it is called, for seconds or minutes at a time: call it from a task or an actor of its own, not from the main
/// actor.
public final class Device {
    private let model: Model
    private let folder: DeviceFolder
    private let client: Client
    private let group: String
    private let token: String?
    private let attest: (any Attest)?
    private let patienceS: Double?
    private let onEvent: (Event) -> Void
    private let clock: () -> Double
    private let pipeline: Pipeline
    private let facts: Facts
    private let counts = Counts()
    private let outbox: Outbox

    /// Failures in a row, and when they began.
    private var offline: (failures: Int, since: Double)?

    private static let sdk = "pfl-mobile-swift/0.1.0"
    private static let leastWaitS = 0.05
    private static let updateAggregator = "update the aggregator"

    /// A device.
    ///
    /// - Parameters:
    ///   - model: checked programs
    ///   - examples: of the user, oldest first
    ///   - folder: what the device keeps
    ///   - client: the aggregator
    ///   - policy: what must protect updates; by default something must
    ///   - test: share of the examples, the newest, for evaluation reports; never trained on
    ///   - facts: told at check-in
    ///   - group: the device's group, where the federation has groups
    ///   - token: for enrolment, where one is needed
    ///   - attest: makes the platform's verdict, where one is needed
    ///   - patienceS: seconds that the aggregator may be out of reach; nil is for ever
    ///   - onEvent: told what happens, where `run` was called
    public convenience init(
        _ model: Model, _ examples: Examples, _ folder: DeviceFolder, _ client: Client,
        policy: PrivacyPolicy = PrivacyPolicy(), test: Double = 0.2, facts: DeviceFacts = DeviceFacts(),
        group: String = "", token: String? = nil, attest: (any Attest)? = nil, patienceS: Double? = nil,
        onEvent: @escaping (Event) -> Void = { _ in }
    ) {
        self.init(
            model, examples, folder, client, policy: policy, test: test, facts: facts, group: group, token: token,
            attest: attest, patienceS: patienceS, onEvent: onEvent, clock: { Date().timeIntervalSince1970 }, noise: nil)
    }

    init(
        _ model: Model, _ examples: Examples, _ folder: DeviceFolder, _ client: Client, policy: PrivacyPolicy,
        test: Double, facts: DeviceFacts, group: String, token: String?, attest: (any Attest)?, patienceS: Double?,
        onEvent: @escaping (Event) -> Void, clock: @escaping () -> Double, noise: (any Noise)?
    ) {
        self.model = model
        self.folder = folder
        self.client = client
        self.group = group
        self.token = token
        self.attest = attest
        self.patienceS = patienceS
        self.onEvent = onEvent
        self.clock = clock
        var told = Facts()
        told.engine = String(model.engine.prefix(40))
        told.platform = String(facts.platform.unicodeScalars.prefix(40).map(Character.init))
        told.sdk = Device.sdk
        told.idle = facts.idle
        told.charging = facts.charging
        told.unmetered = facts.unmetered
        told.freeBytes = facts.freeBytes
        self.facts = told
        pipeline = Pipeline(model, examples, folder, policy: policy, test: test, noise: noise)
        outbox = Outbox(folder, client, pipeline, counts, tell: onEvent, clock: clock)
    }

    /// Takes part. A cancelled task stops within one step, after a checkpoint; the round's task stays this device's until its
    /// deadline.
    ///
    /// - Parameters:
    ///   - rounds: end after so many accepted updates; nil: when the federation trains no more
    ///   - once: check in once; do the task if there is one, and wait for none
    ///   - until: asked between tasks; true ends
    /// - Throws: `.serverProblem`: the aggregator will not have this device (revoked, enrolment refused, another model);
    ///   `.unreachable`: out of reach for longer than `patienceS`; what is finished waits in the folder; `.notTheAggregator`:
    ///   something else answers at the address, or at a part of it. Where the aggregator was heard from before and no longer is,
    ///   the network may have changed, as a phone's does: then only after `patienceS`, but with `once` at once;
    ///   `.tooLargeOnTheWay`: something between does not let the update pass; it waits in the folder; `.engine`: this device
    ///   cannot train; `.protocol`: the aggregator's answer is none of this protocol; `.device`: the federation trains another
    ///   model, or asks for an attestation that there is none of; `.deviceFolder`: the folder belongs to a device of another
    ///   server, or is damaged; `CancellationError`
    @discardableResult
    public func run(
        rounds: Int? = nil, once: Bool = false, until: () -> Bool = { false },
        isolation: isolated (any Actor)? = #isolation
    ) async throws -> Summary {
        if folder.running {
            throw PFLError(
                .deviceFolder, "a device runs in \(folder.directory) already", mend: "wait until it has ended")
        }
        folder.running = true
        let ended: Ended
        do {
            ended = try await takePart(rounds, once, until)
        } catch {  // no `defer`, which ends Swift 6.0's compiler in a function with an isolated parameter
            folder.running = false
            throw error
        }
        folder.running = false
        return Summary(
            ended: ended, rounds: counts.rounds, declined: counts.declined, dropped: counts.dropped,
            bytesUp: client.traffic.up, bytesDown: client.traffic.down)
    }

    private func takePart(
        _ rounds: Int?, _ once: Bool, _ until: () -> Bool, isolation: isolated (any Actor)? = #isolation
    ) async throws -> Ended {
        try outbox.goOn()
        var joined = false
        var asked = false
        var blocked = 0  // times in a row that a part of the address alone was not the aggregator's
        while true {
            try Task.checkCancellation()
            do {
                if !joined {
                    try await join()
                    joined = true
                }
                try await outbox.flush()
                if let rounds, counts.rounds >= rounds { return .rounds }
                if once && asked { return .once }
                if until() { return .until }
                let ended = try await step(once)
                asked = true
                offline = nil
                blocked = 0
                if let ended { return ended }
            } catch let error as PFLError where error.isA(.notTheAggregator) {
                if once || !client.reached { throw error }
                blocked = try await answers() ? blocked + 1 : 0
                if blocked > 1 { throw error }  // the first time, a sign-in may have been in between
                try await waitOffline(error)
            } catch let error as PFLError where error.passing {
                try await waitOffline(error)
            }
        }
    }

    /// Fetches the newest shared values and measures them on the test part; nothing of it is sent.
    ///
    /// - Throws: `.unreachable`, `.serverProblem`: they could not be fetched; `.noExamples`: there is nothing to measure on
    @discardableResult
    public func measure(isolation: isolated (any Actor)? = #isolation) async throws -> Event.Measured {
        try await join()
        let latest = try await client.latest()
        guard let values = latest.sets.first(where: { $0.name == "global" }) else {
            throw PFLError(.protocol, "the version has no set 'global'", mend: Device.updateAggregator)
        }
        let sums = try pipeline.measureShared(try await fetch("global", values.value))
        let measured = Event.Measured(
            version: latest.version, shared: sums.mapValues { $0.sum / $0.weight },
            weight: sums.values.map(\.weight).max() ?? 0)
        onEvent(.measured(measured))
        return measured
    }

    /// Gives the credential back; the personal state stays.
    ///
    /// - Throws: `.unreachable`, `.serverProblem`: the aggregator still has the device
    public func leave(isolation: isolated (any Actor)? = #isolation) async throws {
        _ = try await PFLMobile.leave(folder, client)
    }

    // -- joining

    private func join(isolation: isolated (any Actor)? = #isolation) async throws {
        let info = try await client.federation()
        if info.bundle != model.bundle {
            let differ = info.bundle.name == model.id.name ? " (its tensors differ)" : ""
            throw PFLError(
                .device,
                "the federation trains \(info.bundle.name) \(info.bundle.version), this device has \(model.id.name) "
                    + "\(model.id.version)\(differ)",
                mend: "give the device the federation's bundle")
        }
        let known = folder.membership
        let membership: Membership
        if let known {
            try checkServer(folder, client, known)
            membership = known
        } else {
            let attestation = try await attested(info)
            let enrolled = try await client.enrol(
                Enrolment(bundle: model.bundle, token: token, group: group, attestation: attestation))
            membership = try folder.join(client.server, enrolled)
        }
        client.credential = membership.credential
        onEvent(.joined(device: membership.device, again: known != nil))
    }

    private func attested(
        _ info: FederationInfo, isolation: isolated (any Actor)? = #isolation
    ) async throws -> Attestation? {
        if info.attestation.isEmpty { return nil }
        guard let attest else {
            throw PFLError(
                .device, "the federation asks for an attestation (\(info.attestation.joined(separator: ", ")))",
                mend: "run on a platform that gives one, or ask the operator for a federation without")
        }
        let challenge = try await client.challenge().challenge
        let found = try await attest.attest(challenge: challenge, kinds: info.attestation)
        return Attestation(kind: found.kind, challenge: challenge, verdict: found.verdict)
    }

    // -- a task

    /// Checks in, and does what the answer says; why this was the last time, if it was.
    private func step(_ once: Bool, isolation: isolated (any Actor)? = #isolation) async throws -> Ended? {
        let asked = clock()
        let answer = try await client.checkIn(
            CheckIn(bundle: model.bundle, examples: try pipeline.trainingExamples(), facts: facts))
        switch answer.status {
        case .done: return .done
        case .wait:
            let seconds = max(answer.retryAfterS ?? 0, Device.leastWaitS)
            onEvent(.waiting(seconds: seconds, reason: answer.reason?.rawValue ?? ""))
            if !once { try await client.rest(seconds) }
            return nil
        case .task:
            guard let task = answer.task else {
                throw PFLError(
                    .protocol, "the check-in gave a task that is missing", mend: Device.updateAggregator)
            }
            offline = nil
            return try await carryOut(task, deadline: asked + task.expiresInS)
        }
    }

    private func carryOut(
        _ task: RoundTask, deadline: Double, isolation: isolated (any Actor)? = #isolation
    ) async throws -> Ended? {
        onEvent(.assigned(round: task.round, version: task.version))
        if try outbox.holds(task.id) {
            try await client.rest(1)  // it is finished; only sending is left
            return nil
        }
        do {
            try pipeline.accept(task)
            let sets = try await sets(task)
            let clock = clock
            let onEvent = onEvent
            let done = try pipeline.carryOut(task, sets, stop: { clock() >= deadline }) { at in
                onEvent(.stepped(step: at.step, of: at.of, loss: at.loss))
            }
            guard let done else { throw DeclineTask(.tooSlow, "the task's time is over") }
            try Task.checkCancellation()  // nothing of it is kept where a control of the user stopped it
            try outbox.put(task, deadline: deadline, done)
        } catch let declined as DeclineTask {
            try await decline(task, declined.reason, declined.why)
            if declined.reason == .privacy { return .privacy }  // the next task would be no better
        } catch let error as PFLError where error.isA(.storageFull) {
            try await decline(task, .storage, error.message)
        } catch let problem as PFLError where problem.isOver {
            try outbox.drop(task.id, "task", problem.message)
        } catch let error as PFLError where error.isA(.engine) {
            try await decline(task, .engine, error.message)
            throw error
        }
        return nil
    }

    /// Downloads what the plan reads, each digest once.
    private func sets(
        _ task: RoundTask, isolation: isolated (any Actor)? = #isolation
    ) async throws -> [String: TensorSet] {
        if !task.sets.contains(where: { $0.name == "global" }) {
            throw PFLError(.protocol, "the task names no set 'global'", mend: Device.updateAggregator)
        }
        try folder.keepSets(task.sets.map(\.value.sha256))
        var found: [String: TensorSet] = [:]
        for (name, what) in task.sets {
            if what.bytes > model.mostSetBytes {
                throw DeclineTask(.plan, "the set '\(name)' has \(what.bytes) bytes, more than the model can")
            }
            do {
                found[name] = try await fetch(name, what)
            } catch let error as PFLError where error.isA(.tensorFile) || error.isA(.nonFinite) {
                throw DeclineTask(.plan, error.message)
            }
        }
        return found
    }

    private func fetch(
        _ name: String, _ what: Download, isolation: isolated (any Actor)? = #isolation
    ) async throws -> TensorSet {
        let cached = try folder.loadSet(what.sha256)
        if cached == nil { try await download(client, what, to: folder.setPath(what.sha256)) }
        guard let values = try cached ?? folder.loadSet(what.sha256) else {
            throw PFLError(.storageFull, "the set '\(name)' vanished from the disk", mend: "check the disk")
        }
        try model.checkSet(name, values)
        onEvent(.downloaded(name: name, bytes: what.bytes, cached: cached != nil))
        return values
    }

    private func decline(
        _ task: RoundTask, _ reason: DeclineReason, _ why: String, isolation: isolated (any Actor)? = #isolation
    ) async throws {
        onEvent(.declined(round: task.round, reason: reason.rawValue, why: why))
        counts.declined[reason.rawValue, default: 0] += 1
        do {
            try await client.decline(task.id, Decline(reason))
        } catch let problem as PFLError where problem.isOver {
            return
        }
    }

    // -- waiting

    /// Whether the aggregator does, at the address that needs no credential.
    private func answers(isolation: isolated (any Actor)? = #isolation) async throws -> Bool {
        do {
            _ = try await client.federation()
            return true
        } catch let error as PFLError
            where error.isA(.unreachable) || error.isA(.serverProblem) || error.isA(.notTheAggregator)
        {
            return false
        }
    }

    private func waitOffline(_ error: PFLError, isolation: isolated (any Actor)? = #isolation) async throws {
        let (failures, since) = offline ?? (0, clock())
        if let patienceS, clock() - since >= patienceS { throw error }
        offline = (failures + 1, since)
        let seconds = client.pause(failures + 1, toldS: error.retryAfterS)
        onEvent(.offline(seconds: seconds, why: error.message))
        try await client.rest(seconds)
    }
}

/// Problems that say that the aggregator does not know the credential.
private let goneCodes: Set = ["unauthorized", "device-revoked"]

/// Gives the credential of a folder back; whether there was one.
///
/// - Throws: `.unreachable`, `.serverProblem`: the aggregator still has the device; `.deviceFolder`: the credential is of another
///   server
func leave(
    _ folder: DeviceFolder, _ client: Client, isolation: isolated (any Actor)? = #isolation
) async throws -> Bool {
    guard let membership = folder.membership else { return false }
    try checkServer(folder, client, membership)
    try await leave(membership, client)
    try folder.forget()
    return true
}

/// Tells the aggregator that a membership ended.
///
/// - Parameter client: of the membership's server
/// - Throws: `.unreachable`, `.serverProblem`: the aggregator still has the device
func leave(_ membership: Membership, _ client: Client) async throws {
    client.credential = membership.credential
    do {
        try await client.leave()
    } catch let problem as PFLError where problem.status != nil && goneCodes.contains(problem.code.rawValue) {
        return  // it left already, and the answer was lost
    }
}

private func checkServer(_ folder: DeviceFolder, _ client: Client, _ membership: Membership) throws {
    if membership.server == client.server { return }
    throw PFLError(
        .deviceFolder, "\(folder.directory) belongs to a device of \(membership.server)",
        mend: "give another folder for another server; the credential goes to its own only")
}
