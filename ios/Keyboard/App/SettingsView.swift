import PFLKeyboard
import PFLMobile
import SwiftUI

/// What the model learned and keeps, when it learns next, and the user's say in all of it.
struct SettingsView: View {
    let assistant: Assistant
    @Environment(\.scenePhase) private var phase
    @State private var standing: Standing?
    @State private var trouble: String?
    @State private var incognito = Shared.incognito
    @State private var paused = false
    @State private var takesPart = false
    @State private var steps: Int?
    @State private var asksRevert = false
    @State private var asksErase = false

    var body: some View {
        NavigationStack {
            List {
                if let trouble { Text("The model cannot be used: \(trouble)") }
                if let standing {
                    result(standing.result)
                    next(standing)
                    words(standing.words)
                    examples(standing)
                    privacy(standing.rounds)
                    controls(standing)
                } else if trouble == nil {
                    Text("One moment…")
                }
                Section("The keyboard") {
                    Text(
                        "Turn it on in Settings, General, Keyboard, Keyboards. With Full Access it learns from what you type; without, "
                            + "it suggests words as shipped and keeps nothing.")
                }
            }
            .navigationTitle("Personal keyboard")
        }
        // what the user typed is shown here
        .privacySensitive()
        .task { await refresh() }
        .onChange(of: phase) { _, phase in
            if phase == .active { Task { await refresh() } }
        }
    }

    private func result(_ result: Standing.Result?) -> some View {
        Section("What it learned") {
            if let result {
                Text("right words, as shipped: \(percent(result.before))")
                Text("right words, personal: \(percent(result.after))")
                Text(
                    result.adopted
                        ? "The personal model is in use."
                        : "The shipped model stayed in use: the personal one was no better on your own sentences.")
            } else {
                Text("Nothing yet: it has not trained on this phone.")
            }
        }
    }

    private func next(_ standing: Standing) -> some View {
        Section("What comes next") {
            Text(
                standing.waits.isEmpty
                    ? "The next training can begin now."
                    : "The next training waits: \(standing.waits.joined(separator: "; ")).")
            if let rounds = standing.rounds, rounds.isOn {
                Text(
                    rounds.waits.isEmpty
                        ? "The next round can begin now."
                        : "The next round waits: \(rounds.waits.joined(separator: "; ")).")
            }
            Button(steps.map { "Training: step \($0)" } ?? "Train now") { train() }
                .disabled(standing.paused || steps != nil)
        }
    }

    private func words(_ words: [String]) -> some View {
        Section("Words it learned") {
            if words.isEmpty { Text("No words of your own yet.") }
            ForEach(words, id: \.self) { word in
                row(word, spoken: "Forget the word \(word)") { try await $0.forgetWord(word) }
            }
        }
    }

    private func examples(_ standing: Standing) -> some View {
        Section("Sentences it keeps (\(standing.exampleCount))") {
            if standing.examples.isEmpty {
                Text("None. Sentences that you type are kept here, on this phone, until it has learned from them.")
            }
            ForEach(standing.examples, id: \.id) { kept in
                row(kept.text, spoken: "Forget this sentence: \(kept.text)") { try await $0.forgetExample(kept.id) }
            }
            if standing.exampleCount > standing.examples.count {
                Text("and \(standing.exampleCount - standing.examples.count) more")
            }
        }
    }

    private func privacy(_ rounds: Standing.Rounds?) -> some View {
        Section("Privacy") {
            if rounds?.isOn != true && rounds?.isLeaving != true { Text("Nothing leaves this phone.") }
            if let rounds {
                Toggle("Improve the keyboard together with other phones", isOn: $takesPart)
                    .onChange(of: takesPart) { _, on in
                        if on != rounds.isOn { act { try await $0.takePart(on) } }
                    }
                Text(
                    "If this is on, changes of the shared part of the model go to \(rounds.server), clipped and only where noise hides "
                        + "them, and along with each the number of sentences and steps it was learned with. What you type, your words, "
                        + "your own part of the model and how well it does on your sentences never do.")
                if rounds.isLeaving {
                    Text(
                        "No change leaves this phone any more. The server was out of reach and still knows this phone; it is told as "
                            + "soon as it can be.")
                }
                if let trouble = rounds.trouble { Text("Rounds with other phones do not work: \(trouble).") }
                if let unknown = rounds.unknown {
                    Text("It is not known what was sent: \(unknown).")
                } else if rounds.count > 0 || rounds.spent > 0 {
                    spent(rounds)
                }
            }
        }
    }

    @ViewBuilder private func spent(_ rounds: Standing.Rounds) -> some View {
        let sent = ByteCountFormatter.string(fromByteCount: Int64(rounds.bytes), countStyle: .file)
        Text(rounds.count == 1 ? "1 change was sent, \(sent)." : "\(rounds.count) changes were sent, \(sent) in all.")
        if rounds.spent.isFinite {
            Text("Privacy spent: ε \(number(rounds.spent)) of \(number(rounds.budget))")
            Text(
                "A round after which more than ε \(number(rounds.budget)) (δ \(String(format: "%.0e", rounds.delta))) would be spent "
                    + "is left out. What was sent cannot be taken back.")
        } else {
            Text("Something was sent that nothing protected.")
        }
    }

    private func number(_ value: Double) -> String { String(format: "%.2f", value) }

    private func controls(_ standing: Standing) -> some View {
        Section("Controls") {
            Toggle("Incognito: learn nothing of what I type", isOn: $incognito)
                .onChange(of: incognito) { _, on in Shared.incognito = on }
            Toggle("Pause learning", isOn: $paused)
                .onChange(of: paused) { _, on in
                    if on != standing.paused { act { try await $0.pause(on) } }
                }
            Button("Go back to the shipped model") { asksRevert = true }
                .confirmationDialog(
                    "The personal model is put away. Sentences that are kept stay.", isPresented: $asksRevert,
                    titleVisibility: .visible
                ) {
                    Button("Go back") { act { try await $0.revert() } }
                }
            Button("Erase everything", role: .destructive) { asksErase = true }
                .confirmationDialog(
                    "The personal model, its words and all sentences that are kept are deleted. This cannot be undone.",
                    isPresented: $asksErase, titleVisibility: .visible
                ) {
                    Button("Erase", role: .destructive) { act { try await $0.eraseEverything() } }
                }
        }
    }

    private func row(
        _ text: String, spoken: String, _ forget: @escaping @Sendable (Assistant) async throws -> Void
    ) -> some View {
        HStack {
            Text(text)
            Spacer()
            Button("Forget") { act(forget) }.accessibilityLabel(spoken)
        }
    }

    private func percent(_ share: Double) -> String { "\(Int((share * 100).rounded())) %" }

    private func train() {
        steps = 0
        let (progress, told) = AsyncStream<Int>.makeStream(bufferingPolicy: .bufferingNewest(1))
        Task { for await step in progress { steps = step } }
        act {
            try await $0.train { told.yield($0) }
        } finally: {
            told.finish()
            steps = nil
        }
    }

    /// Does something with the model and shows how it stands after.
    private func act(
        _ step: @escaping @Sendable (Assistant) async throws -> Void, finally: @escaping @MainActor () -> Void = {}
    ) {
        Task {
            do {
                try await step(assistant)
                trouble = nil
            } catch {
                trouble = (error as? PFLError)?.message ?? "\(error)"
            }
            finally()
            await refresh()
        }
    }

    private func refresh() async {
        do {
            let found = try await assistant.standing()
            standing = found
            paused = found.paused
            takesPart = found.rounds?.isOn ?? false
        } catch {
            standing = nil
            trouble = (error as? PFLError)?.message ?? "\(error)"
        }
    }
}
