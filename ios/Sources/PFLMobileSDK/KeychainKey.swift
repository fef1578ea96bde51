#if canImport(Security)
    import Foundation
    import PFLMobile
    import Security

    /// Keeps the key of the examples in the Keychain: on this device only, in no backup, and readable from the first unlock on, as jobs
    /// run while the phone is locked.
    ///
    /// The Keychain keeps what an app that was removed put there, so an app erases its models rather than rely on being removed.
    public struct KeychainKey: DataKey {
        private let account: String
        private let group: String?
        private static let service = "io.pflmobile.examples"

        /// A key in the Keychain, which is made when it is first needed.
        ///
        /// - Parameters:
        ///   - account: which key; the name of the model's folder, for instance
        ///   - group: of the app and its extensions, where they share it: the identifier of their App Group
        public init(account: String, group: String? = nil) {
            self.account = account
            self.group = group
        }

        private var query: [String: Any] {
            var found: [String: Any] = [
                kSecClass as String: kSecClassGenericPassword, kSecAttrService as String: Self.service,
                kSecAttrAccount as String: account, kSecUseDataProtectionKeychain as String: true,
            ]
            if let group { found[kSecAttrAccessGroup as String] = group }
            return found
        }

        /// The 32 bytes of the key.
        ///
        /// - Throws: `.state`: the Keychain does not answer; it may later
        public func bytes() throws -> [UInt8] {
            if let found = try kept() { return found }
            var random = SystemRandomNumberGenerator()
            let made = (0..<32).map { _ in UInt8.random(in: 0...255, using: &random) }
            var item = query
            item[kSecValueData as String] = Data(made)
            item[kSecAttrAccessible as String] = kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly
            switch SecItemAdd(item as CFDictionary, nil) {
            case errSecSuccess: return made
            case errSecDuplicateItem:
                // the other process was faster, or what is there is no key of ours
                if let found = try kept() { return found }
                try destroy()
                let status = SecItemAdd(item as CFDictionary, nil)
                guard status == errSecSuccess else { throw silent(status) }
                return made
            case let status: throw silent(status)
            }
        }

        private func kept() throws -> [UInt8]? {
            var item = query
            item[kSecReturnData as String] = true
            item[kSecMatchLimit as String] = kSecMatchLimitOne
            var found: CFTypeRef?
            switch SecItemCopyMatching(item as CFDictionary, &found) {
            case errSecSuccess: return (found as? Data).flatMap { $0.count == 32 ? Array($0) : nil }
            case errSecItemNotFound: return nil
            case let status: throw silent(status)
            }
        }

        /// Removes the key: whatever it encrypted can never be read again.
        ///
        /// - Throws: `.state`: the Keychain does not answer
        public func destroy() throws {
            let status = SecItemDelete(query as CFDictionary)
            if status != errSecSuccess, status != errSecItemNotFound { throw silent(status) }
        }

        private func silent(_ status: OSStatus) -> PFLError {
            PFLError(
                .state, "the Keychain does not answer (\(status))",
                mend: "try again after the phone was unlocked; check the app's Keychain and App Group entitlements")
        }
    }
#endif
