import Foundation

/// A value that several threads may use, one at a time.
final class Locked<Value>: @unchecked Sendable {
    private let lock = NSLock()
    private var value: Value

    init(_ value: Value) {
        self.value = value
    }

    /// What `body` gives, with nobody else at the value.
    func callAsFunction<Result>(_ body: (inout Value) throws -> Result) rethrows -> Result {
        try lock.withLock { try body(&value) }
    }
}

extension Locked where Value: Sendable {
    /// The value of this moment.
    var now: Value {
        get { self { $0 } }
        set { self { $0 = newValue } }
    }
}

/// A lock that is given in the order in which it was asked for, so that who takes it again and again keeps nobody out.
final class FairLock: @unchecked Sendable {
    private let turn = NSCondition()
    private var next = 0
    private var serving = 0

    func withLock<Result>(_ body: () throws -> Result) rethrows -> Result {
        turn.lock()
        let mine = next
        next += 1
        while serving != mine { turn.wait() }
        turn.unlock()
        defer {
            turn.lock()
            serving += 1
            turn.broadcast()
            turn.unlock()
        }
        return try body()
    }
}
