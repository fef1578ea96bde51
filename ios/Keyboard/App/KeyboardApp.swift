import PFLKeyboard
import PFLMobile
import PFLMobileSDK
import SwiftUI

/// The app around the keyboard: it shows what was learned, and trains and takes part in rounds in the background.
@main struct KeyboardApp: App {
    @Environment(\.scenePhase) private var phase
    private let scheduler: PersonalizationScheduler
    private let assistant: Assistant

    init() {
        let scheduler = PersonalizationScheduler(identifier: Shared.job) { try await Shared.open(shared: true) }
        self.scheduler = scheduler
        let choice = KeptChoice()
        let rounds = RoundsScheduler(
            identifier: Shared.roundsJob, openWith: { try await Shared.open(shared: true) },
            federationWith: { try Participation.federation(of: choice) })
        // the system wants to know them before the app has started; the screen says that nothing is scheduled where it is refused
        try? scheduler.register()
        try? rounds.register()
        try? scheduler.schedule()
        assistant = Assistant(
            why: { try await scheduler.whyWaiting($0) }, participation: Participation(choice, rounds),
            open: { try await Shared.open(shared: true) })
    }

    var body: some Scene {
        WindowGroup {
            SettingsView(assistant: assistant)
        }
        .onChange(of: phase) { _, phase in
            // the keyboard, or a job, opens the model now
            if phase == .background { Task { await assistant.close() } }
        }
    }
}
