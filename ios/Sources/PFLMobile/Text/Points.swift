/// Code points of a text, with the kind of each.
struct Points {
    private(set) var values: [UInt32]

    init(_ values: [UInt32] = []) {
        self.values = values
    }

    /// The code points of a text.
    init(_ text: String) {
        values = text.unicodeScalars.map(\.value)
    }

    var count: Int { values.count }

    subscript(index: Int) -> UInt32 { values[index] }

    /// The kind of the code point at a place; `Kinds.none` where there is none.
    func kind(_ index: Int) -> UInt8 {
        values.indices.contains(index) ? UnicodeTable.shared.kind(values[index]) : Kinds.none
    }

    mutating func append(_ point: UInt32) {
        values.append(point)
    }

    /// The text from one place to before another; a half of a surrogate pair is U+FFFD in it.
    func text(_ from: Int = 0, _ to: Int? = nil) -> String {
        var scalars = String.UnicodeScalarView()
        for value in values[from..<(to ?? count)] { scalars.append(Unicode.Scalar(value) ?? "\u{fffd}") }
        return String(scalars)
    }

    func map(_ change: (UInt32) -> UInt32) -> Points { Points(values.map(change)) }

    var isAscii: Bool { values.allSatisfy { $0 < 0x80 } }
}

/// A set of kinds of code points, which are letters.
struct Kinds {
    /// The kind of what is not there, which is in no set.
    static let none = UInt8(ascii: " ")

    private let bits: UInt64

    init(_ letters: StaticString) {
        bits = letters.withUTF8Buffer { $0.reduce(0) { $0 | Kinds.bit($1) } }
    }

    func contains(_ kind: UInt8) -> Bool { bits & Kinds.bit(kind) != 0 }

    private static func bit(_ kind: UInt8) -> UInt64 { kind < 65 ? 0 : 1 << UInt64(kind - 65) }
}
