import Foundation

#if canImport(CryptoKit)
    import CryptoKit
#else
    import Crypto
#endif

/// The public half of an Ed25519 signing key, which an app pins: only what was signed with the other half is opened.
public struct VerificationKey: Sendable, Hashable, CustomStringConvertible {
    /// Its 32 bytes as 64 hex digits.
    public let hex: String

    private static let mend =
        "give an Ed25519 key as 64 hex digits or as PEM text, which `pfl keys new` prints and writes"

    // SubjectPublicKeyInfo of an Ed25519 key (RFC 8410): this, then the 32 bytes.
    private static let spki: [UInt8] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00]

    /// The key in a text: 64 hex digits, or PEM.
    ///
    /// - Throws: `.keyFile`: it is neither, of another algorithm, or a private key, which has no place in an app
    public init(_ text: String) throws {
        let given = text.trimmingCharacters(in: .whitespacesAndNewlines)
        if let bytes = fromHex(given), bytes.count == 32 {
            hex = PFLMobile.hex(bytes)
            return
        }
        if given.contains("PRIVATE KEY") {
            throw PFLError(
                .keyFile, "the public key is a private key; whoever checks a signature must not have it",
                mend: "give the public half: the file that ends in .pub")
        }
        let lines = given.split(whereSeparator: \.isNewline).map { $0.trimmingCharacters(in: .whitespaces) }
        guard lines.first == "-----BEGIN PUBLIC KEY-----", lines.last == "-----END PUBLIC KEY-----" else {
            throw PFLError(.keyFile, "the public key is neither 64 hex digits nor PEM", mend: VerificationKey.mend)
        }
        guard let der = Data(base64Encoded: lines.dropFirst().dropLast().joined()) else {
            throw PFLError(.keyFile, "the public key is damaged PEM", mend: VerificationKey.mend)
        }
        guard der.starts(with: VerificationKey.spki), der.count == VerificationKey.spki.count + 32 else {
            throw PFLError(.keyFile, "the public key is of another algorithm than Ed25519", mend: VerificationKey.mend)
        }
        hex = PFLMobile.hex(der.dropFirst(VerificationKey.spki.count))
    }

    fileprivate init(bytes: [UInt8]) {
        hex = PFLMobile.hex(bytes)
    }

    /// The 64 hex digits.
    public var description: String { hex }

    /// Whether a signature, of 64 bytes, is of the data.
    func verifies(_ signature: [UInt8], _ data: [UInt8]) -> Bool {
        guard let bytes = fromHex(hex), let key = try? Curve25519.Signing.PublicKey(rawRepresentation: bytes) else {
            return false
        }
        return key.isValidSignature(Data(signature), for: Data(data))
    }
}

/// Ed25519 signatures over the exact bytes of `manifest.json`, which has the digest of every other file.
enum Signatures {
    static let maxBytes = 4096
    private static let algorithm = "ed25519"

    /// Checks a manifest against the content of its signature file.
    ///
    /// - Parameters:
    ///   - manifest: exact bytes of the manifest
    ///   - signature: exact bytes of the signature file; nil when there is none
    ///   - pinned: the key that must have signed. Without one the check only shows that the manifest is unchanged since
    ///     someone, whoever that is, signed it
    /// - Returns: the public key that made the signature, in hex
    /// - Throws: `.signature`: missing, malformed, by another key than the pinned one, or not of these bytes
    static func verify(_ manifest: [UInt8], signature: [UInt8]?, pinned: VerificationKey?) throws -> String {
        guard let signature else {
            throw PFLError(
                .signature, "the bundle is not signed",
                mend: "export it with --sign KEY, or allow unsigned bundles if you trust where it came from")
        }
        let named: VerificationKey
        let value: [UInt8]
        do {
            (named, value) = try parse(signature)
        } catch let error as Malformed {
            throw PFLError(
                .signature, "\(Paths.signature) is not a signature: \(error)", mend: "obtain the bundle again",
                cause: error)
        }
        if let pinned, named != pinned {
            throw PFLError(
                .signature, "the bundle is signed by another key: \(named), not \(pinned)",
                mend: "obtain the bundle from its owner, or pin the owner's new key")
        }
        if !named.verifies(value, manifest) {
            throw PFLError(
                .signature, "\(Paths.manifest) is not what was signed",
                mend: "obtain the bundle again; after an edit of the manifest, export and sign anew")
        }
        return named.hex
    }

    private static func parse(_ signature: [UInt8]) throws -> (VerificationKey, [UInt8]) {
        if signature.count > maxBytes { throw Malformed("it is too long") }
        var fields = try Fields(try parseJSON(bytes: signature))
        if try fields.required("algorithm", Fields.text) != algorithm {
            throw Malformed("its algorithm is not '\(algorithm)'")
        }
        let key = fromHex(try fields.required("public_key", Fields.text))
        let value = fromHex(try fields.required("signature", Fields.text))
        try fields.done()
        guard let key, let value, key.count == 32, value.count == 64 else {
            throw Malformed("its key or signature has the wrong length")
        }
        return (VerificationKey(bytes: key), value)
    }
}
