#if canImport(PFLOnnxRuntime)
    import Foundation
    import PFLMobile
    import PFLOnnxRuntime
    import Testing

    @testable import PFLMobileSDK

    private let bundles: String = {
        if let given = ProcessInfo.processInfo.environment["PFL_BUNDLES"] { return given }
        var folder = URL(fileURLWithPath: #filePath)
        for _ in 0..<4 { folder.deleteLastPathComponent() }
        return folder.appendingPathComponent("android/target/bundles").path
    }()

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
