import PFLKeyboard
import PFLMobile
import PFLMobileSDK
import SwiftUI

/// The app around the keyboard: it shows what was learned, and trains in the background.
@main struct KeyboardApp: App {
    @Environment(\.scenePhase) private var phase
    private let scheduler: PersonalizationScheduler
    private let assistant: Assistant

    init() {
        let scheduler = PersonalizationScheduler(identifier: Shared.job) { try await Shared.open(shared: true) }
        self.scheduler = scheduler
        assistant = Assistant(why: { try await scheduler.whyWaiting($0) }, open: { try await Shared.open(shared: true) })
        // the system wants to know it before the app has started; the screen says that nothing is scheduled where it is refused
        try? scheduler.register()
        try? scheduler.schedule()
    }

    var body: some Scene {
        WindowGroup {
            SettingsView(assistant: assistant)
        }
        .onChange(of: phase) { phase in
            // the keyboard, or a job, opens the model now
            if phase == .background { Task { await assistant.close() } }
        }
    }
}
