import Foundation
import PFLMobile

extension PersonalModel {
    /// Opens the model of a bundle as an app should: in a folder of its own, of which there is no backup, encrypted until the phone was
    /// first unlocked; what jobs noted of it goes when everything is erased.
    ///
    /// iOS ends an app or extension that is suspended with a lock in a folder that it shares: with `appGroup`, close the model
    /// before your process leaves the screen, unless a background task runs.
    ///
    /// - Parameters:
    ///   - bundle: its folder or `.pflb` file
    ///   - appGroup: of an app and its extensions that share the model; nil for the app alone
    ///   - key: keeps the key of the examples; on Apple's systems usually the Keychain, with `KeychainKey`
    /// - Throws: as `open(bundle:folder:options:)`; `.config`: the App Group is not among the app's entitlements
    public static func open(
        bundle: URL, appGroup: String?, options: ModelOptions? = nil, key: @escaping @Sendable (URL) -> any DataKey
    ) async throws -> PersonalModel {
        let folder = try home(of: bundle, appGroup: appGroup)
        return try await open(bundle: bundle, in: folder, options: options ?? ModelOptions(), key: key)
    }

    static func open(
        bundle: URL, in folder: URL, options: ModelOptions, key: @escaping @Sendable (URL) -> any DataKey
    ) async throws -> PersonalModel {
        let model = try await open(bundle: bundle, folder: folder, options: options) { home in
            try protect(home)
            let store = try FileExampleStore(
                home.appendingPathComponent("examples"), retention: options.retention, key: key(home))
            return NotedExampleStore(store, JobNotes(home))
        }
        return model
    }

    /// Where a model is kept.
    ///
    /// - Throws: `.config`: the App Group is not among the app's entitlements
    public static func home(of bundle: URL, appGroup: String?) throws -> URL {
        let files = FileManager.default
        let root: URL
        if let appGroup {
            #if canImport(Darwin)
                guard let shared = files.containerURL(forSecurityApplicationGroupIdentifier: appGroup) else {
                    throw noGroup(appGroup)
                }
                root = shared
            #else
                throw noGroup(appGroup)
            #endif
        } else {
            root = files.urls(for: .applicationSupportDirectory, in: .userDomainMask).first ?? files.temporaryDirectory
        }
        return root.appendingPathComponent("pfl").appendingPathComponent(
            bundle.deletingPathExtension().lastPathComponent)
    }

    private static func noGroup(_ group: String) -> PFLError {
        PFLError(
            .config, "there is no App Group '\(group)'",
            mend: "add it to the entitlements of the app and of its extensions")
    }
}

/// Keeps a folder out of backups and encrypted until the phone was first unlocked: jobs run while it is locked.
func protect(_ folder: URL) throws {
    #if canImport(Darwin)
        do {
            var folder = folder
            var values = URLResourceValues()
            values.isExcludedFromBackup = true
            try folder.setResourceValues(values)
            #if !os(macOS)
                try FileManager.default.setAttributes(
                    [.protectionKey: FileProtectionType.completeUntilFirstUserAuthentication], ofItemAtPath: folder.path
                )
            #endif
        } catch {
            throw PFLError(
                .unwritable, "\(folder.path) cannot be protected: \(error)", mend: "check the app's storage",
                cause: error)
        }
    #endif
}

/// Examples whose erasing takes what jobs noted with them.
private final class NotedExampleStore: ExampleStore {
    private let store: FileExampleStore
    private let notes: JobNotes

    init(_ store: FileExampleStore, _ notes: JobNotes) {
        self.store = store
        self.notes = notes
    }

    func add(_ payload: Payload) throws -> Int? { try store.add(payload) }
    func examples(newest: Int?) throws -> [Example] { try store.examples(newest: newest) }
    func count() throws -> Int { try store.count() }
    func erase(_ ids: some Collection<Int>) throws -> Int { try store.erase(ids) }
    func close() throws { try store.close() }

    func eraseAll() throws -> Int {
        let erased = try store.eraseAll()
        notes.erase()
        return erased
    }
}
