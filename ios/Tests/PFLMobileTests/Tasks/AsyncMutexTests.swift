import Foundation
import Testing

@testable import PFLMobile

@Suite struct TasksTests {
    @Test("one task at a time, also where several were cancelled while they waited")
    func oneAtATime() async throws {
        let mutex = AsyncMutex()
        let inside = Locked(0)
        let done = Locked(0)
        try await withThrowingTaskGroup(of: Void.self) { group in
            for number in 0..<200 {
                group.addTask {
                    let task = Task {
                        try await mutex.withLock {
                            #expect(
                                inside {
                                    $0 += 1; return $0
                                } == 1)
                            await Task.yield()
                            inside { $0 -= 1 }
                            done { $0 += 1 }
                        }
                    }
                    if number % 3 == 0 { task.cancel() }
                    do {
                        try await task.value
                    } catch is CancellationError {
                        #expect(number % 3 == 0)
                    }
                }
            }
            try await group.waitForAll()
        }
        #expect(done.now >= 133)
        try await mutex.withLock {}
    }

    @Test("who must not be cancelled waits all the same")
    func notCancellable() async throws {
        let mutex = AsyncMutex()
        let ran = Locked(false)
        let task = Task {
            while !Task.isCancelled { await Task.yield() }
            try await mutex.withLock(cancellable: false) { ran.now = true }
        }
        task.cancel()
        try await task.value
        #expect(ran.now)
    }

    @Test("what is offloaded is told that its task was cancelled")
    func offloaded() async throws {
        let begun = Locked(false)
        let task = Task {
            try await offload { interrupt in
                begun.now = true
                while !interrupt.isSet { usleep(1000) }
                return "ended"
            }
        }
        while !begun.now { await Task.yield() }
        task.cancel()
        #expect(try await task.value == "ended")
        await #expect(throws: PFLError.self) { try await offload { _ in throw closedModel() } }
    }

    @Test("a fair lock lets those in who wait, though another takes it again and again")
    func fair() async throws {
        let lock = FairLock()
        let stop = Locked(false)
        let greedy = Task { try await offload { _ in while !stop.now { lock.withLock { _ = usleep(100) } } } }
        for _ in 0..<20 { try await offload { _ in lock.withLock {} } }
        stop.now = true
        try await greedy.value
    }
}
