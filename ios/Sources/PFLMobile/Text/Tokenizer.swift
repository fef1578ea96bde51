/// Ids of the special tokens of a tokenizer; several may be the same.
public struct SpecialIds: Sendable, Equatable {
    /// Fills rows.
    public let pad: Int
    /// Stands before a text.
    public let bos: Int
    /// Stands behind a text.
    public let eos: Int
    /// What is outside the vocabulary; -1 where the tokenizer has no such token.
    public let unk: Int

    /// Ids of special tokens.
    public init(pad: Int, bos: Int, eos: Int, unk: Int = -1) {
        self.pad = pad
        self.bos = bos
        self.eos = eos
        self.unk = unk
    }
}

/// Cuts texts into parts that have ids: words, or subwords. Parts are told apart by their code points.
public protocol Tokenizer: Sendable {
    /// Number of ids, special tokens included.
    var size: Int { get }

    /// Ids of the special tokens.
    var specials: SpecialIds { get }

    /// By which words are told apart in what the user blocks or wants forgotten.
    var rules: PieceRules { get }

    /// The parts of a text, in or out of the vocabulary.
    func words(_ text: String) throws -> [String]

    /// The id of a part; that of the unknown token where it has none.
    func id(_ word: String) -> Int

    /// The part of an id.
    ///
    /// - Throws: `.outOfVocabulary`: there is no such id
    func word(_ id: Int) throws -> String

    /// Whether a part is a symbol (or a special token) and no word.
    func isSymbol(_ piece: String) -> Bool
}

/// A vocabulary of words and symbols, over the pieces that the rules cut.
public struct WordTokenizer: Tokenizer {
    /// The special tokens, in the order of their ids.
    public static let specialWords = ["<pad>", "<s>", "<unk>", "</s>"]

    private let all: [String]
    private let ids: [Exact: Int]
    /// By which texts are cut.
    public let rules: PieceRules
    /// Ids of the special tokens.
    public let specials = SpecialIds(pad: 0, bos: 1, eos: 3, unk: 2)

    /// A vocabulary.
    ///
    /// - Parameters:
    ///   - words: in the order of their ids; the special tokens come first
    ///   - rules: by which texts are cut
    /// - Throws: `.data`: the special tokens do not come first, or a word stands twice
    public init(_ words: [String], rules: PieceRules = .newest) throws {
        ids = Dictionary(words.enumerated().map { (Exact($1), $0) }) { first, _ in first }
        if ids.count != words.count || words.contains("") || Array(words.prefix(4)) != WordTokenizer.specialWords {
            throw PFLError(
                .data, "the words are not \(WordTokenizer.specialWords) and then each word once",
                mend: "export the bundle again")
        }
        all = words
        self.rules = rules
    }

    /// Number of ids, special tokens included.
    public var size: Int { all.count }

    /// The pieces of a text.
    public func words(_ text: String) -> [String] { rules.cut(text) }

    /// The id of a piece; that of the unknown token where it has none.
    public func id(_ word: String) -> Int { ids[Exact(word)] ?? specials.unk }

    /// The piece of an id.
    ///
    /// - Throws: `.outOfVocabulary`: there is no such id
    public func word(_ id: Int) throws -> String {
        guard all.indices.contains(id) else { throw outOfVocabulary(id, size, "tokenizer") }
        return all[id]
    }

    /// Whether a piece is a symbol (or a special token) and no word.
    public func isSymbol(_ piece: String) -> Bool { rules.isSymbol(piece) }

    /// Reads a `tokenizer.json`.
    ///
    /// - Throws: `.data`: it is none of a word tokenizer with the piece rules of a known version
    public init(json: some Collection<UInt8>) throws {
        let words: [String]
        let rules: PieceRules
        do {
            let file = try WordTokenizer.object(try parseJSON(bytes: json))
            let model = try WordTokenizer.object(file["model"])
            if model["type"]?.string != "WordLevel" { throw Malformed("its model is not WordLevel") }
            let vocabulary = try WordTokenizer.object(model["vocab"])
            var found = [String?](repeating: nil, count: vocabulary.count)
            for (word, id) in vocabulary {
                guard let id = id.integer, found.indices.contains(id), found[id] == nil else {
                    throw Malformed("its ids have gaps, or two words of one id")
                }
                found[id] = word
            }
            words = found.compactMap { $0 }
            guard let known = WordTokenizer.rules(file) else { throw Malformed("it does not follow the piece rules") }
            rules = known
        } catch let error as Malformed {
            throw PFLError(.data, "this is no word tokenizer: \(error)", mend: "export the bundle again", cause: error)
        }
        try self.init(words, rules: rules)
    }

    /// Of version 1 the file holds the rules, of version 2 it splits at white space.
    private static func rules(_ file: JSONObject) -> PieceRules? {
        if let added = file["added_tokens"], added != .array([]) { return nil }
        switch file["pre_tokenizer"]?.object?["type"]?.string {
        case "WhitespaceSplit": return (file["normalizer"] ?? .null).isNull ? .version2 : nil
        case "Split":
            let types = file["normalizer"]?.object?["normalizers"]?.array?.map { $0.object?["type"]?.string }
            return types == ["NFKC", "Replace", "Replace", "Lowercase"] ? .version1 : nil
        default: return nil
        }
    }

    private static func object(_ json: JSON?) throws -> JSONObject {
        guard let fields = json?.object else { throw Malformed("a part of it is no object") }
        return fields
    }
}

func outOfVocabulary(_ id: Int, _ size: Int, _ what: String) -> PFLError {
    PFLError(
        .outOfVocabulary, "token id \(id) lies outside 0..\(size - 1)", mend: "use the \(what) of this model")
}
