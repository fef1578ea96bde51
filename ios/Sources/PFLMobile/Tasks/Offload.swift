import Foundation

/// Whether the task for which something is done was cancelled; for code that runs outside of any task.
final class Interrupt: Sendable {
    private let cancelled = Locked(false)

    /// Whether it was.
    var isSet: Bool { cancelled.now }

    func set() { cancelled { $0 = true } }

    /// Ends what is done.
    ///
    /// - Throws: `CancellationError`: the task was cancelled
    func check() throws {
        if isSet { throw CancellationError() }
    }
}

private let queue = DispatchQueue(label: "pfl-mobile", qos: .userInitiated, attributes: .concurrent)
private let patientQueue = DispatchQueue(label: "pfl-mobile.patient", qos: .utility, attributes: .concurrent)

/// Does what blocks (files, engines, training) on a thread that tasks do not need, as there are only so many of these.
///
/// - Parameters:
///   - patient: nobody waits for it
///   - body: told whether its task was cancelled; it decides whether it ends then
func offload<Result: Sendable>(
    patient: Bool = false, _ body: @escaping @Sendable (Interrupt) throws -> Result
) async throws -> Result {
    let interrupt = Interrupt()
    return try await withTaskCancellationHandler {
        try await withCheckedThrowingContinuation { continuation in
            (patient ? patientQueue : queue).async {
                continuation.resume(with: Swift.Result { try body(interrupt) })
            }
        }
    } onCancel: {
        interrupt.set()
    }
}
