/// The order of names in every language: by Unicode code point, which is also that of their UTF-8 bytes. Swift's own order,
/// and its `==`, are of canonically equivalent text, which other languages tell apart.
func nameOrder(_ one: String, _ other: String) -> Bool {
    one.utf8.lexicographicallyPrecedes(other.utf8)
}

/// A text as its code points: `é` in one and in two code points are different, as in files and in other languages.
struct Exact: Hashable, Sendable {
    let text: String

    init(_ text: String) {
        self.text = text
    }

    static func == (one: Exact, other: Exact) -> Bool {
        one.text.utf8.elementsEqual(other.text.utf8)
    }

    func hash(into hasher: inout Hasher) {
        var text = text
        text.withUTF8 { hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
        hasher.combine(0xff as UInt8)
    }
}
