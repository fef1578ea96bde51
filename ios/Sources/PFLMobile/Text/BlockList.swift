import Foundation

#if canImport(CryptoKit)
    import CryptoKit
#else
    import Crypto
#endif

/// Words that a user wants forgotten, as the tokenizer cuts and folds them, kept so that they are not learned again, without
/// being spelled out.
///
/// The list must not be the place where a forgotten word is read, so it holds keyed digests: HMAC-SHA-256 of the word in UTF-8
/// under a key of 32 random bytes that lies beside them. Whoever has the file can test a guess, and so find a word that can be
/// guessed; nobody can read a list of words out of it.
///
///     {"schema_version": 1, "kind": "pfl-blocked-words", "key": "<64 hex>", "words": ["<64 hex>", ...]}
public struct BlockList: Sendable {
    private let key: [UInt8]
    private let digests: Set<String>

    private static let kind = "pfl-blocked-words"
    private static let schemaVersion = 1

    init(key: [UInt8], digests: Set<String>) {
        self.key = key
        self.digests = digests
    }

    /// No words, and a key of its own.
    public init() {
        var generator = SystemRandomNumberGenerator()
        self.init(key: (0..<32).map { _ in UInt8.random(in: 0...255, using: &generator) }, digests: [])
    }

    /// How many words are blocked.
    public var size: Int { digests.count }

    /// Whether exactly this word is blocked.
    public func contains(_ word: String) -> Bool {
        !digests.isEmpty && digests.contains(digest(word))
    }

    /// Whether the word, or a part of it between apostrophes (`greta's`), is blocked.
    public func hides(_ word: String) -> Bool {
        contains(word) || word.unicodeScalars.split(separator: "'").contains { contains(String($0)) }
    }

    /// This list with more words.
    public func adding(_ words: some Sequence<String>) -> BlockList {
        BlockList(key: key, digests: digests.union(words.map(digest)))
    }

    /// The content of the file.
    func json() -> [UInt8] {
        let lines = digests.sorted().map { "\"\($0)\"" }.joined(separator: ",\n  ")
        let words = digests.isEmpty ? "[]" : "[\n  \(lines)\n ]"
        let head =
            " \"schema_version\": \(BlockList.schemaVersion),\n \"kind\": \"\(BlockList.kind)\",\n \"key\": \"\(hex(key))\""
        return Array("{\n\(head),\n \"words\": \(words)\n}\n".utf8)
    }

    /// Reads the content of a file.
    ///
    /// - Parameter what: its name, for messages
    /// - Throws: `.state`: it is damaged or newer. Without it words would be learned that must not be, so it is never taken for
    ///   empty
    init(json: [UInt8], _ what: String) throws {
        do {
            guard let raw = try parseJSON(bytes: json).object else { throw Malformed("it is no object") }
            let kind = raw["kind"]?.string
            let version = raw["schema_version"]
            if kind == BlockList.kind, let number = version?.number, number > Double(BlockList.schemaVersion) {
                throw PFLError(
                    .state, "\(what) has schema \(general(number)), newer than \(BlockList.schemaVersion)",
                    mend: "update the app")
            }
            let words = raw["words"]?.array?.map { $0.string.flatMap(fromHex) }
            guard kind == BlockList.kind, version?.integer == BlockList.schemaVersion,
                let key = raw["key"]?.string.flatMap(fromHex), key.count == 32, let words,
                words.allSatisfy({ $0?.count == 32 })
            else { throw Malformed("it is not a list of blocked words") }
            self.init(key: key, digests: Set(words.compactMap { $0.map { hex($0) } }))
        } catch let error as Malformed {
            throw PFLError(
                .state, "the list of forgotten words \(what) is damaged: \(error)",
                mend: "restore it from a backup; or remove it and forget the words again, before anything is trained",
                cause: error)
        }
    }

    private func digest(_ word: String) -> String {
        hex(HMAC<SHA256>.authenticationCode(for: Data(word.utf8), using: SymmetricKey(data: key)))
    }
}
