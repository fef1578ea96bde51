#if canImport(PFLOnnxRuntime)
    import Foundation
    import PFLOnnxRuntime
    import Testing

    @testable import PFLKeyboard
    @testable import PFLMobile
    @testable import PFLMobileSDK

    private let bundle = URL(fileURLWithPath: "\(bundles)/tiny.pflb")

    /// Rounds with other phones, which the user turns on; a queue of the test's own, and no network.
    @Suite(.enabled(if: FileManager.default.fileExists(atPath: bundle.path))) final class ParticipationTests {
        private final class Choice: RoundsChoice, @unchecked Sendable {
            private let kept: Shared<(takesPart: Bool, server: String)>

            init(_ server: String) { kept = Shared((false, server)) }

            var takesPart: Bool {
                get { kept.now.takesPart }
                set { kept.change { $0.takesPart = newValue } }
            }
            var server: String {
                get { kept.now.server }
                set { kept.change { $0.server = newValue } }
            }
        }

        private struct NoNetwork: Transport {
            func exchange(_ request: TransportRequest, _ reader: any AnswerReader) async throws {
                throw TransportFault(.refused, "a test")
            }
        }

        private let folder = FileManager.default.temporaryDirectory.appendingPathComponent(
            "pfl-keyboard-\(UUID().uuidString)")
        private let queue = FakeQueue()
        private let phone = Phone()

        deinit { try? FileManager.default.removeItem(at: folder) }

        private func assistant(_ choice: Choice) -> Assistant {
            let (folder, phone) = (folder, phone)
            let open: @Sendable () async throws -> PersonalModel = {
                try await PersonalModel.open(
                    bundle: bundle, folder: folder.appendingPathComponent("model"), engines: [OnnxRuntimeEngine()],
                    trusted: true)
            }
            let rounds = RoundsScheduler(
                "rounds", openWith: open, federationWith: { try Participation.federation(of: choice) }, queue: queue,
                schedules: folder.appendingPathComponent("jobs"), conditions: { phone.now.conditions })
            try? rounds.register()
            return Assistant(participation: Participation(choice, rounds, transport: NoNetwork()), open: open)
        }

        private func rounds(_ assistant: Assistant) async throws -> Standing.Rounds {
            try #require(try await assistant.standing().rounds)
        }

        @Test("without a server there are none, and an address that is none is said")
        func noServer() async throws {
            let choice = Choice("")
            let assistant = assistant(choice)
            #expect(try await assistant.standing().rounds == nil)
            choice.server = "ftp://nowhere"
            try await assistant.takePart(true)
            #expect(!choice.takesPart && queue.now.submitted.isEmpty)
            #expect(try await rounds(assistant).trouble?.contains("ftp://nowhere") == true)
            #expect(try Participation.federation(of: choice) == nil)
            await assistant.close()
        }

        @Test("turned on a job is scheduled, which a new process has too; turned off there is none")
        func onAndOff() async throws {
            let choice = Choice("https://pfl.example.org")
            let assistant = assistant(choice)
            #expect(try await !rounds(assistant).isOn)
            try await assistant.takePart(true)
            #expect(choice.takesPart && queue.now.submitted.map(\.network) == [true])
            let federation = try #require(try Participation.federation(of: choice))
            #expect(federation.server == choice.server && !federation.policy.report && federation.policy.require)
            var now = try await rounds(assistant)
            #expect(now.isOn && now.waits.isEmpty && now.count == 0 && now.spent == 0 && now.budget == 10)
            phone.change { $0.conditions.isUnmetered = false }
            #expect(try await rounds(assistant).waits == ["there is no network that costs nothing"])
            await assistant.close()

            let again = self.assistant(choice)
            #expect(try await rounds(again).isOn)
            try await again.takePart(false)
            now = try await rounds(again)
            #expect(!now.isOn && !now.isLeaving && now.trouble == nil && !choice.takesPart)
            #expect(try Participation.federation(of: choice) == nil)
            await again.close()
        }

        @Test("a phone that cannot schedule says why, and takes no part")
        func refused() async throws {
            let choice = Choice("https://pfl.example.org")
            let assistant = assistant(choice)
            queue.change { $0.refuses = true }
            try await assistant.takePart(true)
            #expect(!choice.takesPart)
            #expect(try await rounds(assistant).trouble != nil)
            await assistant.close()
        }

        @Test("a server that is out of reach is told later, unless everything is erased")
        func leaving() async throws {
            let choice = Choice("https://pfl.example.org")
            let assistant = assistant(choice)
            try await assistant.takePart(true)
            await assistant.close()
            let id = ModelId(try ModelBundle.open(bundle).manifest)
            let device = try DeviceFolder(folder.appendingPathComponent("model/rounds"), model: id)
            try device.join(choice.server, Enrolled(device: "d", credential: "secret"))
            try device.sent.begin()  // as a personal model's device does
            try device.spent.begin()
            device.close()

            try await assistant.takePart(false)
            var now = try await rounds(assistant)
            #expect(!now.isOn && now.isLeaving && now.trouble == nil)
            await assistant.close()
            let again = self.assistant(choice)
            #expect(try await rounds(again).isLeaving, "the job of leaving outlives the process")
            try await again.eraseEverything()
            now = try await rounds(again)
            #expect(!now.isLeaving && !now.isOn)
            await again.close()
        }
    }
#endif
