/// Tokens that are found in a text as they are, before anything cuts it.
struct AddedTokens: Sendable {
    struct Token: Sendable {
        let id: Int
        let content: Scalars
        let isSpecial: Bool
        let singleWord: Bool
        let stripsLeft: Bool
        let stripsRight: Bool
        let normalized: Bool
    }

    /// By their first code point, the longest first.
    private let plain: [Unicode.Scalar: [Token]]
    private let normalized: [Unicode.Scalar: [Token]]

    init(_ tokens: [Token], _ normalizer: Normalizer?) {
        func table(_ tokens: [(text: Scalars, token: Token)]) -> [Unicode.Scalar: [Token]] {
            var found: [Unicode.Scalar: [Token]] = [:]
            for (text, token) in tokens {
                guard let first = text.first else { continue }
                found[first, default: []].append(
                    Token(
                        id: token.id, content: text, isSpecial: token.isSpecial, singleWord: token.singleWord,
                        stripsLeft: token.stripsLeft, stripsRight: token.stripsRight, normalized: token.normalized))
            }
            return found.mapValues { $0.sorted { $0.content.count > $1.content.count } }
        }
        plain = table(tokens.filter { !$0.normalized }.map { ($0.content, $0) })
        normalized = table(
            tokens.filter(\.normalized).map { token in
                (normalizer?(Segment(text: token.content, isFirst: true)).text ?? token.content, token)
            })
    }

    enum Part {
        case token(Int)
        case text(Segment)
    }

    /// A text without its tokens, normalized, and these.
    func parts(_ text: Scalars, _ normalizer: Normalizer?) -> [Part] {
        AddedTokens.parts(Segment(text: text, isFirst: true), plain).flatMap { part -> [Part] in
            guard case .text(let segment) = part else { return [part] }
            return AddedTokens.parts(normalizer?(segment) ?? segment, normalized)
        }
    }

    private static func parts(_ given: Segment, _ tokens: [Unicode.Scalar: [Token]]) -> [Part] {
        let text = given.text
        var found: [Part] = []
        var end = 0
        func plain(_ to: Int) {
            if end < to {
                found.append(.text(Segment(text: Array(text[end..<to]), isFirst: given.isFirst && end == 0)))
            }
        }
        var at = 0
        while at < text.count {
            guard let token = tokens[text[at]]?.first(where: { text[at...].starts(with: $0.content) }) else {
                at += 1
                continue
            }
            var start = at
            var stop = at + token.content.count
            at = stop
            if token.singleWord {
                let joined = start > 0 && text[start - 1].isWord || stop < text.count && text[stop].isWord
                if joined { continue }
            }
            if token.stripsLeft { while start > end, text[start - 1].isSpace { start -= 1 } }
            if token.stripsRight { while stop < text.count, text[stop].isSpace { stop += 1 } }
            plain(start)
            found.append(.token(token.id))
            end = stop
        }
        plain(text.count)
        return found
    }
}
