import Foundation
import PFLMobile
import Testing

@testable import PFLMobileSDK

/// Jobs of a model that says only where it lies, in a queue that begins them when the test says so.
@Suite(.timeLimit(.minutes(1))) final class SchedulerTests {
    private typealias Done = ModelJob<URL>.Done
    private let folder = FileManager.default.temporaryDirectory.appendingPathComponent("pfl-sdk-\(UUID().uuidString)")
    private let queue = FakeQueue()
    private let phone = Phone()

    init() throws {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(at: folder) }

    private func scheduler(
        last: Double? = nil, open: @escaping @Sendable () async throws -> Void = {},
        work: @escaping @Sendable () async throws -> ModelJob<URL>.Done
    ) -> Scheduler<URL> {
        let (folder, phone) = (folder, phone)
        let job = ModelJob<URL>(
            kind: .personalization,
            openWith: {
                try await open()
                return folder
            }, close: { _ in phone.change { $0.closed += 1 } }, folder: { $0 }, last: { _ in last },
            work: { _ in try await work() }, conditions: { phone.now.conditions }, clock: { phone.now.time },
            watchEvery: .milliseconds(1))
        return Scheduler("job", job, queue: queue, schedules: folder.appendingPathComponent("jobs"), network: false)
    }

    private func outcome() -> JobOutcome? { JobNotes(folder).outcome(.personalization) }

    @Test("a job that is scheduled is done, noted, and asked for again")
    func done() async throws {
        let scheduler = scheduler { Done(code: "adopted") }
        try scheduler.register()
        try scheduler.schedule(PersonalizationConstraints())
        #expect(queue.now.submitted == [Submitted(after: 0, power: true, network: false)])
        #expect(await queue.begin() == true)
        #expect(outcome()?.code == "adopted")
        #expect(queue.now.submitted.map(\.after) == [0.0, 86_400.0])
        #expect(phone.now.closed == 1)
    }

    @Test("what is not scheduled any more is not done")
    func cancelled() async throws {
        let scheduler = scheduler { Done(code: "adopted") }
        try scheduler.register()
        try scheduler.schedule(PersonalizationConstraints())
        scheduler.cancel()
        #expect(await queue.begin() == true)
        #expect(outcome() == nil)
        #expect(queue.now.cancelled == 1 && queue.now.submitted.count == 1)
    }

    @Test("a phone without time for it is looked at before the model is opened, and again a quarter of an hour later")
    func unmetAtFirst() async throws {
        let scheduler = scheduler(open: { Issue.record("it was opened") }) { Done(code: "adopted") }
        try scheduler.register()
        try scheduler.schedule(PersonalizationConstraints())
        phone.change { $0.conditions.isCharging = false }
        _ = await queue.begin()
        #expect(outcome() == nil)
        #expect(queue.now.submitted.last?.after == 900)
    }

    @Test(
        "work is stopped when a condition ceases to hold",
        arguments: [
            Waiting.charging, .battery, .idle, .thermal, .lowPower, .unmetered, .storage,
        ])
    func unmetOnTheWay(_ what: Waiting) async throws {
        let phone = phone
        let scheduler = scheduler {
            phone.change { $0.spoil(what) }
            try await Task.sleep(for: .seconds(3600))
            return Done(code: "adopted")
        }
        try scheduler.register()
        try scheduler.schedule(PersonalizationConstraints(unmetered: true))
        #expect(try PersonalizationConstraints(unmetered: true).unmet(phone.now.conditions).isEmpty)
        _ = await queue.begin()
        #expect(try PersonalizationConstraints(unmetered: true).unmet(phone.now.conditions) == [what])
        #expect(outcome() == nil)
        #expect(phone.now.closed == 1)
        #expect(queue.now.submitted.last?.after == 900)
    }

    @Test("what ended just as a condition ceased to hold has ended")
    func endedAllTheSame() async throws {
        let phone = phone
        let scheduler = scheduler {
            phone.change { $0.conditions.isHot = true }
            try? await Task.sleep(for: .seconds(3600))  // until it is cancelled
            return Done(code: "kept")
        }
        try scheduler.register()
        try scheduler.schedule(PersonalizationConstraints())
        #expect(await queue.begin() == true)
        #expect(outcome()?.code == "kept")
    }

    @Test("the system takes the phone back: the work ends, nothing is noted, and it is tried again")
    func expired() async throws {
        let queue = queue
        let scheduler = scheduler {
            queue.expire()
            try await Task.sleep(for: .seconds(3600))
            return Done(code: "adopted")
        }
        try scheduler.register()
        try scheduler.schedule(PersonalizationConstraints())
        #expect(await queue.begin() == false)
        #expect(outcome() == nil)
        #expect(phone.now.closed == 1)
        #expect(queue.now.submitted.last?.after == 900)
    }

    @Test("what was done lately is not done again, and a clock that was set back keeps nobody waiting")
    func interval() async throws {
        phone.change { $0.time = 100_000 }
        for (last, done) in [(95_000.0, false), (56_900.0, false), (56_700.0, true), (200_000.0, true)] {
            JobNotes(folder).erase()
            let scheduler = scheduler(last: last) { Done(code: "kept") }
            try FakeQueue.fresh(queue) { try scheduler.register() }
            try scheduler.schedule(PersonalizationConstraints())
            #expect(await queue.begin() == true)
            #expect((outcome() != nil) == done, "\(last)")
        }
    }

    @Test("errors are noted by their code; a model that is open elsewhere is tried again later")
    func failures() async throws {
        let failing = scheduler { throw PFLError(.nonFinite, "a loss is NaN", mend: "none") }
        try failing.register()
        try failing.schedule(PersonalizationConstraints())
        #expect(await queue.begin() == false)
        #expect(outcome()?.code == "NonFiniteError" && outcome()?.failed == true)
        #expect(queue.now.submitted.last?.after == 86_400)

        JobNotes(folder).erase()
        let busy = scheduler(open: { throw PFLError(.state, "open in another process", mend: "close it") }) {
            Done(code: "adopted")
        }
        try FakeQueue.fresh(queue) { try busy.register() }
        _ = await queue.begin()
        #expect(outcome() == nil)
        #expect(queue.now.submitted.last?.after == 900)
    }

    @Test("a system that does not know the job, or refuses it, is an error that says what to do")
    func refusals() throws {
        let scheduler = scheduler { Done(code: "adopted") }
        queue.change { $0.refuses = true }
        do {
            try scheduler.schedule(PersonalizationConstraints())
            Issue.record("nothing was refused")
        } catch let error as PFLError {
            #expect(error.code == .state)
        }
        queue.change { $0.permits = false }
        do {
            try scheduler.register()
            Issue.record("nothing was refused")
        } catch let error as PFLError {
            #expect(error.code == .config && error.mend.contains("Info.plist"))
        }
    }

    @Test("what the next job waits for is said")
    func waits() throws {
        let constraints = try PersonalizationConstraints(everyHours: 2)
        let failed = JobOutcome(began: 9000, ended: 9100, code: "EngineError", failed: true)
        func why(
            training: Bool = false, paused: Bool = false, _ constraints: PersonalizationConstraints?,
            last: Double? = nil,
            _ outcome: JobOutcome? = nil
        ) -> Set<Waiting> {
            waiting(
                training: training, paused: paused, constraints: constraints, last: last, outcome: outcome,
                conditions: phone.now.conditions, now: 10_000)
        }
        #expect(why(constraints).isEmpty)
        #expect(why(nil) == [.notScheduled])
        #expect(why(training: true, paused: true, nil) == [.running])
        #expect(why(paused: true, constraints) == [.paused])
        #expect(why(constraints, last: 9500) == [.interval])
        #expect(why(constraints, last: 5000) == [])
        #expect(why(constraints, last: nil, failed) == [.failed])
        #expect(why(constraints, last: 9050, failed) == [.interval])
        // a job of an hour counts from its begin
        let long = JobOutcome(began: 6000, ended: 9900, code: "kept", failed: false)
        #expect(why(constraints, last: 9899, long) == [])
    }

    @Test("constraints that make no sense are refused")
    func constraints() {
        #expect(throws: PFLError.self) { try PersonalizationConstraints(minBatteryPercent: 101) }
        #expect(throws: PFLError.self) { try PersonalizationConstraints(everyHours: 0) }
        #expect(throws: PFLError.self) { try PersonalizationConstraints(minFreeBytes: -1) }
    }
}
