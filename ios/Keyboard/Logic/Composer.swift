/// What the model is asked.
public struct Request: Sendable, Equatable {
    /// What stands before the word.
    public let context: String
    /// What is typed of the word; empty for the next word.
    public let prefix: String

    public init(context: String, prefix: String) {
        self.context = context
        self.prefix = prefix
    }
}

/// A change of the text at the cursor.
public struct Edit: Sendable, Equatable {
    /// Characters, as a reader counts them, to remove before the cursor.
    public let delete: Int
    /// What comes in their place.
    public let insert: String

    public init(_ delete: Int, _ insert: String) {
        self.delete = delete
        self.insert = insert
    }
}

/// Words and spaces around the cursor. Everything follows from the text before it: the keyboard keeps nothing of its own.
public enum Composer {
    private static let apostrophes = "'\u{2019}\u{2018}".unicodeScalars
    /// They cling to the word before them.
    private static let clinging = ".,!?;:)]}\u{2026}%"
    private static let sentenceEnd = ".!?\u{2026}\u{3002}\u{FF01}\u{FF1F}\n"

    /// What to ask the model where a text stands before the cursor.
    public static func request(_ before: String) -> Request {
        let word = lastWord(before)
        return Request(context: String(before.unicodeScalars.dropLast(word.unicodeScalars.count)), prefix: word)
    }

    /// The word that the cursor stands behind; empty behind a space, a symbol, or a script without spaces.
    public static func lastWord(_ before: String) -> String {
        let points = Array(before.unicodeScalars)
        var start = points.count
        while start > 0 {
            let point = points[start - 1]
            let joins = apostrophes.contains(point) && start < points.count && start > 1 && isWord(points[start - 2])
            guard isWord(point) || joins else { break }
            start -= 1
        }
        return String(String.UnicodeScalarView(points[start...]))
    }

    /// Those words that complete a prefix, in the order in which they are likely.
    public static func completions(_ words: [String], _ prefix: String, _ count: Int) -> [String] {
        let start = plain(prefix)
        var seen: Set<String> = []
        let found = words.filter { word in
            isOffered(word) && (start.isEmpty || (plain(word).hasPrefix(start) && plain(word) != start))
                && seen.insert(word).inserted
        }
        return Array(found.prefix(count))
    }

    /// How a word is shown and typed: with the capitals of what is typed of it, or one at the start of a sentence.
    public static func spelled(_ word: String, prefix: String, capital: Bool) -> String {
        let letters = prefix.filter(\.isLetter)
        if letters.count > 1 && letters.allSatisfy(\.isUppercase) { return word.uppercased() }
        if letters.first?.isUppercase == true || (prefix.isEmpty && capital) { return capitalized(word) }
        return word == "i" || word.hasPrefix("i'") ? capitalized(word) : word
    }

    /// What choosing a suggestion does.
    public static func choose(_ before: String, _ word: String) -> Edit {
        let asked = request(before)
        let gap = asked.prefix.isEmpty && needsGap(before, word) ? " " : ""
        let end = word.unicodeScalars.last.map(isUnspaced) == true ? "" : " "
        return Edit(before.count - asked.context.count, gap + word + end)
    }

    /// What typing a character does.
    ///
    /// - Parameter ownSpace: whether the space before the cursor came with a suggestion, and not from the user
    public static func type(_ before: String, _ text: String, ownSpace: Bool) -> Edit {
        guard ownSpace, before.hasSuffix(" "), text.count == 1, clinging.contains(text) else { return Edit(0, text) }
        return Edit(1, text + (".,!?;:\u{2026}".contains(text) ? " " : ""))
    }

    /// What the space bar does: the second space behind a word ends the sentence.
    public static func space(_ before: String) -> Edit {
        let last = before.dropLast().last
        let ends = before.hasSuffix(" ") && last.map { $0.isLetter || $0.isNumber } == true
        return ends ? Edit(1, ". ") : Edit(0, " ")
    }

    /// Whether a text ends with the end of a sentence.
    public static func endsSentence(_ text: String) -> Bool {
        guard let end = text.last(where: { $0 != " " }) else { return false }
        return sentenceEnd.contains(end)
    }

    /// Whether a code point belongs to a word, of a script that puts spaces between words.
    static func isWord(_ point: Unicode.Scalar) -> Bool {
        let belongs: Bool
        switch point.properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter, .decimalNumber:
            belongs = true
        case .nonspacingMark, .spacingMark, .enclosingMark: belongs = point.value != 0xFE0F && point.value != 0x20E3
        // keeps the letters of a Persian word apart
        default: belongs = point.value == 0x200C
        }
        return belongs && !isUnspaced(point)
    }

    private static func isOffered(_ word: String) -> Bool {
        !word.isEmpty && !word.hasPrefix("<")
            && word.unicodeScalars.contains { $0.properties.isAlphabetic || isPicture($0) }
    }

    /// A symbol beyond punctuation: emoji, and what came later than this system's table.
    private static func isPicture(_ point: Unicode.Scalar) -> Bool {
        [.otherSymbol, .unassigned].contains(point.properties.generalCategory)
    }

    /// Scripts that are written without spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
    private static let unspaced: [ClosedRange<UInt32>] = [
        0x0E00...0x0E7F, 0x0E80...0x0EFF, 0x1000...0x109F, 0x1780...0x17FF, 0x19E0...0x19FF, 0x2E80...0x2FDF,
        0x3005...0x3007,
        0x3021...0x3029, 0x3038...0x303B, 0x3041...0x309F, 0x30A1...0x30FA, 0x30FD...0x30FF, 0x31F0...0x31FF,
        0x3400...0x4DBF,
        0x4E00...0x9FFF, 0xA9E0...0xA9FF, 0xAA60...0xAA7F, 0xF900...0xFAFF, 0xFF66...0xFF9D, 0x20000...0x3FFFF,
    ]

    static func isUnspaced(_ point: Unicode.Scalar) -> Bool {
        point.value >= 0x0E00 && unspaced.contains { $0.contains(point.value) }
    }

    /// Whether the word would run into what stands before it.
    private static func needsGap(_ before: String, _ word: String) -> Bool {
        guard let last = before.unicodeScalars.last, let first = word.unicodeScalars.first else { return false }
        if isUnspaced(first) || isUnspaced(last) || last.properties.isWhitespace { return false }
        return !"([{\u{BF}\u{A1}@#/-\"".unicodeScalars.contains(last) && !apostrophes.contains(last)
    }

    private static func capitalized(_ word: String) -> String {
        guard let first = word.unicodeScalars.first else { return word }
        return first.properties.uppercaseMapping + String(word.unicodeScalars.dropFirst())
    }

    private static func plain(_ word: String) -> String {
        String(word.lowercased().map { $0 == "\u{2019}" || $0 == "\u{2018}" ? "'" : $0 })
    }
}
