/// A Hugging Face `tokenizer.json` (BPE, WordPiece, Unigram, WordLevel), as a pretrained language model brings it, cut as the tokenizers
/// library cuts. A step that is not understood is refused, since other ids would be worse than none: `UnicodeScripts`, `CTC` and
/// dropout are.
///
/// Tokens that the file marks as special, and padding, start and end, are left out wherever they come from a text, so nobody can
/// type them. Truncation, padding and the template of the file are not used. There are no vocabulary slots over subwords.
public struct SubwordTokenizer: Tokenizer {
    private let model: any SubwordModel
    private let normalizer: Normalizer?
    private let preTokenizer: PreTokenizer?
    private let decoder: Decoder?
    private let added: AddedTokens
    private let ids: [Exact: Int]
    private let tokens: [Int: String]
    private let marked: Set<Int>
    private let leftOut: Set<Int>
    /// Ids of the special tokens.
    public let specials: SpecialIds
    /// Number of ids, special tokens included.
    public let size: Int

    /// By which words are told apart in what the user blocks or wants forgotten.
    public var rules: PieceRules { .newest }

    /// No vocabulary in use is larger.
    private static let mostIds = 1 << 21

    /// Values in a `tokenizer.json`; the largest in use has 2.1 million.
    private static let mostValues = 8_000_000

    /// Reads a `tokenizer.json`.
    ///
    /// - Throws: `.data`: it is no tokenizer, has a step that is not understood, or no tokens of these ids
    public init(json: some Collection<UInt8>, specials: SpecialIds) throws {
        do {
            let whole = try parseJSON(bytes: json, values: SubwordTokenizer.mostValues)
            guard let file = whole.object else { throw Malformed("it is no object") }
            try self.init(file, specials)
        } catch let error as Malformed {
            throw PFLError(
                .data, "this is no tokenizer.json: \(error)", mend: "save it with a current version of tokenizers",
                cause: error)
        }
    }

    private init(_ file: JSONObject, _ specials: SpecialIds) throws {
        guard let fields = file["model"]?.object, let vocabulary = fields["vocab"] else {
            throw Malformed("it has no vocabulary")
        }
        func checked(_ id: Int?) throws -> Int {
            guard let id, (0..<SubwordTokenizer.mostIds).contains(id) else {
                throw Malformed("its ids do not lie from 0 to \(SubwordTokenizer.mostIds - 1)")
            }
            return id
        }
        var ids: [Exact: Int] = [:]
        let entries = vocabulary.array
        if let entries {
            _ = try checked(entries.count)
            for (id, entry) in entries.enumerated() {
                guard let token = entry.array?.first?.string else { throw Malformed("a token is no text") }
                ids[Exact(token)] = id
            }
        } else {
            guard let named = vocabulary.object else { throw Malformed("its vocabulary is none") }
            for (token, id) in named { ids[Exact(token)] = try checked(id.integer) }
        }
        let type = fields["type"]?.string
        switch (type, entries) {
        case ("BPE", nil): model = try BytePairs(fields, ids)
        case ("WordPiece", nil): model = try WordPieces(fields, ids)
        case ("WordLevel", nil): model = try WholeWords(fields, ids)
        case ("Unigram", let entries?): model = try UnigramPieces(fields, ids, entries)
        default: throw Malformed("its model '\(type ?? "")' is not understood here")
        }
        let normalizer = try PFLMobile.normalizer(file["normalizer"])
        self.normalizer = normalizer
        preTokenizer = try PFLMobile.preTokenizer(file["pre_tokenizer"])
        decoder = try PFLMobile.decoder(file["decoder"])
        let added = try SubwordTokenizer.added(file).map { token in
            _ = try checked(token.id)
            ids[Exact(token.content.string)] = token.id
            return token
        }
        self.added = AddedTokens(added, normalizer)
        self.ids = ids
        let tokens = Dictionary(ids.map { ($1, $0.text) }) { first, _ in first }
        self.tokens = tokens
        size = (tokens.keys.max() ?? -1) + 1
        let wanted = [specials.pad, specials.bos, specials.eos] + (specials.unk == -1 ? [] : [specials.unk])
        if let missing = wanted.first(where: { tokens[$0] == nil }) {
            throw Malformed("it has no token with the id \(missing)")
        }
        let marked = Set(added.filter(\.isSpecial).map(\.id))
        self.marked = marked
        leftOut = marked.subtracting([specials.unk]).union([specials.pad, specials.bos, specials.eos])
        self.specials = specials
    }

    private static func added(_ file: JSONObject) throws -> [AddedTokens.Token] {
        guard let list = file["added_tokens"], !list.isNull else { return [] }
        guard let entries = list.array else { throw Malformed("its added tokens are no list") }
        return try entries.map { entry in
            guard let fields = entry.object, let id = fields["id"]?.integer, let content = fields["content"]?.string
            else {
                throw Malformed("an added token has no id and content")
            }
            func flag(_ name: String, _ value: Bool) -> Bool { fields[name]?.bool ?? value }
            let isSpecial = flag("special", false)
            return AddedTokens.Token(
                id: id, content: Scalars(content), isSpecial: isSpecial, singleWord: flag("single_word", false),
                stripsLeft: flag("lstrip", false), stripsRight: flag("rstrip", false),
                normalized: flag("normalized", !isSpecial))
        }
    }

    /// The subwords of a text, without special tokens.
    ///
    /// - Throws: `.data`: it cannot be cut, as the tokenizer lacks an unknown token
    public func words(_ text: String) throws -> [String] {
        var found: [Int] = []
        do {
            for part in added.parts(Scalars(text), normalizer) {
                switch part {
                case .token(let id): found.append(id)
                case .text(let segment):
                    for piece in preTokenizer?(segment) ?? [segment] { found += try model.ids(piece.text) }
                }
            }
        } catch let error as Malformed {
            throw PFLError(
                .data, "the tokenizer cannot cut a text: \(error)", mend: "give it an unknown token, or byte fallback",
                cause: error)
        }
        return found.filter { !leftOut.contains($0) }.compactMap { tokens[$0] }
    }

    /// The id of a subword; that of the unknown token where it has none.
    public func id(_ word: String) -> Int { ids[Exact(word)] ?? specials.unk }

    /// The subword of an id, as the file spells it; `<unk>` where the ids have a gap.
    ///
    /// - Throws: `.outOfVocabulary`: there is no such id
    public func word(_ id: Int) throws -> String {
        guard (0..<size).contains(id) else { throw outOfVocabulary(id, size, "tokenizer") }
        return tokens[id] ?? WordTokenizer.specialWords[2]
    }

    /// The text that subwords spell together.
    public func text(_ ids: [Int]) -> String {
        let found = ids.filter { !marked.contains($0) }.compactMap { tokens[$0].map(Scalars.init) }
        guard let decoder else { return found.map(\.string).joined(separator: " ") }
        return decoder(found).flatMap { $0 }.string
    }

    /// Whether no letter and no digit is in a subword.
    public func isSymbol(_ piece: String) -> Bool { rules.cut(text([id(piece)])).allSatisfy(rules.isSymbol) }

    /// Ids of all subwords that spell one of the words at the beginning of a text or behind a space, written small, with a
    /// capital or all in capitals; without those that are only a space or symbols. A subword is often part of other words too.
    ///
    /// - Throws: as `words`
    func spellings(_ words: some Sequence<String>) throws -> Set<Int> {
        let cases = words.flatMap { word -> [String] in
            let small = word.lowercased()
            let capital = small.unicodeScalars.first.map {
                $0.properties.titlecaseMapping + String(small.unicodeScalars.dropFirst())
            }
            return [word, capital ?? "", word.uppercased()]
        }
        let pieces = try cases.flatMap { try self.words($0) + self.words(" \($0)") }
        return Set(pieces.filter { !isSymbol($0) }.map(id))
    }
}
