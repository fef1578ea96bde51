#if canImport(PFLOnnxRuntime)
    import Foundation
    import PFLMobile
    import PFLOnnxRuntime
    import Testing

    @testable import PFLMobileSDK

    private let bundle = URL(fileURLWithPath: "\(bundles)/tiny.pflb")

    /// Jobs with a model that learns; where `python android/desktop.py` made its bundle.
    @Suite(.enabled(if: FileManager.default.fileExists(atPath: bundle.path))) final class RealModelTests {
        private let folder = FileManager.default.temporaryDirectory.appendingPathComponent(
            "pfl-sdk-\(UUID().uuidString)")
        private let queue = FakeQueue()
        private let phone = Phone()

        deinit { try? FileManager.default.removeItem(at: folder) }

        private func open() async throws -> PersonalModel {
            try await Self.open(folder)
        }

        private static func open(_ folder: URL) async throws -> PersonalModel {
            let options = try ModelOptions(trusted: true, engines: [OnnxRuntimeEngine()])
            return try await PersonalModel.open(
                bundle: bundle, in: folder.appendingPathComponent("model"), options: options
            ) {
                FileKey($0.appendingPathComponent("examples.key"))
            }
        }

        private func scheduler() -> PersonalizationScheduler {
            let (folder, phone) = (folder, phone)
            return PersonalizationScheduler(
                "job", openWith: { try await Self.open(folder) }, queue: queue,
                schedules: folder.appendingPathComponent("jobs"),
                conditions: { phone.now.conditions })
        }

        private func remember(_ model: PersonalModel) async throws {
            let lists = try JSONDecoder().decode(
                [String: [String]].self, from: Data(contentsOf: URL(fileURLWithPath: "\(bundles)/tiny-examples.json")))
            for text in (lists["train"] ?? []) + (lists["holdout"] ?? []) { try await model.remember(text) }
        }

        @Test("a job learns from what was kept, once in its interval, and erasing forgets that too")
        func learns() async throws {
            let model = try await open()
            try await remember(model)
            let scheduler = scheduler()
            #expect(try await scheduler.whyWaiting(model) == [.notScheduled])
            try scheduler.register()
            try scheduler.schedule()
            #expect(try await scheduler.whyWaiting(model) == [])
            // the same process may open the same model twice
            #expect(await queue.begin() == true)
            let outcome = try #require(scheduler.lastJob(model))
            #expect(["adopted", "kept"].contains(outcome.code), "\(outcome)")
            let last = try #require(try await model.status().last)
            #expect(last.steps > 0)
            #expect(try await scheduler.whyWaiting(model) == [.interval])
            #expect(await queue.begin() == true)
            #expect(try await model.status().last == last, "it was done lately")
            try await model.pause()
            phone.change { $0.conditions.isLowPower = true }
            #expect(try await scheduler.whyWaiting(model) == [.interval, .paused, .lowPower])

            try await model.eraseEverything()
            #expect(scheduler.lastJob(model) == nil)
            try await model.close()
        }

        private let nobody = Shared<Federation?>(nil)

        private func rounds() throws -> RoundsScheduler {
            let (folder, phone, nobody) = (folder, phone, nobody)
            return RoundsScheduler(
                "rounds", openWith: { try await Self.open(folder) }, federationWith: { nobody.now }, queue: queue,
                schedules: folder.appendingPathComponent("jobs"), conditions: { phone.now.conditions })
        }

        @Test("rounds are asked for where the user takes part, and again soon where nobody answers")
        func takesPart() async throws {
            let model = try await open()
            try await remember(model)
            let scheduler = try rounds()
            try scheduler.register()
            try scheduler.schedule()
            #expect(queue.now.submitted.last?.network == true)
            #expect(await queue.begin() == true)
            #expect(scheduler.lastJob(model)?.code == "not-taking-part")

            let federation = try Federation(
                "http://127.0.0.1:9", patienceS: 0, allowHTTP: true, backoff: Backoff(attempts: 1))
            nobody.change { $0 = federation }
            #expect(await queue.begin() == false)
            let outcome = try #require(scheduler.lastJob(model))
            #expect(outcome.failed && outcome.code == "UnreachableError", "\(outcome)")
            // the next interval first, then sooner
            let asked = queue.now.submitted.map(\.after).suffix(2)
            #expect(asked.last ?? 0 < (asked.first ?? 0) - 3600)
            #expect(try await scheduler.whyWaiting(model) == [.failed])
            phone.change { $0.conditions.isUnmetered = false }
            #expect(try await scheduler.whyWaiting(model).contains(.unmetered))

            #expect(try await scheduler.leave(model, federation) == .notThere)
            #expect(!scheduler.isLeaving)
            #expect(try await scheduler.whyWaiting(model) == [.notScheduled])
            try await model.close()
        }

        @Test("a job without examples says so")
        func empty() async throws {
            let scheduler = scheduler()
            try scheduler.register()
            try scheduler.schedule()
            #expect(await queue.begin() == true)
            let model = try await open()
            #expect(scheduler.lastJob(model)?.code == "not-enough-examples")
            try await model.close()
        }
    }
#endif
