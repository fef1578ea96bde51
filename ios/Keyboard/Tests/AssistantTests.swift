#if canImport(PFLOnnxRuntime)
    import Foundation
    import PFLMobile
    import PFLMobileSDK
    import PFLOnnxRuntime
    import Testing

    @testable import PFLKeyboard

    private let bundle = URL(fileURLWithPath: "\(bundles)/keyboard.pflb")

    /// The keyboard with a model that learns; where `python android/desktop.py` made its bundle.
    @Suite(.enabled(if: FileManager.default.fileExists(atPath: bundle.path))) @MainActor final class AssistantTests {
        private let folder = FileManager.default.temporaryDirectory.appendingPathComponent(
            "pfl-keyboard-\(UUID().uuidString)")

        deinit { try? FileManager.default.removeItem(at: folder) }

        private func assistant() -> Assistant {
            let folder = folder
            return Assistant(
                why: { _ in [.charging, .battery] },
                open: {
                    try await PersonalModel.open(
                        bundle: bundle, folder: folder, engines: [OnnxRuntimeEngine()], trusted: true)
                })
        }

        @Test("what is typed is suggested for, kept, shown and forgotten")
        func keyboard() async throws {
            let assistant = assistant()
            let page = Page1()
            var kept: [String] = []
            let typist = Typist { kept.append($0) }
            typist.start(Field.of(Traits(), incognito: false), page)
            for letter in "see you at the gym. " {
                typist.press(letter == " " ? .space : .type(String(letter)), page, now: 0)
            }
            for text in kept { try await assistant.remember(text) }
            #expect(kept == ["See you at the gym."])

            let next = try #require(typist.request(page))
            let words = try await assistant.words(next, count: 12)
            let shown = Composer.completions(words, next.prefix, 3).map { typist.spelled($0, next) }
            #expect(shown.count == 3, "\(words)")
            #expect(shown.allSatisfy { $0.first?.isUppercase == true }, "a sentence begins: \(shown)")
            typist.press(.type("t"), page, now: 0)
            let begun = try #require(typist.request(page))
            #expect(try await assistant.words(begun, count: 12).allSatisfy { $0.lowercased().hasPrefix("t") })

            var standing = try await assistant.standing()
            #expect(standing.examples.map(\.text) == kept)
            #expect(standing.waits == ["the phone does not charge", "there is too little in the battery"])
            try await assistant.forgetExample(try #require(standing.examples.first).id)
            try await assistant.pause(true)
            standing = try await assistant.standing()
            #expect(standing.exampleCount == 0 && standing.paused && standing.result == nil)
            await assistant.close()
            #expect(try await PersonalModel.isOpen(folder: folder) == false)
        }

        @Test("the model is closed when the keyboard goes, and opened when it is needed")
        func closing() async throws {
            let assistant = assistant()
            await assistant.close()
            try await assistant.remember("see you at the gym")
            #expect(try await PersonalModel.isOpen(folder: folder))
            await assistant.close()
            #expect(try await PersonalModel.isOpen(folder: folder) == false)
            #expect(try await assistant.standing().exampleCount == 1)
            await assistant.close()
        }

        @Test("a model that cannot be opened is tried again")
        func troubles() async throws {
            let tries = Tries()
            let assistant = Assistant {
                tries.count += 1
                throw PFLError(.state, "open in another process", mend: "close it there")
            }
            for _ in 0..<2 {
                await #expect(throws: PFLError.self) { try await assistant.standing() }
            }
            #expect(tries.count == 2)
        }
    }

    /// One task at a time counts.
    private final class Tries: @unchecked Sendable {
        var count = 0
    }
#endif
