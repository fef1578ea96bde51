/// JSON as Python's `json.dumps(value, sort_keys=True)` writes it, so that the same state has the same bytes in every
/// language.
func pythonJSON(_ value: JSON) -> String {
    switch value {
    case .null: "null"
    case .bool(let value): value ? "true" : "false"
    case .integer(let value): "\(value)"
    case .big(let digits): digits
    case .double(let value): pythonFloat(value)
    case .string(let text): jsonString(text, ascii: true)
    case .points(let points): quoted(units(points), ascii: true)
    case .array(let items): "[\(items.map(pythonJSON).joined(separator: ", "))]"
    case .object(let fields):
        "{"
            + fields.sorted { nameOrder($0.key, $1.key) }
            .map { "\(jsonString($0.key, ascii: true)): \(pythonJSON($0.value))" }
            .joined(separator: ", ") + "}"
    }
}

/// A JSON string; of characters beyond ASCII as escapes if `ascii`.
func jsonString(_ text: String, ascii: Bool) -> String {
    quoted(Array(text.utf16), ascii: ascii)
}

private func quoted(_ units: [UInt16], ascii: Bool) -> String {
    var out: [UInt16] = [0x22]
    for unit in units {
        switch unit {
        case 0x22: out += #"\""#.utf16
        case 0x5c: out += #"\\"#.utf16
        case 0x0a: out += #"\n"#.utf16
        case 0x0d: out += #"\r"#.utf16
        case 0x09: out += #"\t"#.utf16
        case 0x08: out += #"\b"#.utf16
        case 0x0c: out += #"\f"#.utf16
        default:
            if unit < 0x20 || ascii && unit > 0x7e {
                out += "\\u\(hex([UInt8(unit >> 8), UInt8(unit & 0xff)]))".utf16
            } else {
                out.append(unit)
            }
        }
    }
    return String(decoding: out + [0x22], as: UTF16.self)
}

private func units(_ points: [UInt32]) -> [UInt16] {
    points.flatMap { point in
        point < 0x10000
            ? [UInt16(point)]
            : [UInt16(0xd800 + (point - 0x10000) >> 10), UInt16(0xdc00 + (point - 0x10000) & 0x3ff)]
    }
}

/// The shortest digits that give the number again, laid out as Python's `repr` does.
func pythonFloat(_ value: Double) -> String {
    if value.isNaN { return "NaN" }
    if value.isInfinite { return value < 0 ? "-Infinity" : "Infinity" }
    let sign = value.sign == .minus ? "-" : ""
    if value == 0 { return "\(sign)0.0" }
    let (digits, exponent) = shortest(value.magnitude)
    let count = digits.count
    if exponent < -4 || exponent > 15 {
        let mantissa = String(digits.prefix(1)) + (count > 1 ? "." + String(digits.dropFirst()) : "")
        let power = String(exponent.magnitude)
        return "\(sign)\(mantissa)e\(exponent < 0 ? "-" : "+")\(power.count < 2 ? "0" : "")\(power)"
    }
    if exponent < 0 { return "\(sign)0.\(String(repeating: "0", count: -exponent - 1))\(String(digits))" }
    if count <= exponent + 1 {
        return "\(sign)\(String(digits))\(String(repeating: "0", count: exponent + 1 - count)).0"
    }
    return "\(sign)\(String(digits.prefix(exponent + 1))).\(String(digits.dropFirst(exponent + 1)))"
}

/// Digits without zeros at either end, and the power of ten of the first. Swift's description has the fewest digits that
/// give the number again, and of these the nearest, as Python's has; only its layout differs.
private func shortest(_ value: Double) -> ([Character], Int) {
    let text = value.description
    let parts = text.split(separator: "e")
    let number = parts[0].split(separator: ".", omittingEmptySubsequences: false)
    let whole = Array(number[0])
    let fraction = number.count > 1 ? Array(number[1]) : []
    var digits = whole + fraction
    var exponent = whole.count - 1 + (parts.count > 1 ? Int(parts[1]) ?? 0 : 0)
    while digits.count > 1, digits[0] == "0" {
        digits.removeFirst()
        exponent -= 1
    }
    while digits.count > 1, digits.last == "0" { digits.removeLast() }
    return (digits, exponent)
}
