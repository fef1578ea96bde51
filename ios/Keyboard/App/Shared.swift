import Foundation
import PFLCoreML
import PFLKeyboard
import PFLMobile
import PFLMobileSDK

/// What the app and its keyboard share.
enum Shared {
    /// As project.yml puts it into both entitlements.
    static let group = "group.io.pflmobile.keyboard"
    /// As project.yml permits it.
    static let job = "io.pflmobile.keyboard.personalization"
    /// Likewise.
    static let roundsJob = "io.pflmobile.keyboard.rounds"

    /// What the user chose about the keyboard itself. Without Full Access the keyboard may read it and not write it.
    static var preferences: UserDefaults { UserDefaults(suiteName: group) ?? .standard }

    /// Whether nothing is learned of what is typed.
    static var incognito: Bool {
        get { preferences.bool(forKey: "incognito") }
        set { preferences.set(newValue, forKey: "incognito") }
    }

    /// Opens the model that comes with the app and with its keyboard.
    ///
    /// - Parameter shared: in the folder that both may write; else in one of this process alone
    static func open(shared: Bool) async throws -> PersonalModel {
        guard let bundle = Bundle.main.url(forResource: "keyboard", withExtension: "pflb") else {
            throw PFLError(
                .missingFile, "keyboard.pflb did not come with the app",
                mend: "export it into ios/Keyboard/Resources, see ios/Keyboard/README.md")
        }
        // a keyboard has about 60 MB for everything: its engine goes soon after the last word
        let options = try ModelOptions(engines: [CoreMLEngine()], engineIdleMs: 10_000)
        let group = shared ? Self.group : nil
        return try await PersonalModel.open(bundle: bundle, appGroup: group, options: options) { home in
            KeychainKey(account: home.lastPathComponent, group: group)
        }
    }
}

/// What the user chose about rounds, as the App Group keeps it.
final class KeptChoice: RoundsChoice {
    /// Whether the user takes part.
    var takesPart: Bool {
        get { Shared.preferences.bool(forKey: "rounds") }
        set { Shared.preferences.set(newValue, forKey: "rounds") }
    }

    /// As the Info.plist has it (`PFLRoundsServer`), for whoever builds a keyboard with a server.
    var server: String { Bundle.main.object(forInfoDictionaryKey: "PFLRoundsServer") as? String ?? "" }
}
