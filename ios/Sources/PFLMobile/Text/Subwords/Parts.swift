import Foundation

// Steps of a tokenizer.json, each a function made of its JSON. What is not known is refused, as another cut would give other ids.

/// Fields of a step.
private func step(_ json: JSON) throws -> (type: String, fields: JSONObject) {
    guard let fields = json.object, let type = fields["type"]?.string else { throw Malformed("a step has no type") }
    return (type, fields)
}

private func unknown(_ what: String, _ type: String) -> Malformed {
    Malformed("its \(what) '\(type)' is not understood here")
}

private func steps(_ fields: JSONObject, _ name: String) throws -> [JSON] {
    guard let found = fields[name]?.array else { throw Malformed("a sequence has no \(name)") }
    return found
}

private func text(_ fields: JSONObject, _ name: String) throws -> String {
    guard let found = fields[name]?.string else { throw Malformed("\(name) is no text") }
    return found
}

private func truth(_ fields: JSONObject, _ name: String, _ value: Bool) throws -> Bool {
    guard let json = fields[name], !json.isNull else { return value }
    guard let found = json.bool else { throw Malformed("\(name) is neither true nor false") }
    return found
}

private func scalar(_ fields: JSONObject, _ name: String) throws -> Unicode.Scalar {
    let found = Scalars(try text(fields, name))
    guard found.count == 1 else { throw Malformed("\(name) is not one character") }
    return found[0]
}

private func pattern(_ fields: JSONObject) throws -> Pattern {
    guard let wanted = fields["pattern"]?.object else { throw Malformed("there is no pattern") }
    if let text = wanted["String"]?.string { return .text(Scalars(text)) }
    return .regex(try Pattern.Regex(try text(wanted, "Regex")))
}

// ---- normalizers

typealias Normalizer = @Sendable (Segment) -> Segment

/// What a normalizer does; nil where there is none.
func normalizer(_ json: JSON?) throws -> Normalizer? {
    guard let json, !json.isNull else { return nil }
    let (type, fields) = try step(json)
    func change(_ body: @escaping @Sendable (Scalars) -> Scalars) -> Normalizer {
        { Segment(text: body($0.text), isFirst: $0.isFirst) }
    }
    /// Code points go; what is behind the first is not the first.
    func filter(_ keep: @escaping @Sendable (Unicode.Scalar) -> Bool) -> Normalizer {
        { given in
            Segment(text: given.text.filter(keep), isFirst: given.isFirst && given.text.first.map(keep) ?? true)
        }
    }
    switch type {
    case "Sequence":
        let all = try steps(fields, "normalizers").compactMap(normalizer)
        return { given in all.reduce(given) { $1($0) } }
    case "NFC": return change { normal($0, \.precomposedStringWithCanonicalMapping) }
    case "NFD": return change { normal($0, \.decomposedStringWithCanonicalMapping) }
    case "NFKC": return change { normal($0, nfkc) }
    case "NFKD": return change { normal($0, \.decomposedStringWithCompatibilityMapping) }
    case "Lowercase": return change(lowercased)
    case "StripAccents": return filter { !$0.isAccent }
    case "Strip":
        let left = try truth(fields, "strip_left", true)
        let right = try truth(fields, "strip_right", true)
        return { given in
            var found = given.text[...]
            if left { found = found.drop(while: \.isSpace) }
            if right { while found.last?.isSpace == true { found.removeLast() } }
            return Segment(text: Array(found), isFirst: given.isFirst && found.count > 0 && found.startIndex == 0)
        }
    case "Replace":
        let pattern = try pattern(fields)
        let content = Scalars(try text(fields, "content"))
        return { given in
            let places = pattern.matches(given.text)
            let goes = places.first?.lowerBound == 0 && content.isEmpty
            return Segment(text: replaced(given.text, places, content), isFirst: given.isFirst && !goes)
        }
    case "Prepend":
        let content = Scalars(try text(fields, "prepend"))
        return change { $0.isEmpty ? $0 : content + $0 }
    case "ByteLevel": return change(ByteLevel.written)
    case "Nmt":
        let removed = filter { scalar in
            switch scalar.value {
            case 0x01...0x08, 0x0b, 0x0e...0x1f, 0x7f, 0x8f, 0x9f: false
            default: true
            }
        }
        let spaced = change { text in
            text.map { scalar in
                switch scalar.value {
                case 0x09, 0x0a, 0x0c, 0x0d, 0x1680, 0x200b...0x200f, 0x2028, 0x2029, 0x2581, 0xfeff, 0xfffd: " "
                default: scalar
                }
            }
        }
        return { spaced(removed($0)) }
    case "Precompiled":
        let map = try CharacterMap(try text(fields, "precompiled_charsmap"))
        return map.normalize
    case "BertNormalizer":
        let lower = try truth(fields, "lowercase", true)
        var all: [Normalizer] = []
        if try truth(fields, "clean_text", true) {
            all.append(filter { !$0.isControl && $0.value != 0xfffd || $0 == "\t" || $0 == "\n" || $0 == "\r" })
            all.append(change { $0.map { $0.isSpace ? " " : $0 } })
        }
        if try truth(fields, "handle_chinese_chars", true) {
            all.append(change { $0.flatMap { isChinese($0) ? [" ", $0, " "] : [$0] } })
        }
        if try truth(fields, "strip_accents", lower) {
            all.append(change { normal($0, \.decomposedStringWithCanonicalMapping) })
            all.append(filter { !$0.isNonspacing })
        }
        if lower { all.append(change(lowercased)) }
        let steps = all
        return { given in steps.reduce(given) { $1($0) } }
    default: throw unknown("normalizer", type)
    }
}

/// A map of characters as SentencePiece compiles it: a double array over the bytes of what is replaced, and what it becomes.
struct CharacterMap: Sendable {
    private let units: [UInt32]
    private let texts: [UInt8]

    init(_ base64: String) throws {
        guard let data = Data(base64Encoded: base64).map(Array.init), data.count >= 4 else {
            throw Malformed("its map of characters is damaged")
        }
        func unit(_ at: Int) -> UInt32 { (0..<4).reduce(0) { $0 | UInt32(data[at + $1]) << UInt32(8 * $1) } }
        let size = Int(unit(0))
        guard size % 4 == 0, size >= 4, size <= data.count - 4 else {
            throw Malformed("its map of characters is damaged")
        }
        units = stride(from: 4, to: 4 + size, by: 4).map(unit)
        texts = Array(data[(4 + size)...])
    }

    /// Clusters of few bytes as one, of more by their code points.
    @Sendable func normalize(_ given: Segment) -> Segment {
        var found: Scalars = []
        for cluster in given.text.string {
            let bytes = Array(cluster.utf8)
            if bytes.count < 6, let text = mapped(bytes) {
                found += text
            } else {
                for scalar in cluster.unicodeScalars { found += mapped(Array(String(scalar).utf8)) ?? [scalar] }
            }
        }
        return Segment(text: found, isFirst: given.isFirst)
    }

    /// What the shortest beginning that is in the map becomes; nil where none is. That it takes what is behind this beginning
    /// with it is how the library does it.
    private func mapped(_ bytes: [UInt8]) -> Scalars? {
        func offset(_ unit: UInt32) -> Int { Int(unit >> 10) << Int((unit & (1 << 9)) >> 6) }
        var place = offset(units[0])
        for byte in bytes where byte != 0 {
            place ^= Int(byte)
            guard units.indices.contains(place) else { return nil }
            let unit = units[place]
            if unit & (1 << 31 | 0xff) != UInt32(byte) { return nil }
            place ^= offset(unit)
            if unit >> 8 & 1 == 0 { continue }
            guard units.indices.contains(place) else { return nil }
            let start = Int(units[place] & (1 << 31 - 1))
            guard start <= texts.count else { return nil }
            return Scalars(String(decoding: texts[start...].prefix { $0 != 0 }, as: UTF8.self))
        }
        return nil
    }
}

/// A normal form by Unicode 9: what is newer stays as it is.
private func normal(_ text: Scalars, _ form: (String) -> String) -> Scalars {
    var found: Scalars = []
    var run: Scalars = []
    func flush() {
        if !run.isEmpty { found += Scalars(form(run.string)) }
        run = []
    }
    for scalar in text {
        if scalar.value < 0x250 || scalar.isOf(9) {
            run.append(scalar)
        } else {
            flush()
            found.append(scalar)
        }
    }
    flush()
    return found
}

@Sendable private func lowercased(_ text: Scalars) -> Scalars {
    text.flatMap { $0.properties.lowercaseMapping.unicodeScalars }
}

private func replaced(_ text: Scalars, _ places: [Range<Int>], _ content: Scalars) -> Scalars {
    var found: Scalars = []
    var end = 0
    for place in places {
        found += text[end..<place.lowerBound] + content
        end = place.upperBound
    }
    return found + text[end...]
}

private func isChinese(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.value {
    case 0x4e00...0x9fff, 0x3400...0x4dbf, 0x20000...0x2a6df, 0x2a700...0x2b73f, 0x2b740...0x2b81f, 0x2b920...0x2ceaf,
        0xf900...0xfaff, 0x2f800...0x2fa1f:
        true
    default: false
    }
}

// ---- before the model

typealias PreTokenizer = @Sendable (Segment) -> [Segment]

/// What a pre-tokenizer does; nil where there is none.
func preTokenizer(_ json: JSON?) throws -> PreTokenizer? {
    guard let json, !json.isNull else { return nil }
    let (type, fields) = try step(json)
    func behavior(_ value: Behavior) throws -> Behavior {
        guard let json = fields["behavior"] else { return value }
        guard let found = json.string.flatMap(Behavior.init) else { throw Malformed("its behavior is not known") }
        return found
    }
    switch type {
    case "Sequence":
        let all = try steps(fields, "pretokenizers").compactMap(preTokenizer)
        return { given in all.reduce([given]) { $0.flatMap($1) } }
    case "ByteLevel":
        let prefix = try truth(fields, "add_prefix_space", true)
        let regex = try truth(fields, "use_regex", true)
        return { given in
            let text = prefix && given.text.first != " " ? [" "] + given.text : given.text
            let all = Segment(text: text, isFirst: given.isFirst)
            return (regex ? all.split(.regex(ByteLevel.words), .isolated) : [all]).map {
                Segment(text: ByteLevel.written($0.text), isFirst: $0.isFirst)
            }
        }
    case "BertPreTokenizer":
        return { $0.split(.scalar(\.isSpace), .removed).flatMap { $0.split(.scalar(\.isPunctuation), .isolated) } }
    case "Whitespace":
        return { given in
            given.split(.scalar(\.isSpace), .removed).flatMap { part -> [Segment] in
                part.split(.scalar(\.isWord), .contiguous)
            }
        }
    case "WhitespaceSplit": return { $0.split(.scalar(\.isSpace), .removed) }
    case "Punctuation":
        let behavior = try behavior(.isolated)
        return { $0.split(.scalar(\.isPunctuation), behavior) }
    case "Digits":
        let behavior: Behavior = try truth(fields, "individual_digits", false) ? .isolated : .contiguous
        return { $0.split(.scalar(\.isNumber), behavior) }
    case "CharDelimiterSplit":
        let delimiter = try scalar(fields, "delimiter")
        return { $0.split(.text([delimiter]), .removed) }
    case "Split":
        let pattern = try pattern(fields)
        let behavior = try behavior(.isolated)
        let invert = try truth(fields, "invert", false)
        return { $0.split(pattern, behavior, invert: invert) }
    case "Metaspace":
        let space = try Metaspace(fields)
        return space.cut
    default: throw unknown("pre_tokenizer", type)
    }
}

/// Spaces as a character of their own, as SentencePiece writes them.
struct Metaspace: Sendable {
    private enum Scheme: String {
        case always
        case first
        case never
    }

    private let replacement: Unicode.Scalar
    private let scheme: Scheme
    private let split: Bool

    init(_ fields: JSONObject) throws {
        replacement = try scalar(fields, "replacement")
        guard let scheme = Scheme(rawValue: fields["prepend_scheme"]?.string ?? "always") else {
            throw Malformed("its prepend_scheme is not known")
        }
        if try !truth(fields, "add_prefix_space", true), scheme != .never {
            throw Malformed("its add_prefix_space does not fit its prepend_scheme")
        }
        self.scheme = scheme
        split = try truth(fields, "split", true)
    }

    @Sendable func cut(_ given: Segment) -> [Segment] {
        var text = given.text.map { $0 == " " ? replacement : $0 }
        if text.first != replacement, scheme == .always || scheme == .first && given.isFirst {
            text.insert(replacement, at: 0)
        }
        let all = Segment(text: text, isFirst: given.isFirst)
        return split ? all.split(.text([replacement]), .mergedWithNext) : [all]
    }

    @Sendable func decode(_ tokens: [Scalars]) -> [Scalars] {
        tokens.enumerated().map { place, token in
            token.compactMap { $0 == replacement ? (place == 0 && scheme != .never ? nil : " ") : $0 }
        }
    }
}

/// Bytes as characters that can be seen, as GPT-2 writes them.
enum ByteLevel {
    private static let scalars: [Unicode.Scalar] = {
        var next: UInt32 = 0x100
        return (UInt8(0)...255).map { byte in
            if (0x21...0x7e).contains(byte) || (0xa1...0xac).contains(byte) || byte >= 0xae {
                return Unicode.Scalar(byte)
            }
            defer { next += 1 }
            return Unicode.Scalar(next) ?? " "
        }
    }()

    private static let bytes = Dictionary(uniqueKeysWithValues: scalars.enumerated().map { ($1, UInt8($0)) })

    @Sendable static func written(_ text: Scalars) -> Scalars { text.string.utf8.map { scalars[Int($0)] } }

    @Sendable static func decode(_ tokens: [Scalars]) -> [Scalars] {
        let all = tokens.flatMap { token in
            let known = token.compactMap { bytes[$0] }
            return known.count == token.count ? known : Array(token.string.utf8)
        }
        return [Scalars(String(decoding: all, as: UTF8.self))]
    }

    /// Letters, numbers, or others with the space before them; spaces but the last before others.
    static let words: Pattern.Regex = {
        let pattern = #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#
        guard let found = try? Pattern.Regex(pattern) else { preconditionFailure("\(pattern) is no expression") }
        return found
    }()
}

// ---- back to text

typealias Decoder = @Sendable ([Scalars]) -> [Scalars]

/// What a decoder does with tokens, whose texts are joined; nil where there is none.
func decoder(_ json: JSON?) throws -> Decoder? {
    guard let json, !json.isNull else { return nil }
    let (type, fields) = try step(json)
    switch type {
    case "Sequence":
        let all = try steps(fields, "decoders").compactMap(decoder)
        return { tokens in all.reduce(tokens) { $1($0) } }
    case "ByteLevel": return ByteLevel.decode
    case "Metaspace":
        let space = try Metaspace(fields)
        return space.decode
    case "WordPiece":
        let prefix = Scalars(try text(fields, "prefix"))
        let cleanup = try truth(fields, "cleanup", true)
        return { tokens in
            tokens.enumerated().map { place, token in
                var found = token
                if place > 0 { found = token.starts(with: prefix) ? Array(token[prefix.count...]) : [" "] + token }
                return cleanup ? cleaned(found) : found
            }
        }
    case "BPEDecoder":
        let suffix = Scalars(try text(fields, "suffix"))
        return { tokens in
            tokens.enumerated().map { place, token in
                replaced(token, Pattern.text(suffix).matches(token), place == tokens.count - 1 ? [] : [" "])
            }
        }
    case "ByteFallback": return fallenBack
    case "Fuse": return { [$0.flatMap { $0 }] }
    case "Replace":
        let pattern = try pattern(fields)
        let content = Scalars(try text(fields, "content"))
        return { tokens in tokens.map { replaced($0, pattern.matches($0), content) } }
    case "Strip":
        let content = try scalar(fields, "content")
        guard let start = fields["start"]?.integer, let stop = fields["stop"]?.integer, start >= 0, stop >= 0 else {
            throw Malformed("its decoder Strip has no start and stop")
        }
        return { tokens in
            tokens.map { token in
                let before = token.prefix(start).prefix { $0 == content }.count
                let after = token.reversed().prefix(stop).prefix { $0 == content }.count
                return before + after < token.count ? Array(token[before..<token.count - after]) : []
            }
        }
    default: throw unknown("decoder", type)
    }
}

private let cleanings = [
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
].map { (from: Scalars($0), to: Scalars($1)) }

private func cleaned(_ token: Scalars) -> Scalars {
    cleanings.reduce(token) { replaced($0, Pattern.text($1.from).matches($0), $1.to) }
}

/// `<0x41>` as the byte; bytes that are no text as U+FFFD each.
@Sendable private func fallenBack(_ tokens: [Scalars]) -> [Scalars] {
    var found: [Scalars] = []
    var bytes: [UInt8] = []
    func flush() {
        if bytes.isEmpty { return }
        if let text = try? utf8(bytes) {
            found.append(Scalars(text))
        } else {
            found += [Scalars](repeating: ["\u{fffd}"], count: bytes.count)
        }
        bytes = []
    }
    for token in tokens {
        let text = token.string
        if token.count == 6, text.hasPrefix("<0x"), text.hasSuffix(">"),
            let byte = UInt8(text.dropFirst(3).dropLast(), radix: 16)
        {
            bytes.append(byte)
        } else {
            flush()
            found.append(token)
        }
    }
    flush()
    return found
}
