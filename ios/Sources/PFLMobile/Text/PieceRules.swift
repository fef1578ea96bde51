/// The versions of the rules that cut a text into pieces; a bundle says the one that its words were cut by. The raw value is
/// the version as a bundle says it.
public enum PieceRules: Int, Sendable, CaseIterable {
    /// For bundles that were exported with it. Emoji sequences are broken, and code points newer than the platform's are
    /// symbols.
    case version1 = 1
    /// Of what is made now.
    case version2 = 2

    /// The newest version.
    public static let newest = PieceRules.version2

    /// The rules of a version.
    ///
    /// - Throws: `.schemaVersion`: it is newer than this library
    public init(version: Int) throws {
        guard let found = PieceRules(rawValue: version) else {
            throw PFLError(
                .schemaVersion,
                "the text is cut by version \(version) of the piece rules; this library knows up to "
                    + "\(PieceRules.newest.rawValue)",
                mend: "update the app, or export the bundle with the version in use here")
        }
        self = found
    }

    /// The pieces of a text: words and symbols.
    public func cut(_ text: String) -> [String] {
        switch self {
        case .version1: OldPieces.cut(text)
        case .version2: Pieces.cut(text)
        }
    }

    /// Whether a piece is a symbol (or a special token) and not a word.
    public func isSymbol(_ piece: String) -> Bool {
        switch self {
        case .version1: !(piece.unicodeScalars.first.map(OldPieces.startsWord) ?? false)
        case .version2: Pieces.isSymbol(piece)
        }
    }
}

/// Version 1: letters, numbers and marks are the platform's. A word is `[L N] [L N M]*`, and more of that after an apostrophe;
/// a symbol is anything else but `[Z Cc]`, with the marks behind it.
private enum OldPieces {
    static func cut(_ text: String) -> [String] {
        let normal = nfkc(text).unicodeScalars.flatMap(lower)
        var pieces: [String] = []
        var at = 0
        while at < normal.count {
            let start = at
            if startsWord(normal[at]) {
                at = wordEnd(normal, at)
                while at + 1 < normal.count, normal[at] == "'", startsWord(normal[at + 1]) {
                    at = wordEnd(normal, at + 1)
                }
            } else if isSeparator(normal[at]) {
                at += 1
                continue
            } else {
                at += 1
                while at < normal.count, isMark(normal[at]) { at += 1 }
            }
            pieces.append(String(String.UnicodeScalarView(normal[start..<at])))
        }
        return pieces
    }

    /// Each code point by itself, so that a capital sigma never becomes a final one.
    private static func lower(_ scalar: Unicode.Scalar) -> [Unicode.Scalar] {
        if scalar == "\u{2019}" || scalar == "\u{2018}" { return ["'"] }
        return Array(scalar.properties.lowercaseMapping.unicodeScalars)
    }

    private static func wordEnd(_ text: [Unicode.Scalar], _ at: Int) -> Int {
        var end = at + 1
        while end < text.count, startsWord(text[end]) || isMark(text[end]) { end += 1 }
        return end
    }

    static func startsWord(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter, .decimalNumber,
            .letterNumber, .otherNumber:
            true
        default: false
        }
    }

    private static func isMark(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        case .nonspacingMark, .spacingMark, .enclosingMark: true
        default: false
        }
    }

    private static func isSeparator(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        case .spaceSeparator, .lineSeparator, .paragraphSeparator, .control: true
        default: false
        }
    }
}
