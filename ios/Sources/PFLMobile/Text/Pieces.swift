import Foundation

/// Version 2 of the rules that cut a text into pieces. `pfl_mobile/text/pieces.py` states them; the numbers below are its
/// numbers, and the letters its kinds of code points.
enum Pieces {
    private static let smallSigma: UInt32 = 0x3C3
    private static let finalSigma: UInt32 = 0x3C2
    private static let keycap = "\u{FE0F}\u{20E3}"

    private static let wordStart = Kinds("LJNd")
    private static let wordPart = Kinds("LJNdMmozn")
    private static let apostrophe = Kinds("ab")
    private static let pieceStart = Kinds("LJHKpTPQNd")
    private static let picture = Kinds("vEF")
    private static let number = Kinds("Nd")
    private static let marks = Kinds("Mmo")
    private static let kanaPart = Kinds("KpMmo")
    private static let hanPart = Kinds("Mmop")
    private static let clusterPart = Kinds("MmoQ")
    private static let alone = Kinds("QSabceEFR")
    private static let joining = Kinds("Jm")
    private static let keys = Kinds("dc")
    private static let emojiStart = Kinds("EFe")
    private static let unlikePicture = Kinds("vF")
    private static let sigmaBefore = Kinds("LJMm")

    private static func lower(_ point: UInt32) -> UInt32 { UnicodeTable.shared.lower(point) }

    /// The pieces of a text.
    static func cut(_ text: String) -> [String] {
        cut(Points(text))
    }

    static func cut(_ points: Points) -> [String] {
        var pieces: [String] = []
        if points.isAscii {
            cutFolded(points.map(lower), 0, &pieces)
            return pieces
        }
        let visible = Points(points.values.filter { UnicodeTable.shared.kind($0) != UInt8(ascii: "X") })  // rule 1
        var done = 0
        var at = 0
        while at < visible.count {  // rules 2 and 3
            guard let end = emoji(visible, at) else {
                at += 1
                continue
            }
            cutPart(visible, done, at, &pieces)
            pieces.append(spelled(visible, at, end))
            done = end
            at = end
        }
        cutPart(visible, done, visible.count, &pieces)
        return pieces
    }

    /// Whether a piece is a symbol (or a special token) and not a word.
    static func isSymbol(_ piece: String) -> Bool {
        let points = Points(piece)
        return !pieceStart.contains(points.kind(0))
            || points.values.contains { picture.contains(UnicodeTable.shared.kind($0)) }
    }

    /// Whether a code point of the piece is a number: codes, dates, amounts, most passwords.
    static func holdsDigit(_ piece: String) -> Bool {
        piece.unicodeScalars.contains { number.contains(UnicodeTable.shared.kind($0.value)) }
    }

    /// Rules 5 and 6.
    static func fold(_ text: Points) -> Points {
        if text.isAscii { return text.map(lower) }
        return normalized(normalized(text).map(lower))
    }

    /// Rule 5. Code points that a platform's Unicode may not know are passed by; of the others every version says the same.
    private static func normalized(_ text: Points) -> Points {
        let table = UnicodeTable.shared
        if text.values.allSatisfy({ table.assigned.contains($0) && !table.accents.contains($0) }) {
            return Points(nfkc(text.text()))
        }
        var found = Points()
        for (run, known) in runs(text, table.assigned) {
            if !known {
                found.append(run)
                continue
            }
            for (part, accents) in runs(Points(run.text().precomposedStringWithCanonicalMapping), table.accents) {
                found.append(accents ? part : Points(nfkc(part.text())))
            }
        }
        return found
    }

    private static func runs(_ text: Points, _ set: Ranges) -> [(Points, Bool)] {
        var found: [(Points, Bool)] = []
        var from = 0
        while from < text.count {
            let inside = set.contains(text[from])
            var to = from + 1
            while to < text.count, set.contains(text[to]) == inside { to += 1 }
            found.append((Points(Array(text.values[from..<to])), inside))
            from = to
        }
        return found
    }

    /// Where the emoji that begins at a place ends; nil where none begins.
    private static func emoji(_ text: Points, _ at: Int) -> Int? {
        let kind = text.kind(at)
        var end: Int?
        if kind == UInt8(ascii: "R") {
            end = text.kind(at + 1) == UInt8(ascii: "R") ? at + 2 : nil
        } else if keys.contains(kind) {
            let key = text.kind(at + 1) == UInt8(ascii: "v") ? at + 2 : at + 1
            end = text.kind(key) == UInt8(ascii: "k") ? key + 1 : nil
        } else if kind == UInt8(ascii: "e"), !unlikePicture.contains(text.kind(at + 1)) {
            end = further(text, at + 1)
        } else if emojiStart.contains(kind) {
            end = single(text, at)
        }
        while let found = end {
            guard let next = further(text, found) else { return found }
            end = next
        }
        return nil
    }

    private static func further(_ text: Points, _ at: Int) -> Int? {
        guard text.kind(at) == UInt8(ascii: "z") else { return nil }
        if emojiStart.contains(text.kind(at + 1)) { return single(text, at + 1) }
        return text.kind(at + 1) == UInt8(ascii: "R") && text.kind(at + 2) == UInt8(ascii: "R") ? at + 3 : nil
    }

    /// Behind one emoji, its variation selector, skin tone and tags.
    private static func single(_ text: Points, _ at: Int) -> Int {
        var end = at + 1
        if text.kind(end) == UInt8(ascii: "v") { end += 1 }
        if text.kind(at) != UInt8(ascii: "F"), text.kind(end) == UInt8(ascii: "F") { end += 1 }
        var tags = end
        while text.kind(tags) == UInt8(ascii: "t") { tags += 1 }
        return tags > end && text.kind(tags) == UInt8(ascii: "g") ? tags + 1 : end
    }

    /// The one spelling of an emoji.
    private static func spelled(_ text: Points, _ from: Int, _ to: Int) -> String {
        if keys.contains(text.kind(from)), text.kind(to - 1) == UInt8(ascii: "k") {
            return text.text(from, from + 1) + keycap
        }
        var kept = Points()
        for index in from..<to {
            let last = index + 1 == to || text.kind(index + 1) != UInt8(ascii: "F")
            let needed = index > from && text.kind(index - 1) == UInt8(ascii: "e") && last
            if text.kind(index) != UInt8(ascii: "v") || needed { kept.append(text[index]) }
        }
        return kept.text()
    }

    /// Rules 4 to 8 for what lies between two emoji.
    private static func cutPart(_ text: Points, _ from: Int, _ to: Int, _ pieces: inout [String]) {
        if from == to { return }
        let folded = fold(joined(text, from, to))
        var start = 0
        if from > 0 {  // what lies before is an emoji
            while marks.contains(folded.kind(start)) { start += 1 }
            if start > 0 { pieces[pieces.count - 1] += folded.text(0, start) }
        }
        cutFolded(folded, start, &pieces)
    }

    /// Rule 4.
    private static func joined(_ text: Points, _ from: Int, _ to: Int) -> Points {
        var kept = Points()
        var joiner: UInt32?
        for index in from..<to {
            let kind = text.kind(index)
            switch kind {
            case UInt8(ascii: "v"), UInt8(ascii: "k"), UInt8(ascii: "t"), UInt8(ascii: "g"): break
            case UInt8(ascii: "z"), UInt8(ascii: "n"): joiner = text[index]
            default:
                if let found = joiner, joining.contains(kind), joining.contains(kept.kind(kept.count - 1)) {
                    kept.append(found)
                }
                joiner = nil
                kept.append(text[index])
            }
        }
        return kept
    }

    /// Rules 7 and 8.
    private static func cutFolded(_ text: Points, _ from: Int, _ pieces: inout [String]) {
        var at = from
        while at < text.count {
            let kind = text.kind(at)
            guard let end = pieceEnd(text, at, kind) else {
                at += 1
                continue
            }
            pieces.append(wordStart.contains(kind) ? word(text, at, end) : text.text(at, end))
            at = end
        }
    }

    private static func pieceEnd(_ text: Points, _ at: Int, _ kind: UInt8) -> Int? {
        if wordStart.contains(kind) { return wordEnd(text, at + 1) }
        switch kind {
        case UInt8(ascii: "K"), UInt8(ascii: "p"): return skip(text, at + 1, kanaPart)
        case UInt8(ascii: "H"): return skip(text, at + 1, hanPart)
        case UInt8(ascii: "T"): return clusterEnd(text, at + 1)
        case UInt8(ascii: "P"):
            return text.kind(at + 1) == UInt8(ascii: "T") ? clusterEnd(text, at + 2) : skip(text, at + 1, marks)
        default: return alone.contains(kind) ? skip(text, at + 1, marks) : nil
        }
    }

    private static func wordEnd(_ text: Points, _ from: Int) -> Int {
        var end = from
        while true {
            end = skip(text, end, wordPart)
            if !apostrophe.contains(text.kind(end)) || !wordStart.contains(text.kind(end + 1)) { return end }
            end += 2
        }
    }

    private static func clusterEnd(_ text: Points, _ from: Int) -> Int {
        var end = from
        while true {
            if text.kind(end) == UInt8(ascii: "o"), text.kind(end + 1) == UInt8(ascii: "T") {
                end += 2
            } else if clusterPart.contains(text.kind(end)) {
                end += 1
            } else {
                return end
            }
        }
    }

    private static func skip(_ text: Points, _ from: Int, _ kinds: Kinds) -> Int {
        var end = from
        while kinds.contains(text.kind(end)) { end += 1 }
        return end
    }

    /// Rule 8.
    private static func word(_ text: Points, _ from: Int, _ to: Int) -> String {
        var word = Points()
        for index in from..<to { word.append(text.kind(index) == UInt8(ascii: "b") ? 0x27 : text[index]) }
        let last = word.count - 1
        if last > 0, word[last] == smallSigma, sigmaBefore.contains(word.kind(last - 1)) {
            return Points(Array(word.values[..<last]) + [finalSigma]).text()
        }
        return word.text()
    }
}

extension Points {
    fileprivate mutating func append(_ other: Points) {
        for value in other.values { append(value) }
    }
}

/// Normalization form KC. Foundation on Linux (6.0) does not put what it maps into canonical order, nor composes it, so that is
/// done once more; where it has been done, nothing changes.
func nfkc(_ text: String) -> String {
    text.precomposedStringWithCompatibilityMapping.precomposedStringWithCanonicalMapping
}
