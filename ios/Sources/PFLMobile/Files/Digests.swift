#if canImport(CryptoKit)
    import CryptoKit
#else
    import Crypto
#endif

/// SHA-256 over parts given one after the other.
package struct Sha256 {
    private var hash = SHA256()

    package init() {}

    mutating func add(_ bytes: some Sequence<UInt8>) {
        let done: Void? = bytes.withContiguousStorageIfAvailable {
            hash.update(bufferPointer: UnsafeRawBufferPointer($0))
        }
        if done == nil { Array(bytes).withUnsafeBytes { hash.update(bufferPointer: $0) } }
    }

    package mutating func add(_ bytes: UnsafeRawBufferPointer) {
        hash.update(bufferPointer: bytes)
    }

    package mutating func add(_ text: String) {
        add(text.utf8)
    }

    /// The 32 bytes.
    package var bytes: [UInt8] { Array(hash.finalize()) }

    /// The digest of a text, in hex.
    static func hex(_ text: String) -> String { hex(Array(text.utf8)) }

    /// The digest of bytes, in hex.
    static func hex(_ bytes: some Sequence<UInt8>) -> String {
        var sha = Sha256()
        sha.add(bytes)
        return PFLMobile.hex(sha.bytes)
    }
}
