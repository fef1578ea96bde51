import Foundation
import PFLMobile
import Testing

@testable import PFLMobileSDK

/// What a phone looks like.
struct PhoneState {
    var time = 1000.0
    var closed = 0
    var conditions = DeviceConditions(
        isCharging: true, batteryPercent: 80, isInUse: false, isUnmetered: true, isHot: false, isLowPower: false,
        freeBytes: 1 << 30)

    mutating func spoil(_ what: Waiting) {
        switch what {
        case .charging: conditions.isCharging = false
        case .battery: conditions.batteryPercent = 10
        case .idle: conditions.isInUse = true
        case .thermal: conditions.isHot = true
        case .lowPower: conditions.isLowPower = true
        case .unmetered: conditions.isUnmetered = false
        case .storage: conditions.freeBytes = 1000
        default: Issue.record("\(what) is no condition")
        }
    }
}

/// A value that tests and jobs change.
class Shared<Value: Sendable>: @unchecked Sendable {
    private let lock = NSLock()
    private var value: Value

    init(_ value: Value) { self.value = value }

    var now: Value { lock.withLock { value } }

    func change(_ body: (inout Value) -> Void) { lock.withLock { body(&value) } }
}

/// A phone that tests change.
final class Phone: Shared<PhoneState>, @unchecked Sendable {
    convenience init() { self.init(PhoneState()) }
}

struct Submitted: Equatable {
    let after: Double
    let power: Bool
    let network: Bool
}

struct QueueState {
    var begin: (@Sendable (any BackgroundJob) -> Void)?
    var submitted: [Submitted] = []
    var cancelled = 0
    var permits = true
    var refuses = false
    var stop: (@Sendable () -> Void)?
}

struct Refused: Error {}

final class FakeQueue: Shared<QueueState>, BackgroundQueue, @unchecked Sendable {
    convenience init() { self.init(QueueState()) }

    /// For another scheduler of the same test, at the same time of day.
    static func fresh(_ queue: FakeQueue, _ register: () throws -> Void) rethrows {
        queue.change { $0.begin = nil }
        try register()
    }

    func register(_ identifier: String, _ begin: @escaping @Sendable (any BackgroundJob) -> Void) -> Bool {
        change { $0.begin = begin }
        return now.permits
    }

    func submit(_ identifier: String, earliest: Date, power: Bool, network: Bool) throws {
        if now.refuses { throw Refused() }
        change {
            $0.submitted.append(Submitted(after: earliest.timeIntervalSince1970 - 1000, power: power, network: network))
        }
    }

    func cancel(_ identifier: String) { change { $0.cancelled += 1 } }

    /// The system takes the phone back.
    func expire() { now.stop?() }

    /// The system begins the job; whether it went well.
    func begin() async -> Bool {
        let begin = now.begin
        return await withCheckedContinuation { ended in
            begin?(FakeJob(queue: self) { ended.resume(returning: $0) })
        }
    }
}

struct FakeJob: BackgroundJob {
    let queue: FakeQueue
    let ended: @Sendable (Bool) -> Void

    func onExpiration(_ stop: @escaping @Sendable () -> Void) { queue.change { $0.stop = stop } }
    func complete(success: Bool) { ended(success) }
}
