import Foundation

#if canImport(CryptoKit)
    import CryptoKit
#else
    import Crypto
#endif

/// Keeps the key under which examples are encrypted. On Apple's systems that is a thing for the Keychain.
public protocol DataKey: Sendable {
    /// The 32 bytes of the key. One is made where there is none, or where it is lost for good.
    ///
    /// - Throws: `.state`: the keeper does not answer; it may later
    func bytes() throws -> [UInt8]

    /// Removes the key: whatever it encrypted can never be read again.
    func destroy() throws
}

/// A random key in a file for its owner alone. It protects what it encrypted as well as the folder does that it lies in, and no
/// better; but once it is removed, copies of what it encrypted are worth nothing.
public struct FileKey: DataKey {
    private let path: String

    /// The key in a file, which is made when it is first needed.
    public init(_ file: URL) {
        path = file.path
    }

    public func bytes() throws -> [UInt8] {
        do {
            let found = try readBytes(path, most: 32)
            if found.count == 32 { return found }
        } catch let error as SystemError where !error.isMissing {
            throw PFLError(.state, "\(path) cannot be read: \(error)", mend: "try again later", cause: error)
        } catch {
            // There is none, or something else in its place: whatever it encrypted is lost.
        }
        var generator = SystemRandomNumberGenerator()
        let made = (0..<32).map { _ in UInt8.random(in: 0...255, using: &generator) }
        try AtomicFiles().write(path, made)
        return made
    }

    public func destroy() throws { try AtomicFiles().delete(path) }
}

/// Encrypts with AES-256-GCM. The key is asked for once, as its keeper may be slow.
struct Seal {
    private let keeper: any DataKey
    private var key: SymmetricKey?

    /// Bytes that sealing adds: nonce and tag.
    static let overhead = 12 + 16

    init(_ keeper: any DataKey) {
        self.keeper = keeper
    }

    private mutating func asked() throws -> SymmetricKey {
        if let key { return key }
        let bytes = try keeper.bytes()
        if bytes.count != 32 {
            throw PFLError(.config, "a key of \(bytes.count) bytes", mend: "give one of 32 random bytes")
        }
        let found = SymmetricKey(data: bytes)
        key = found
        return found
    }

    /// Bytes encrypted and bound to what they are about.
    mutating func seal(_ plain: [UInt8], about: [UInt8]) throws -> [UInt8] {
        let box = try AES.GCM.seal(plain, using: try asked(), authenticating: about)
        return Array(box.nonce) + Array(box.ciphertext) + Array(box.tag)
    }

    /// What was sealed; nil where it is damaged, or its key is lost.
    mutating func open(_ sealed: Data, about: [UInt8]) throws -> [UInt8]? {
        let key = try asked()
        guard let box = try? AES.GCM.SealedBox(combined: sealed),
            let plain = try? AES.GCM.open(box, using: key, authenticating: about)
        else { return nil }
        return Array(plain)
    }

    mutating func destroy() throws {
        key = nil
        try keeper.destroy()
    }
}
