import PFLMobile

/// When a phone may learn by itself. All of it is checked when a job starts and while it runs.
public struct PersonalizationConstraints: Sendable, Equatable, Codable {
    /// Only while it charges.
    public let charging: Bool
    /// Not while the app is in front; whether the phone is used otherwise only the system knows, which starts such jobs when it is not.
    public let idle: Bool
    /// Only on a network that costs nothing; learning itself needs no network.
    public let unmetered: Bool
    /// Not with less in the battery.
    public let minBatteryPercent: Int
    /// Not while the system reports that the phone is hot.
    public let cool: Bool
    /// Not in Low Power Mode.
    public let fullPower: Bool
    /// Not with less space left.
    public let minFreeBytes: Int
    /// At most once in so many hours.
    public let everyHours: Int

    /// Constraints.
    ///
    /// - Throws: `.config`: a value makes no sense
    public init(
        charging: Bool = true, idle: Bool = true, unmetered: Bool = false, minBatteryPercent: Int = 30,
        cool: Bool = true,
        fullPower: Bool = true, minFreeBytes: Int = 200 << 20, everyHours: Int = 24
    ) throws {
        if !(0...100).contains(minBatteryPercent) {
            throw PFLError(.config, "\(minBatteryPercent) % in the battery", mend: "give 0 to 100")
        }
        if everyHours < 1 { throw PFLError(.config, "every \(everyHours) hours", mend: "give 1 or more") }
        if minFreeBytes < 0 { throw PFLError(.config, "\(minFreeBytes) bytes free", mend: "give 0 or more") }
        self.charging = charging
        self.idle = idle
        self.unmetered = unmetered
        self.minBatteryPercent = minBatteryPercent
        self.cool = cool
        self.fullPower = fullPower
        self.minFreeBytes = minFreeBytes
        self.everyHours = everyHours
    }

    /// Those that do not hold.
    public func unmet(_ now: DeviceConditions) -> Set<Waiting> {
        var found: Set<Waiting> = []
        if charging && !now.isCharging { found.insert(.charging) }
        if now.batteryPercent ?? 100 < minBatteryPercent { found.insert(.battery) }
        if idle && now.isInUse { found.insert(.idle) }
        if cool && now.isHot { found.insert(.thermal) }
        if fullPower && now.isLowPower { found.insert(.lowPower) }
        if unmetered && !now.isUnmetered { found.insert(.unmetered) }
        if let free = now.freeBytes, free < minFreeBytes { found.insert(.storage) }
        return found
    }
}

/// How a phone is now.
public struct DeviceConditions: Sendable, Equatable {
    /// Whether it is plugged in.
    public var isCharging: Bool
    /// What is left in the battery; nil where the phone does not say.
    public var batteryPercent: Int?
    /// Whether the app is in front.
    public var isInUse: Bool
    /// Whether there is a network that costs nothing.
    public var isUnmetered: Bool
    /// Whether the system reports that it is hot.
    public var isHot: Bool
    /// Whether it saves power.
    public var isLowPower: Bool
    /// Space that is left; nil where the phone does not say.
    public var freeBytes: Int?

    /// Conditions.
    public init(
        isCharging: Bool, batteryPercent: Int?, isInUse: Bool, isUnmetered: Bool, isHot: Bool, isLowPower: Bool,
        freeBytes: Int?
    ) {
        self.isCharging = isCharging
        self.batteryPercent = batteryPercent
        self.isInUse = isInUse
        self.isUnmetered = isUnmetered
        self.isHot = isHot
        self.isLowPower = isLowPower
        self.freeBytes = freeBytes
    }
}

/// For what the next training or round of a phone waits.
public enum Waiting: String, Sendable, CaseIterable {
    /// Nobody scheduled it.
    case notScheduled
    /// It is under way.
    case running
    /// The user paused learning.
    case paused
    /// The last one was not long enough ago.
    case interval
    /// The phone does not charge.
    case charging
    /// The app is in front.
    case idle
    /// There is no network that costs nothing.
    case unmetered
    /// There is too little in the battery.
    case battery
    /// The phone is hot.
    case thermal
    /// The phone saves power.
    case lowPower
    /// There is too little space left.
    case storage
    /// The last job failed, and nothing was done since; the scheduler's `lastJob` says how. The next one tries again.
    case failed
}

extension PersonalizationConstraints {
    /// Whether something was done less than half of the interval ago. The system begins a job when it likes: with the whole of the
    /// interval, a job that comes a minute earlier than the day before would leave its day out. A clock that was set back does not keep
    /// it waiting.
    func tooSoon(_ last: Double?, now: Double) -> Bool {
        guard let last else { return false }
        return (0...Double(everyHours) * 3600 / 2).contains(now - last)
    }
}

/// For what the next job of a model waits.
///
/// - Parameters:
///   - constraints: it was scheduled with; nil where it is not
///   - last: when it was done last, in seconds since 1970
///   - outcome: of the last job
func waiting(
    training: Bool, paused: Bool, constraints: PersonalizationConstraints?, last: Double?, outcome: JobOutcome?,
    conditions: DeviceConditions, now: Double
) -> Set<Waiting> {
    if training { return [.running] }
    guard let constraints else { return [.notScheduled] }
    var found = constraints.unmet(conditions)
    if paused { found.insert(.paused) }
    if constraints.tooSoon(outcome.map { $0.since(last) } ?? last, now: now) { found.insert(.interval) }
    if let outcome, outcome.failed, last.map({ $0 < outcome.began }) ?? true { found.insert(.failed) }
    return found
}
