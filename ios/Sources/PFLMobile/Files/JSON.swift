/// A value of JSON.
enum JSON: Sendable {
    case null
    case bool(Bool)
    case integer(Int)
    /// A whole number beyond 64 bits, as it is written.
    case big(String)
    case double(Double)
    case string(String)
    /// A string that no `String` can hold, as it has halves of surrogate pairs: its code points.
    case points([UInt32])
    case array([JSON])
    case object(JSONObject)

    var string: String? {
        if case .string(let text) = self { text } else { nil }
    }

    var array: [JSON]? {
        if case .array(let items) = self { items } else { nil }
    }

    var object: JSONObject? {
        if case .object(let fields) = self { fields } else { nil }
    }

    var bool: Bool? {
        if case .bool(let value) = self { value } else { nil }
    }

    var integer: Int? {
        if case .integer(let value) = self { value } else { nil }
    }

    /// A number, whole or not.
    var number: Double? {
        switch self {
        case .integer(let value): Double(value)
        case .big(let digits): Double(digits)
        case .double(let value): value
        default: nil
        }
    }

    var isNull: Bool {
        if case .null = self { true } else { false }
    }
}

extension JSON: Equatable {
    static func == (one: JSON, other: JSON) -> Bool {
        switch (one, other) {
        case (.null, .null): true
        case (.bool(let a), .bool(let b)): a == b
        case (.integer(let a), .integer(let b)): a == b
        case (.big(let a), .big(let b)): a == b
        case (.double(let a), .double(let b)): a == b
        case (.string(let a), .string(let b)): Exact(a) == Exact(b)
        case (.points(let a), .points(let b)): a == b
        case (.array(let a), .array(let b)): a == b
        case (.object(let a), .object(let b)): a == b
        default: false
        }
    }
}

/// Fields by name, in the order in which they were put in. Names are told apart by their code points.
struct JSONObject: Sendable, Equatable, Sequence {
    private var entries: [(key: String, value: JSON)] = []
    private var places: [Exact: Int] = [:]

    init() {}

    init(_ entries: some Sequence<(key: String, value: JSON)>) {
        for (key, value) in entries { self[key] = value }
    }

    var keys: [String] { entries.map(\.key) }

    var isEmpty: Bool { entries.isEmpty }

    var count: Int { entries.count }

    subscript(key: String) -> JSON? {
        get { places[Exact(key)].map { entries[$0].value } }
        set {
            if let place = places[Exact(key)] {
                if let newValue {
                    entries[place].value = newValue
                } else {
                    entries.remove(at: place)
                    places = Dictionary(uniqueKeysWithValues: entries.enumerated().map { (Exact($1.key), $0) })
                }
            } else if let newValue {
                places[Exact(key)] = entries.count
                entries.append((key, newValue))
            }
        }
    }

    func makeIterator() -> some IteratorProtocol<(key: String, value: JSON)> {
        entries.makeIterator()
    }

    static func == (one: JSONObject, other: JSONObject) -> Bool {
        one.count == other.count && one.allSatisfy { other[$0.key] == $0.value }
    }
}

/// What a piece of JSON must not exceed.
enum JSONLimits {
    /// Bytes of a file of settings, notes or JSON, unless the reader says more.
    static let bytes = 64 << 20

    /// Lists and objects inside each other; every parser that may read the same JSON takes as many.
    static let depth = 100

    /// Numbers, strings, lists and so on in one piece.
    static let values = 2_000_000
}

/// The value of JSON text, as RFC 8259 has it. Two equal keys in one object are refused, since parsers differ in which of
/// them they take; so are numbers that no float64 holds.
///
/// - Parameters:
///   - values: numbers, strings, lists and so on in it, at most
///   - finite: refuse NaN and infinity, which Python writes and JSON does not have
/// - Throws: `Malformed`: it is no such JSON, or larger or deeper than allowed
func parseJSON(_ text: String, values: Int = JSONLimits.values, finite: Bool = true) throws -> JSON {
    try parse(Array(text.utf8), values, finite)
}

/// The same of UTF-8, or of what begins with the byte order mark of UTF-8, UTF-16 or UTF-32.
func parseJSON(
    bytes: some Collection<UInt8>, values: Int = JSONLimits.values, finite: Bool = true
) throws -> JSON {
    if bytes.count > JSONLimits.bytes { throw Malformed("it is longer than \(JSONLimits.bytes) bytes") }
    return try parse(Array(decoded(Array(bytes)).utf8), values, finite)
}

private func parse(_ text: [UInt8], _ values: Int, _ finite: Bool) throws -> JSON {
    if text.count > JSONLimits.bytes { throw Malformed("it is longer than \(JSONLimits.bytes) bytes") }
    // An upper bound, as strings hold commas and brackets too; before anything is built.
    var marks = 0
    for byte in text where byte == Ascii.comma || byte == Ascii.list || byte == Ascii.object || byte == Ascii.colon {
        marks += 1
    }
    if marks > values { throw Malformed("it has more than \(values) values") }
    var reader = JSONReader(text: text, finite: finite)
    return try reader.whole()
}

/// Bytes as text: UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one.
///
/// - Throws: `Malformed`: they are none of these
func decoded(_ bytes: [UInt8]) throws -> String {
    if bytes.starts(with: [0xef, 0xbb, 0xbf]) { return try utf8(bytes.dropFirst(3)) }
    // UTF-32 begins as UTF-16 does.
    if bytes.starts(with: [0xff, 0xfe, 0, 0]) { return try utf32(bytes.dropFirst(4), bigEndian: false) }
    if bytes.starts(with: [0, 0, 0xfe, 0xff]) { return try utf32(bytes.dropFirst(4), bigEndian: true) }
    if bytes.starts(with: [0xff, 0xfe]) { return try utf16(bytes.dropFirst(2), bigEndian: false) }
    if bytes.starts(with: [0xfe, 0xff]) { return try utf16(bytes.dropFirst(2), bigEndian: true) }
    return try utf8(bytes)
}

/// UTF-8 as text, without a replacement for what is no text.
///
/// - Throws: `Malformed`: it is no UTF-8
func utf8(_ bytes: some Collection<UInt8>) throws -> String {
    let text = String(decoding: bytes, as: UTF8.self)
    // A repair changes the bytes.
    guard text.utf8.elementsEqual(bytes) else { throw Malformed("it is not UTF-8") }
    return text
}

private func utf16(_ bytes: ArraySlice<UInt8>, bigEndian: Bool) throws -> String {
    let units = try words(Array(bytes), 2, bigEndian).map { UInt16($0) }
    let text = String(decoding: units, as: UTF16.self)
    guard text.utf16.elementsEqual(units) else { throw Malformed("it is not UTF-16") }
    return text
}

private func utf32(_ bytes: ArraySlice<UInt8>, bigEndian: Bool) throws -> String {
    var text = String.UnicodeScalarView()
    for value in try words(Array(bytes), 4, bigEndian) {
        guard let scalar = Unicode.Scalar(value) else { throw Malformed("it is not UTF-32") }
        text.append(scalar)
    }
    return String(text)
}

private func words(_ bytes: [UInt8], _ width: Int, _ bigEndian: Bool) throws -> [UInt32] {
    guard bytes.count.isMultiple(of: width) else { throw Malformed("it ends within a character") }
    return stride(from: 0, to: bytes.count, by: width).map { start in
        let word = bytes[start..<start + width]
        return (bigEndian ? Array(word) : word.reversed()).reduce(0) { $0 << 8 | UInt32($1) }
    }
}

private enum Ascii {
    static let quote = UInt8(ascii: "\"")
    static let backslash = UInt8(ascii: "\\")
    static let comma = UInt8(ascii: ",")
    static let colon = UInt8(ascii: ":")
    static let list = UInt8(ascii: "[")
    static let listEnd = UInt8(ascii: "]")
    static let object = UInt8(ascii: "{")
    static let objectEnd = UInt8(ascii: "}")
}

private struct JSONReader {
    let text: [UInt8]
    let finite: Bool
    var at = 0

    mutating func whole() throws -> JSON {
        space()
        let value = try value(0)
        space()
        if at < text.count { throw wrong("more after its end") }
        return value
    }

    private mutating func value(_ depth: Int) throws -> JSON {
        switch try peek() {
        case Ascii.object: return .object(try object(deeper(depth)))
        case Ascii.list: return .array(try list(deeper(depth)))
        case Ascii.quote: return try string()
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try constant() ?? number()
        }
    }

    /// What Python writes for numbers that JSON does not have.
    private mutating func constant() throws -> JSON? {
        for (name, value) in [("NaN", Double.nan), ("Infinity", .infinity), ("-Infinity", -.infinity)] {
            guard text[at...].starts(with: name.utf8) else { continue }
            if finite { throw wrong("the number \(name)") }
            return try word(name, .double(value))
        }
        return nil
    }

    private func deeper(_ depth: Int) throws -> Int {
        if depth == JSONLimits.depth { throw wrong("nested deeper than \(JSONLimits.depth)") }
        return depth + 1
    }

    private mutating func object(_ depth: Int) throws -> JSONObject {
        var found = JSONObject()
        at += 1
        space()
        if take(Ascii.objectEnd) { return found }
        repeat {
            space()
            guard try peek() == Ascii.quote, let key = try string().string else { throw wrong("no key") }
            space()
            guard take(Ascii.colon) else { throw wrong("no ':' after a key") }
            space()
            let value = try value(depth)
            if found[key] != nil { throw wrong("a key that stands twice in one object") }
            found[key] = value
            space()
        } while take(Ascii.comma)
        guard take(Ascii.objectEnd) else { throw wrong("an object without end") }
        return found
    }

    private mutating func list(_ depth: Int) throws -> [JSON] {
        var found: [JSON] = []
        at += 1
        space()
        if take(Ascii.listEnd) { return found }
        repeat {
            space()
            found.append(try value(depth))
            space()
        } while take(Ascii.comma)
        guard take(Ascii.listEnd) else { throw wrong("a list without end") }
        return found
    }

    private mutating func string() throws -> JSON {
        at += 1
        let start = at
        while true {
            switch try peek() {
            case Ascii.quote:
                at += 1
                return .string(String(decoding: text[start..<at - 1], as: UTF8.self))
            case Ascii.backslash: return try escaped(start)
            default: try plain()
            }
        }
    }

    private mutating func escaped(_ start: Int) throws -> JSON {
        var units = Array(String(decoding: text[start..<at], as: UTF8.self).utf16)
        while true {
            switch try peek() {
            case Ascii.quote:
                at += 1
                let found = String(decoding: units, as: UTF16.self)
                return found.utf16.elementsEqual(units) ? .string(found) : .points(codePoints(units))
            case Ascii.backslash:
                at += 1
                units.append(try escape())
            default:
                let from = at
                while try peek() != Ascii.quote, try peek() != Ascii.backslash { try plain() }
                units += String(decoding: text[from..<at], as: UTF8.self).utf16
            }
        }
    }

    private mutating func plain() throws {
        if try peek() < 0x20 { throw wrong("a control character in a string") }
        at += 1
    }

    private mutating func escape() throws -> UInt16 {
        let kind = try peek()
        at += 1
        switch kind {
        case Ascii.quote, Ascii.backslash, UInt8(ascii: "/"): return UInt16(kind)
        case UInt8(ascii: "b"): return 8
        case UInt8(ascii: "f"): return 12
        case UInt8(ascii: "n"): return 10
        case UInt8(ascii: "r"): return 13
        case UInt8(ascii: "t"): return 9
        case UInt8(ascii: "u"):
            var code: UInt16 = 0
            for _ in 0..<4 {
                guard let digit = hexDigit(try peek()) else { throw wrong("an unknown escape") }
                code = code << 4 | UInt16(digit)
                at += 1
            }
            return code
        default: throw wrong("an unknown escape")
        }
    }

    private mutating func number() throws -> JSON {
        let start = at
        _ = take(UInt8(ascii: "-"))
        if !take(UInt8(ascii: "0")) { try digits() }
        let whole = at
        if take(UInt8(ascii: ".")) { try digits() }
        if take(UInt8(ascii: "e")) || take(UInt8(ascii: "E")) {
            if !take(UInt8(ascii: "+")) { _ = take(UInt8(ascii: "-")) }
            try digits()
        }
        let found = String(decoding: text[start..<at], as: UTF8.self)
        if at == whole {
            // No field needs more digits, and what no float can hold fails far from here.
            if found.utf8.count > mostDigits { throw wrong("a number that is too large") }
            return Int(found).map(JSON.integer) ?? .big(found)
        }
        guard let value = Double(found) else { throw wrong("no value") }
        if finite && value.isInfinite { throw wrong("a number that is too large") }
        return .double(value)
    }

    private mutating func digits() throws {
        let start = at
        while at < text.count, text[at] >= UInt8(ascii: "0"), text[at] <= UInt8(ascii: "9") { at += 1 }
        if at == start { throw wrong("no value") }
    }

    private mutating func word(_ word: String, _ value: JSON) throws -> JSON {
        guard text[at...].starts(with: word.utf8) else { throw wrong("no value") }
        at += word.utf8.count
        return value
    }

    private mutating func space() {
        while at < text.count, [0x20, 0x09, 0x0a, 0x0d].contains(text[at]) { at += 1 }
    }

    private func peek() throws -> UInt8 {
        guard at < text.count else { throw wrong("no end") }
        return text[at]
    }

    private mutating func take(_ byte: UInt8) -> Bool {
        let found = at < text.count && text[at] == byte
        if found { at += 1 }
        return found
    }

    // The text is not repeated: it may be what somebody else sent.
    private func wrong(_ what: String) -> Malformed {
        Malformed("it has \(what) (at byte \(at))")
    }
}

private let mostDigits = 40

/// Code points of UTF-16, those of halves of pairs among them.
func codePoints(_ units: [UInt16]) -> [UInt32] {
    var points: [UInt32] = []
    var at = 0
    while at < units.count {
        let unit = units[at]
        at += 1
        if UTF16.isLeadSurrogate(unit), at < units.count, UTF16.isTrailSurrogate(units[at]) {
            points.append(0x10000 + (UInt32(unit - 0xd800) << 10) + UInt32(units[at] - 0xdc00))
            at += 1
        } else {
            points.append(UInt32(unit))
        }
    }
    return points
}

private func hexDigit(_ byte: UInt8) -> UInt8? {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
    default: nil
    }
}

/// Bytes as hex digits.
package func hex(_ bytes: some Sequence<UInt8>) -> String {
    let digits = Array("0123456789abcdef".utf8)
    var text: [UInt8] = []
    for byte in bytes { text += [digits[Int(byte >> 4)], digits[Int(byte & 15)]] }
    return String(decoding: text, as: UTF8.self)
}

/// The bytes of an even number of hex digits; nil for other text.
func fromHex(_ text: String) -> [UInt8]? {
    let digits = text.utf8.map(hexDigit)
    guard digits.count.isMultiple(of: 2) else { return nil }
    var bytes: [UInt8] = []
    for at in stride(from: 0, to: digits.count, by: 2) {
        guard let high = digits[at], let low = digits[at + 1] else { return nil }
        bytes.append(high << 4 | low)
    }
    return bytes
}
