import Foundation

typealias Scalars = [Unicode.Scalar]

/// A stretch of a text while a tokenizer cuts it.
struct Segment {
    var text: Scalars
    /// Whether its first code point is the first of the whole text.
    let isFirst: Bool
}

extension Array<Unicode.Scalar> {
    init(_ text: String) {
        self = Array(text.unicodeScalars)
    }

    var string: String { String(String.UnicodeScalarView(self)) }
}

extension Unicode.Scalar {
    /// White space, as Unicode defines it.
    var isSpace: Bool { properties.isWhitespace }

    var category: Unicode.GeneralCategory { properties.generalCategory }

    /// Whether it was in Unicode when the tables of the tokenizers library were made.
    func isOf(_ version: Int) -> Bool { properties.age.map { $0.major <= version } ?? false }

    /// By Unicode 8, and all symbols of ASCII.
    var isPunctuation: Bool {
        switch category {
        case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation, .initialPunctuation,
            .finalPunctuation, .otherPunctuation:
            isOf(8)
        default: value < 0x80 && "$+<=>^`|~".unicodeScalars.contains(self) || value == 0x166d || value == 0x111c9
        }
    }

    /// By Unicode 8.
    var isNonspacing: Bool { category == .nonspacingMark && isOf(8) || value == 0x1734 }

    /// By Unicode 8; private ones too.
    var isControl: Bool {
        switch category {
        case .control, .privateUse, .surrogate: true
        case .format: isOf(8)
        default: false
        }
    }

    /// By Unicode 9.
    var isAccent: Bool { isMark && isOf(9) || value == 0x1cf2 || value == 0x1cf3 }

    var isMark: Bool {
        switch category {
        case .nonspacingMark, .spacingMark, .enclosingMark: true
        default: false
        }
    }

    var isNumber: Bool {
        switch category {
        case .decimalNumber, .letterNumber, .otherNumber: true
        default: false
        }
    }

    var isLetter: Bool {
        switch category {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: true
        default: false
        }
    }

    /// What a word is made of in regular expressions.
    var isWord: Bool {
        properties.isAlphabetic || isMark || category == .decimalNumber || category == .connectorPunctuation
            || properties.isJoinControl
    }
}

/// What is looked for in a text.
enum Pattern: Sendable {
    case text(Scalars)
    case scalar(@Sendable (Unicode.Scalar) -> Bool)
    case regex(Regex)

    /// A regular expression of the platform, with what the tokenizers library means by its classes.
    struct Regex: @unchecked Sendable {
        // It may be used by several threads at once.
        private let expression: NSRegularExpression

        init(_ pattern: String) throws {
            do {
                expression = try NSRegularExpression(pattern: Regex.translated(pattern))
            } catch {
                throw Malformed("it has a regular expression that is not understood here: \(pattern)")
            }
        }

        /// White space is less here than in the library's dialect, and words are more.
        private static func translated(_ pattern: String) -> String {
            var out = ""
            var escaped = false
            for character in pattern.unicodeScalars {
                if escaped {
                    switch character {
                    case "s": out += #"\p{White_Space}"#
                    case "S": out += #"\P{White_Space}"#
                    case "w": out += #"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]"#
                    case "W": out += #"[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]"#
                    default: out += "\\\(character)"
                    }
                    escaped = false
                } else if character == "\\" {
                    escaped = true
                } else {
                    out.unicodeScalars.append(character)
                }
            }
            return out + (escaped ? "\\" : "")
        }

        func matches(_ text: Scalars) -> [Range<Int>] {
            // Places of UTF-16 as places of code points.
            var place: [Int] = []
            for (index, scalar) in text.enumerated() {
                place.append(index)
                if scalar.value > 0xffff { place.append(index) }
            }
            place.append(text.count)
            let all = NSRange(location: 0, length: place.count - 1)
            return expression.matches(in: text.string, range: all).map {
                place[$0.range.location]..<place[$0.range.location + $0.range.length]
            }
        }
    }

    /// Where it is found, one after the other.
    func matches(_ text: Scalars) -> [Range<Int>] {
        switch self {
        case .scalar(let test): return text.indices.filter { test(text[$0]) }.map { $0..<$0 + 1 }
        case .regex(let regex): return regex.matches(text)
        case .text(let wanted):
            if wanted.isEmpty { return [] }
            var found: [Range<Int>] = []
            var at = 0
            while at + wanted.count <= text.count {
                if text[at..<at + wanted.count].elementsEqual(wanted) {
                    found.append(at..<at + wanted.count)
                    at += wanted.count
                } else {
                    at += 1
                }
            }
            return found
        }
    }
}

/// What becomes of what is found where a text is split.
enum Behavior: String, CaseIterable {
    case removed = "Removed"
    case isolated = "Isolated"
    case mergedWithPrevious = "MergedWithPrevious"
    case mergedWithNext = "MergedWithNext"
    case contiguous = "Contiguous"
}

extension Segment {
    /// Its parts, without empty ones.
    func split(_ pattern: Pattern, _ behavior: Behavior, invert: Bool = false) -> [Segment] {
        var pieces: [(range: Range<Int>, matches: Bool)] = []
        var end = 0
        for range in pattern.matches(text) {
            if end != range.lowerBound { pieces.append((end..<range.lowerBound, invert)) }
            pieces.append((range, !invert))
            end = range.upperBound
        }
        if end != text.count { pieces.append((end..<text.count, invert)) }
        var found: [Range<Int>] = []
        switch behavior {
        case .removed: found = pieces.filter { !$0.matches }.map(\.range)
        case .isolated: found = pieces.map(\.range)
        case .contiguous:
            var last = false
            for piece in pieces {
                if piece.matches == last, let before = found.last {
                    found[found.count - 1] = before.lowerBound..<piece.range.upperBound
                } else {
                    found.append(piece.range)
                }
                last = piece.matches
            }
        case .mergedWithPrevious:
            var last = false
            for piece in pieces {
                if piece.matches, !last, let before = found.last {
                    found[found.count - 1] = before.lowerBound..<piece.range.upperBound
                } else {
                    found.append(piece.range)
                }
                last = piece.matches
            }
        case .mergedWithNext:
            var last = false
            for piece in pieces.reversed() {
                if piece.matches, !last, let after = found.last {
                    found[found.count - 1] = piece.range.lowerBound..<after.upperBound
                } else {
                    found.append(piece.range)
                }
                last = piece.matches
            }
            found.reverse()
        }
        return found.filter { !$0.isEmpty }
            .map { Segment(text: Array(text[$0]), isFirst: isFirst && $0.lowerBound == 0) }
    }
}
