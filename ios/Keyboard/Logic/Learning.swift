/// What the app says of a field, as far as the keyboard looks at it.
public struct Traits: Sendable, Equatable {
    /// Which keys the field asks for.
    public enum Keys: Sendable {
        case text, address, url, digits, search
    }

    public var keys: Keys
    /// What is typed there is hidden.
    public var isSecret: Bool
    /// What the field is for, where the app says it: a name, an address, a code.
    public var content: String?
    /// Whether the field wants no corrections.
    public var noCorrection: Bool

    public init(keys: Keys = .text, isSecret: Bool = false, content: String? = nil, noCorrection: Bool = false) {
        self.keys = keys
        self.isSecret = isSecret
        self.content = content
        self.noCorrection = noCorrection
    }
}

/// What the keyboard may do in a field.
public struct Field: Sendable, Equatable {
    /// What is typed into it.
    public enum Kind: Sendable {
        case text, address, url, digits, secret
    }

    public var kind: Kind
    /// Whether what is typed there may be learned.
    public var learns: Bool
    /// Whether words are suggested.
    public var suggests: Bool

    /// A field that nothing is known of.
    public static let unknown = Field(kind: .text, learns: false, suggests: false)

    /// Learned is only where people write to people: not a search, and not where the app says what the field is for, since that is a
    /// name, an address, a code or a card.
    ///
    /// - Parameter incognito: whether the user asked that nothing be learned
    public static func of(_ traits: Traits, incognito: Bool) -> Field {
        if traits.isSecret { return Field(kind: .secret, learns: false, suggests: false) }
        let kind: Kind =
            switch traits.keys {
            case .text, .search: .text
            case .address: .address
            case .url: .url
            case .digits: .digits
            }
        let suggests = kind == .text && !traits.noCorrection
        let prose = traits.keys == .text && traits.content == nil
        return Field(kind: kind, learns: suggests && prose && !incognito, suggests: suggests)
    }
}

/// Keeps out of the examples what is no language or must not be kept: numbers, addresses of mail and web, codes, passwords pasted into
/// a message. The text is cut there, so that words which never stood side by side are not learned as neighbours.
public enum LearningFilter {
    /// Examples have at least so many words: one alone teaches no order.
    static let fewest = 2
    private static let longest = 30
    private static let longestWithoutVowel = 6
    private static let quotes = Set(
        "\"'\u{2018}\u{2019}\u{201C}\u{201D}\u{AB}\u{BB}()[]{}*.,;:!?\u{2026}-\u{2013}\u{2014}\u{BF}\u{A1}\u{3002}\u{3001}"
            .unicodeScalars)
    private static let technical = Set("@#_\\/=|<>^~$%&+`".unicodeScalars)
    private static let consonants = Set("bcdfghjklmnpqrstvwxz".unicodeScalars)

    /// The parts of a text that may be learned. Words that the user wants forgotten are the model's to refuse.
    public static func parts(_ text: String) -> [String] {
        var parts: [String] = []
        var part: [Substring] = []
        func close() {
            if part.count(where: isWord) >= fewest { parts.append(part.joined(separator: " ")) }
            part = []
        }
        for token in text.split(whereSeparator: \.isWhitespace) {
            if isOneOff(token) { close() } else { part.append(token) }
        }
        close()
        return parts
    }

    /// Whether a token is no word of a language.
    public static func isOneOff(_ token: some StringProtocol) -> Bool {
        var bare = Array(token.unicodeScalars)
        while let last = bare.last, quotes.contains(last) { bare.removeLast() }
        bare.removeFirst(bare.prefix { quotes.contains($0) }.count)
        return bare.contains { technical.contains($0) || isNumber($0) } || isDomain(bare) || bare.count > longest
            || isCode(bare)
    }

    private static func isNumber(_ point: Unicode.Scalar) -> Bool {
        [.decimalNumber, .otherNumber].contains(point.properties.generalCategory)
    }

    private static func isDomain(_ bare: [Unicode.Scalar]) -> Bool {
        let labels = bare.split(separator: ".", omittingEmptySubsequences: false)
        return labels.count > 1
            && labels.allSatisfy { label in
                label.count > 1
                    && label.allSatisfy { $0 == "-" || $0.properties.isAlphabetic || $0.properties.numericType != nil }
            }
    }

    /// Letters as passwords and keys have them: capitals behind small ones more than once, or many consonants and nothing else.
    private static func isCode(_ bare: [Unicode.Scalar]) -> Bool {
        let turns = zip(bare, bare.dropFirst()).count { $0.properties.isLowercase && $1.properties.isUppercase }
        let hard = bare.allSatisfy { consonants.contains(Unicode.Scalar($0.value | 0x20) ?? $0) && $0.isASCII }
        return turns > 1 || (bare.count > longestWithoutVowel && hard)
    }

    private static func isWord(_ token: Substring) -> Bool {
        token.unicodeScalars.contains { Composer.isWord($0) || $0.properties.isAlphabetic }
    }
}

/// Collects what is typed, and only that: not what the app had in the field, what was pasted, or what another person wrote. A sentence
/// is handed on when it ends, when the cursor goes elsewhere, or when the field is left.
public struct SentenceCollector {
    private static let longest = 2000
    /// Characters before the cursor that are looked at.
    static let look = 64
    /// No space follows them.
    private static let wideEnd = "\u{3002}\u{FF01}\u{FF1F}"

    /// What is collected of the present sentence.
    public private(set) var text = ""
    /// Whether the first word is the rest of one that stood there.
    private var insideWord = false

    public init() {}

    /// Something was typed.
    ///
    /// - Parameter before: what stood before the cursor
    /// - Returns: a sentence that ended
    public mutating func typed(_ before: String, _ typed: String) -> [String] {
        if text.isEmpty { insideWord = before.unicodeScalars.last.map(Composer.isWord) ?? false }
        text += typed
        var ended: [String] = []
        if text.count > Self.longest { ended += close() }
        // the end counts once something follows it: "3.5" and "e.g." go on
        let over = typed.last.map { $0.isWhitespace || Self.wideEnd.contains($0) } ?? false
        if over && Composer.endsSentence(text) { ended += close() }
        return ended
    }

    /// Characters before the cursor were deleted.
    public mutating func deleted(_ count: Int) { text = String(text.dropLast(count)) }

    /// What stands around the cursor changed; if that was not by typing, the sentence ends here. An app may tell less of its text than
    /// was typed.
    public mutating func moved(_ before: String, _ after: String) -> [String] {
        let end = text.suffix(min(Self.look, max(before.count, 1)))
        return text.isEmpty || before.hasSuffix(end) ? [] : close(after)
    }

    /// The field is left.
    public mutating func close(_ after: String = "") -> [String] {
        var sentence = Substring(text)
        if insideWord { sentence = sentence.drop { !$0.isWhitespace } }
        if after.unicodeScalars.first.map(Composer.isWord) == true {
            while let last = sentence.last, !last.isWhitespace { sentence.removeLast() }
        }
        drop()
        let words = sentence.drop(while: \.isWhitespace)
        guard let end = words.lastIndex(where: { !$0.isWhitespace }) else { return [] }
        return [String(words[...end])]
    }

    /// Forgets what is collected: it may not be learned.
    public mutating func drop() {
        text = ""
        insideWord = false
    }
}
