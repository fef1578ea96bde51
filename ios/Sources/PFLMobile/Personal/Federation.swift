/// A federation that a personal model takes part in.
public struct Federation: Sendable {
    /// Address of its aggregator, for instance `https://pfl.example.org`.
    public let server: String
    /// What must protect updates; by default something must.
    public let policy: PrivacyPolicy
    /// The device's group, where the federation has groups.
    public let group: String
    /// For enrolment, where one is needed.
    public let token: String?
    /// Makes the platform's verdict, where one is needed.
    public let attest: (any Attest)?
    /// Seconds that the aggregator may be out of reach before it is given up for now; nil is for ever.
    public let patienceS: Double?
    /// Permit plain HTTP to other machines: anybody on the way can then read the credential.
    public let allowHTTP: Bool
    /// Of the app; give one that pins the operator's key.
    public let transport: (any Transport)?
    /// Between tries of one request.
    public let backoff: Backoff

    /// A federation.
    ///
    /// - Throws: `.config`: the address is none, or plain HTTP to another machine
    public init(
        _ server: String, policy: PrivacyPolicy = PrivacyPolicy(), group: String = "", token: String? = nil,
        attest: (any Attest)? = nil, patienceS: Double? = 60, allowHTTP: Bool = false,
        transport: (any Transport)? = nil,
        backoff: Backoff = Backoff()
    ) throws {
        self.server = server
        self.policy = policy
        self.group = group
        self.token = token
        self.attest = attest
        self.patienceS = patienceS
        self.allowHTTP = allowHTTP
        self.transport = transport
        self.backoff = backoff
        _ = try client()
    }

    func client() throws -> Client { try Client(server, backoff: backoff, allowHTTP: allowHTTP, transport: transport) }

    /// For leaving a server that was given before.
    func client(of other: String, _ backoff: Backoff) throws -> Client {
        let isOther = try other != client().server
        return try Client(other, backoff: backoff, allowHTTP: allowHTTP || isOther, transport: transport)
    }
}

/// How `PersonalModel.takePart` ended.
public enum RoundsResult: Sendable {
    /// Updates were accepted.
    case tookPart(Summary)
    /// No update was made: there was no task, or none that this device can do; `declined` says why.
    case noRound(Summary)
    /// The federation protects updates less than the policy asks for, as `why` says; nothing was sent.
    case notProtected(Summary, why: String)
    /// There are too few examples to learn and to measure, so many; no task was asked for.
    case notEnoughExamples(have: Int)
    /// The user paused learning; nobody was asked.
    case paused
    /// It was stopped by pause, forget, revert, erase or leave.
    case cancelled
    /// The aggregator cannot be reached, or something else answers in its place: another time or network may help. So many
    /// updates are finished and wait to be sent.
    case unreachable(PFLError, waiting: Int)
    /// The aggregator will not have this device.
    case refused(PFLError)
    /// It could not be done; what served before serves on.
    case failed(PFLError)
}

/// How `PersonalModel.leave` ended. The membership is over on this device, and nothing of it is sent any more, but where `failed`
/// says that the device's folder cannot be used.
public enum LeaveResult: Sendable, Equatable {
    /// Every aggregator that it left forgot the device, and the device its credentials.
    case left
    /// It took part in no federation.
    case notThere
    /// An aggregator cannot be reached and still knows the device. It is told by the next call of `leave` or `takePart`.
    case unreachable(PFLError)
    /// It could not be done.
    case failed(PFLError)
}

/// What a model gave to federations; none of it can be taken back, so it outlives erasing.
public struct RoundsStatus: Sendable, Equatable {
    /// Where the device is enrolled; nil where it is not.
    public let server: String?
    /// Updates that were accepted.
    public let rounds: Int
    /// Of these updates.
    public let bytesSent: Int
    /// Finished updates or reports that wait to be sent.
    public let waiting: Int
    /// When it was last asked for a task, in seconds since 1970; nil before.
    public let asked: Double?
    /// What it cost in privacy.
    public let spent: PrivacySpent
    /// Why the device's folder cannot be used, where it cannot; it is not known then what was given, so `spent` is infinite and
    /// the counts say nothing.
    public var problem: PFLError?
    /// Servers that the device left and that were not told yet, for want of a network.
    public var leaving: [String] = []
}

/// Differential privacy of the updates that were given away: each was made with noise, so that what others learn of it changes
/// their odds by the factor e^epsilon at most, but for the probability delta.
///
/// Not in epsilon, as no noise hides it: sums on the user's own test examples in evaluation reports, numbers that a task asks for
/// along with an update (a policy with `report: false` sends neither), counts of examples and steps, and what a check-in tells.
public struct PrivacySpent: Sendable, Equatable {
    /// Of both below together; infinite where an update was sent that nothing protected, or where the count was lost.
    public let epsilon: Double
    /// Likewise.
    public let delta: Double
    /// Epsilon of updates under the device's own noise, by its own count; it holds against the aggregator too.
    public let own: Double
    /// Epsilon that aggregators promise, who add the noise and are trusted to.
    public let promised: Double
    /// Updates that nothing protected.
    public let unprotected: Int

    /// The count was lost.
    static let unknown = PrivacySpent(
        epsilon: .infinity, delta: 1, own: .infinity, promised: .infinity, unprotected: 0)
}
