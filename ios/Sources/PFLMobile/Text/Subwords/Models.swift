// The models of a tokenizer.json: pieces of a segment as ids.

/// Cuts a segment into the tokens of a vocabulary.
protocol SubwordModel: Sendable {
    /// - Throws: `Malformed`: it cannot be cut
    func ids(_ text: Scalars) throws -> [Int]
}

private func flag(_ fields: JSONObject, _ name: String) throws -> Bool {
    guard let json = fields[name], !json.isNull else { return false }
    guard let found = json.bool else { throw Malformed("\(name) is neither true nor false") }
    return found
}

private func optional(_ fields: JSONObject, _ name: String) throws -> String? {
    guard let json = fields[name], !json.isNull else { return nil }
    guard let found = json.string else { throw Malformed("\(name) is no text") }
    return found
}

/// `<0x41>` of each byte; nil where one is not in the vocabulary.
private func fallback(_ text: Scalars, _ vocabulary: [Exact: Int]) -> [Int]? {
    let bytes = text.string.utf8.map { vocabulary[Exact("<0x\(hex([$0]).uppercased())>")] }
    return bytes.contains(nil) ? nil : bytes.compactMap { $0 }
}

/// Each segment is a token, or unknown.
struct WholeWords: SubwordModel {
    private let vocabulary: [Exact: Int]
    private let unknown: Int?

    init(_ fields: JSONObject, _ vocabulary: [Exact: Int]) throws {
        self.vocabulary = vocabulary
        unknown = try optional(fields, "unk_token").flatMap { vocabulary[Exact($0)] }
    }

    func ids(_ text: Scalars) throws -> [Int] {
        guard let id = vocabulary[Exact(text.string)] ?? unknown else { throw Malformed("it has no unknown token") }
        return [id]
    }
}

/// Byte pair encoding: of all neighbours the pair that was learned first becomes one, the left one first, until none is left.
struct BytePairs: SubwordModel {
    private struct Pair: Hashable {
        let left: Int
        let right: Int
    }

    private let vocabulary: [Exact: Int]
    private let merges: [Pair: (rank: Int, id: Int)]
    private let unknown: Int?
    private let prefix: Scalars
    private let suffix: Scalars
    private let fuse: Bool
    private let byteFallback: Bool
    private let ignoreMerges: Bool

    init(_ fields: JSONObject, _ vocabulary: [Exact: Int]) throws {
        self.vocabulary = vocabulary
        if let dropout = fields["dropout"], !dropout.isNull, dropout.number != 0 {
            throw Malformed("it has dropout, which draws by chance")
        }
        unknown = try optional(fields, "unk_token").map { token in
            guard let id = vocabulary[Exact(token)] else { throw Malformed("its unk_token is not in the vocabulary") }
            return id
        }
        prefix = Scalars(try optional(fields, "continuing_subword_prefix") ?? "")
        suffix = Scalars(try optional(fields, "end_of_word_suffix") ?? "")
        fuse = try flag(fields, "fuse_unk")
        byteFallback = try flag(fields, "byte_fallback")
        ignoreMerges = try flag(fields, "ignore_merges")
        guard let list = fields["merges"]?.array else { throw Malformed("it has no merges") }
        var merges: [Pair: (rank: Int, id: Int)] = [:]
        merges.reserveCapacity(list.count)
        for (rank, merge) in list.enumerated() {
            let parts: [String]
            if let text = merge.string {
                parts = text.unicodeScalars.split(separator: " ", omittingEmptySubsequences: false).map { String($0) }
            } else {
                parts = merge.array?.compactMap(\.string) ?? []
            }
            guard parts.count == 2, let left = vocabulary[Exact(parts[0])], let right = vocabulary[Exact(parts[1])]
            else { throw Malformed("merge \(rank) is not of two tokens") }
            let joined = Scalars(parts[0]) + Scalars(parts[1]).dropFirst(prefix.count)
            guard let id = vocabulary[Exact(joined.string)] else {
                throw Malformed("what merge \(rank) gives is not in the vocabulary")
            }
            merges[Pair(left: left, right: right)] = (rank, id)
        }
        self.merges = merges
    }

    func ids(_ text: Scalars) throws -> [Int] {
        if text.isEmpty { return [] }
        if ignoreMerges, let id = vocabulary[Exact(text.string)] { return [id] }
        var symbols: [Int] = []
        var pending = 0
        func flush() {
            if let unknown { symbols += [Int](repeating: unknown, count: pending) }
            pending = 0
        }
        for (place, scalar) in text.enumerated() {
            var symbol = place > 0 ? prefix + [scalar] : [scalar]
            if place == text.count - 1 { symbol += suffix }
            if let id = vocabulary[Exact(symbol.string)] {
                flush()
                symbols.append(id)
            } else if byteFallback, let bytes = fallback(symbol, vocabulary) {
                symbols += bytes
            } else if unknown != nil {
                if !fuse { flush() }
                pending = 1
            }
        }
        flush()
        return merged(symbols)
    }

    /// A pair that may become one: its rank, where it begins, and what it was made of.
    private struct Candidate {
        let rank: Int
        let place: Int
        let id: Int

        static func < (one: Candidate, other: Candidate) -> Bool { (one.rank, one.place) < (other.rank, other.place) }
    }

    private func merged(_ given: [Int]) -> [Int] {
        if given.count < 2 { return given }
        var symbols = given.map(Optional.init)
        var next = Array(1...given.count)
        var before = Array(-1..<given.count - 1)
        var heap = Heap<Candidate>(<)
        func offer(_ left: Int) {
            guard left >= 0, next[left] < symbols.count, let one = symbols[left], let other = symbols[next[left]],
                let merge = merges[Pair(left: one, right: other)]
            else { return }
            heap.push(Candidate(rank: merge.rank, place: left, id: merge.id))
        }
        for place in 0..<given.count - 1 { offer(place) }
        while let best = heap.pop() {
            let right = next[best.place]
            guard let one = symbols[best.place], right < symbols.count, let other = symbols[right],
                merges[Pair(left: one, right: other)]?.id == best.id
            else { continue }  // one of both was merged meanwhile
            symbols[best.place] = best.id
            symbols[right] = nil
            next[best.place] = next[right]
            if next[right] < symbols.count { before[next[right]] = best.place }
            offer(before[best.place])
            offer(best.place)
        }
        return symbols.compactMap { $0 }
    }
}

/// A queue that gives the smallest first.
struct Heap<Element> {
    private var items: [Element] = []
    private let isLess: (Element, Element) -> Bool

    init(_ isLess: @escaping (Element, Element) -> Bool) {
        self.isLess = isLess
    }

    mutating func push(_ item: Element) {
        items.append(item)
        var at = items.count - 1
        while at > 0, isLess(items[at], items[(at - 1) / 2]) {
            items.swapAt(at, (at - 1) / 2)
            at = (at - 1) / 2
        }
    }

    mutating func pop() -> Element? {
        guard let first = items.first, let last = items.popLast() else { return nil }
        if items.isEmpty { return first }
        items[0] = last
        var at = 0
        while true {
            var least = at
            for child in [2 * at + 1, 2 * at + 2] where child < items.count && isLess(items[child], items[least]) {
                least = child
            }
            if least == at { return first }
            items.swapAt(at, least)
            at = least
        }
    }
}

/// The longest piece that is known, again and again; a word that is not made of known ones is unknown.
struct WordPieces: SubwordModel {
    private let vocabulary: [Exact: Int]
    private let unknown: Int
    private let prefix: Scalars
    private let most: Int
    private let longest: Int

    init(_ fields: JSONObject, _ vocabulary: [Exact: Int]) throws {
        self.vocabulary = vocabulary
        guard let token = fields["unk_token"]?.string, let id = vocabulary[Exact(token)] else {
            throw Malformed("its unk_token is not in the vocabulary")
        }
        unknown = id
        prefix = Scalars(try optional(fields, "continuing_subword_prefix") ?? "##")
        most = fields["max_input_chars_per_word"]?.integer ?? 100
        longest = vocabulary.keys.map(\.text.unicodeScalars.count).max() ?? 0
    }

    func ids(_ text: Scalars) throws -> [Int] {
        if text.count > most { return [unknown] }
        var found: [Int] = []
        var start = 0
        while start < text.count {
            var end = min(text.count, start + longest)
            var id: Int?
            while end > start {
                let piece = (start > 0 ? prefix : []) + text[start..<end]
                id = vocabulary[Exact(piece.string)]
                if id != nil { break }
                end -= 1
            }
            guard let id else { return [unknown] }
            found.append(id)
            start = end
        }
        return found
    }
}

/// The cut whose pieces are the likeliest together.
struct UnigramPieces: SubwordModel {
    private let vocabulary: [Exact: Int]
    private let scores: [Double]
    private let unknown: Int?
    private let byteFallback: Bool
    private let unknownScore: Double
    /// Ids in the order of their pieces' bytes, and these.
    private let sorted: [Int]
    private let pieces: [[UInt8]]

    private static let penalty = 10.0

    init(_ fields: JSONObject, _ vocabulary: [Exact: Int], _ entries: [JSON]) throws {
        var scores: [Double] = []
        var pieces: [[UInt8]] = []
        var own: [Exact: Int] = [:]
        for (id, entry) in entries.enumerated() {
            guard let pair = entry.array, pair.count == 2, let piece = pair[0].string, let score = pair[1].number else {
                throw Malformed("entry \(id) of its vocabulary is no piece with a score")
            }
            scores.append(score)
            pieces.append(Array(piece.utf8))
            own[Exact(piece)] = id
        }
        self.vocabulary = own
        self.scores = scores
        self.pieces = pieces
        unknown = try fields["unk_id"].flatMap { json in
            if json.isNull { return nil }
            guard let id = json.integer, scores.indices.contains(id) else {
                throw Malformed("its unk_id is not in the vocabulary")
            }
            return id
        }
        byteFallback = try flag(fields, "byte_fallback")
        unknownScore = (scores.min() ?? 0) - UnigramPieces.penalty
        // Of one piece twice the last counts.
        sorted = own.values.sorted { pieces[$0].lexicographicallyPrecedes(pieces[$1]) }
    }

    private struct Node {
        var score = 0.0
        var start: Int?
        var id = 0
    }

    func ids(_ text: Scalars) throws -> [Int] {
        let bytes = Array(text.string.utf8)
        var best = [Node](repeating: Node(), count: bytes.count + 1)
        func offer(_ end: Int, _ score: Double, _ start: Int, _ id: Int) {
            if best[end].start == nil || score > best[end].score {
                best[end] = Node(score: score, start: start, id: id)
            }
        }
        var at = 0
        for scalar in text {
            let width = UTF8.width(scalar)
            let here = best[at].score
            var isKnown = false
            eachPiece(bytes, from: at) { id, length in
                offer(at + length, scores[id] + here, at, id)
                if length == width { isKnown = true }
            }
            if !isKnown {
                guard let unknown else { throw Malformed("it has no unknown token") }
                offer(at + width, unknownScore + here, at, unknown)
            }
            at += width
        }
        var cuts: [(range: Range<Int>, isUnknown: Bool)] = []
        var end = bytes.count
        while end > 0, let start = best[end].start {
            let isUnknown = best[end].id == unknown
            // Neighbours that are unknown are one.
            if isUnknown, let last = cuts.last, last.isUnknown {
                cuts[cuts.count - 1].range = start..<last.range.upperBound
            } else {
                cuts.append((start..<end, isUnknown))
            }
            end = start
        }
        return try cuts.reversed().flatMap { cut -> [Int] in
            let piece = String(decoding: bytes[cut.range], as: UTF8.self)
            if let id = vocabulary[Exact(piece)] { return [id] }
            if byteFallback, let found = fallback(Scalars(piece), vocabulary) { return found }
            guard let unknown else { throw Malformed("it has no unknown token") }
            return [unknown]
        }
    }

    /// Each piece that stands at a place, the shortest first.
    private func eachPiece(_ bytes: [UInt8], from start: Int, _ body: (_ id: Int, _ length: Int) -> Void) {
        var low = 0
        var high = sorted.count
        var depth = 0
        while low < high {
            let id = sorted[low]
            if pieces[id].count == depth {
                if depth > 0 { body(id, depth) }
                low += 1
                continue
            }
            if start + depth >= bytes.count { return }
            let byte = bytes[start + depth]
            low = bound(low, high) { pieces[$0][depth] < byte }
            high = bound(low, high) { pieces[$0][depth] <= byte }
            depth += 1
        }
    }

    /// The first place in the order whose piece does not pass.
    private func bound(_ low: Int, _ high: Int, _ passes: (Int) -> Bool) -> Int {
        var low = low
        var high = high
        while low < high {
            let middle = (low + high) / 2
            if passes(sorted[middle]) { low = middle + 1 } else { high = middle }
        }
        return low
    }
}
