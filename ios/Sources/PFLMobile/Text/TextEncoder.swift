/// Rows of texts for next-word prediction.
public struct TextRows: Sendable {
    /// `int64[rows, length]`.
    public let tokens: LongTensor
    /// `int64[rows, length]`, the token after each.
    public let labels: LongTensor
    /// `float32[rows, length]`, 1 where a label counts.
    public let weight: FloatTensor
}

/// What `predict` takes.
public struct TextContext: Sendable {
    /// `int64[1, length]`.
    public let tokens: LongTensor
    /// `int64[1]`, the place of the last token.
    public let position: LongTensor
}

/// Turns texts into rows of fixed length, and ids back into words.
///
/// A message `w1 .. wn` becomes tokens `<s> w1 .. wn` with labels `w1 .. wn </s>`; the end never counts, as a keyboard has no
/// key for it.
public struct TextEncoder: Sendable {
    /// Its size is at most `vocabulary`; over subwords there are no slots.
    public let tokenizer: any Tokenizer
    /// Tokens in a row.
    public let length: Int
    /// Size of the model's base vocabulary; ids of slots start here.
    public let vocabulary: Int
    /// Vocabulary slots behind it.
    public let slots: Int
    /// The user's own words, in the order of their slots.
    public let words: [String]
    /// Words that the user wants forgotten. They get no slot, and one of the base vocabulary reads as the unknown word; over
    /// subwords, a text with one of them gives no rows.
    public let blocked: BlockList?

    private let slotOf: [Exact: Int]
    private let overWords: Bool
    private let unlearned: Set<Int>

    /// Words with more code points get no slot: they are no words, and a keyboard could not show them.
    private static let longestSlotWord = 64
    private static let unknownWord = "<unk>"

    /// An encoder.
    ///
    /// - Throws: `.config`: the sizes do not fit each other
    public init(
        _ tokenizer: any Tokenizer, length: Int, vocabulary: Int, slots: Int = 0, words: [String] = [],
        blocked: BlockList? = nil
    ) throws {
        if length < 2 || slots < 0 {
            throw PFLError(
                .config, "length=\(length), slots=\(slots)", mend: "length is at least 2, slots at least 0")
        }
        if tokenizer.size > vocabulary {
            throw PFLError(
                .config, "the tokenizer has \(tokenizer.size) ids, the model's vocabulary \(vocabulary)",
                mend: "export the bundle again")
        }
        let slotOf = Dictionary(words.enumerated().map { (Exact($1), vocabulary + $0) }) { first, _ in first }
        if words.count > slots || slotOf.count != words.count {
            throw PFLError(.config, "\(words.count) words for \(slots) slots", mend: "give each slot at most one word")
        }
        overWords = tokenizer is WordTokenizer
        if slots > 0 && !overWords {
            throw PFLError(
                .config, "\(slots) vocabulary slots over a tokenizer of subwords",
                mend: "export the bundle without slots")
        }
        for word in words
        where tokenizer.id(word) != tokenizer.specials.unk || WordTokenizer.specialWords.contains(word) {
            throw PFLError(.config, "'\(word)' is in the base vocabulary", mend: "give slots to other words only")
        }
        self.tokenizer = tokenizer
        self.length = length
        self.vocabulary = vocabulary
        self.slots = slots
        self.words = words
        self.blocked = blocked
        self.slotOf = slotOf
        if let blocked, blocked.size > 0, overWords {
            unlearned = Set(
                try (WordTokenizer.specialWords.count..<tokenizer.size).filter {
                    blocked.contains(try tokenizer.word($0))
                })
        } else {
            unlearned = []
        }
    }

    /// Ids in all.
    public var total: Int { vocabulary + slots }

    /// The id of what is outside the vocabulary; -1 where a tokenizer has none.
    public var unknown: Int { tokenizer.specials.unk }

    /// This encoder with these words in the slots, in this order.
    ///
    /// - Throws: `.config`: they do not fit the slots
    public func withWords(_ words: [String]) throws -> TextEncoder {
        try TextEncoder(
            tokenizer, length: length, vocabulary: vocabulary, slots: slots, words: words, blocked: blocked)
    }

    /// This encoder for a user who wants these words forgotten.
    ///
    /// - Throws: as the tokenizer
    public func withBlocked(_ blocked: BlockList) throws -> TextEncoder {
        try TextEncoder(
            tokenizer, length: length, vocabulary: vocabulary, slots: slots, words: words, blocked: blocked)
    }

    /// The slot words for a user who wrote these texts.
    ///
    /// Words that have a slot keep it. The free slots go to other pieces outside the base vocabulary that occur at least
    /// `minCount` times: most frequent first, then first seen first. Left out are pieces with a digit, pieces of more than 64
    /// code points, and blocked ones, also where a blocked word is a part between apostrophes (`greta's`).
    public func chooseWords(_ texts: some Sequence<String>, minCount: Int = 2) throws -> [String] {
        if slots == 0 { return [] }
        var counts: [Exact: Int] = [:]
        var order: [Exact] = []
        for text in texts {
            for word in try tokenizer.words(text).map(Exact.init)
            where slotOf[word] == nil && tokenizer.id(word.text) == unknown {
                if counts[word] == nil { order.append(word) }
                counts[word, default: 0] += 1
            }
        }
        let ranked = order.enumerated()
            .map { (word: $1, place: $0, count: counts[$1] ?? 0) }
            .filter { $0.count >= minCount && getsSlot($0.word.text) }
            .sorted { ($1.count, $0.place) < ($0.count, $1.place) }
        return Array((words + ranked.map(\.word.text)).prefix(slots))
    }

    private func getsSlot(_ word: String) -> Bool {
        blocked?.hides(word) != true && word.unicodeScalars.count <= TextEncoder.longestSlotWord
            && !Pieces.holdsDigit(word)
    }

    /// The id of a piece in the base vocabulary or a slot, else `unknown`; blocked ones have none.
    public func id(_ word: String) -> Int {
        let id = slotOf[Exact(word)] ?? tokenizer.id(word)
        return unlearned.contains(id) ? unknown : id
    }

    /// The ids of a text's pieces, without special tokens.
    ///
    /// - Throws: as the tokenizer
    public func ids(_ text: String) throws -> [Int] { try tokenizer.words(text).map(id) }

    /// The piece of an id; a free slot, or an id without a word, reads `<unk>`.
    ///
    /// - Throws: `.outOfVocabulary`: the id is negative or not below `total`
    public func word(_ id: Int) throws -> String {
        guard (0..<total).contains(id) else { throw outOfVocabulary(id, total, "encoder") }
        if id >= vocabulary { return id - vocabulary < words.count ? words[id - vocabulary] : TextEncoder.unknownWord }
        return id < tokenizer.size ? try tokenizer.word(id) : TextEncoder.unknownWord
    }

    /// Whether an id stands for no word: padding, start, end, the unknown word, a free slot.
    public func isSpecial(_ id: Int) -> Bool {
        let specials = tokenizer.specials
        return id >= vocabulary + words.count || id >= tokenizer.size && id < vocabulary
            || [specials.pad, specials.bos, specials.eos, specials.unk].contains(id)
    }

    /// Rows of all texts, in order; a text without pieces gives none.
    ///
    /// A text longer than a row goes on in further rows, each of which repeats the last quarter of the row before as context
    /// with weight 0: every label counts once.
    ///
    /// - Parameters:
    ///   - dropUnknown: weight 0 for labels outside the vocabulary; for training. Without it they count, and are misses
    ///   - wordsOnly: weight 0 for labels that are symbols
    /// - Throws: as the tokenizer
    public func encode(
        _ texts: some Sequence<String>, dropUnknown: Bool = false, wordsOnly: Bool = false
    ) throws -> TextRows {
        let windows = try texts.flatMap { try self.windows($0, dropUnknown, wordsOnly) }
        let pad = Int64(tokenizer.specials.pad)
        var tokens = [Int64](repeating: pad, count: windows.count * length)
        var labels = tokens
        var weight = [Float](repeating: 0, count: windows.count * length)
        for (row, window) in windows.enumerated() {
            for place in 0..<window.ids.count - 1 {
                tokens[row * length + place] = Int64(window.ids[place])
                labels[row * length + place] = Int64(window.ids[place + 1])
                if window.counts[place] { weight[row * length + place] = 1 }
            }
        }
        let shape = [windows.count, length]
        return TextRows(
            tokens: LongTensor(tokens, shape), labels: LongTensor(labels, shape), weight: FloatTensor(weight, shape))
    }

    /// At most `length` + 1 ids, and what counts of all but the first.
    private struct Window {
        let ids: [Int]
        let counts: [Bool]
    }

    private func windows(_ text: String, _ dropUnknown: Bool, _ wordsOnly: Bool) throws -> [Window] {
        let pieces = try tokenizer.words(text)
        if pieces.isEmpty || isUnlearned(text) { return [] }
        let ids = pieces.map(id)
        let counts =
            zip(ids, pieces).map { id, piece in
                !(dropUnknown && id == unknown) && !(wordsOnly && tokenizer.isSymbol(piece))
            } + [false]
        let sequence = [tokenizer.specials.bos] + ids + [tokenizer.specials.eos]
        let overlap = length / 4
        var found: [Window] = []
        var start = 0
        var seen = 0
        while true {
            let end = start + length
            let counted = [Bool](repeating: false, count: seen) + counts[(start + seen)..<min(end, counts.count)]
            found.append(Window(ids: Array(sequence[start..<min(end + 1, sequence.count)]), counts: counted))
            if end >= ids.count { return found }  // only the end, which never counts, could be left
            start = end - overlap
            seen = overlap
        }
    }

    private func isUnlearned(_ text: String) -> Bool {
        guard let blocked, blocked.size > 0, !overWords else { return false }
        return PieceRules.newest.cut(text).contains(where: blocked.hides)
    }

    /// What `predict` takes to suggest the word after a text: the last ids that fit into a row.
    ///
    /// - Throws: as the tokenizer
    public func context(_ text: String) throws -> TextContext { contextAfter(try ids(text)) }

    /// The same after these ids.
    public func contextAfter(_ ids: [Int]) -> TextContext {
        let all = [tokenizer.specials.bos] + ids
        let last: [Int64] = all[max(all.count - length, 0)...].map { Int64($0) }
        let pad = [Int64](repeating: Int64(tokenizer.specials.pad), count: length - last.count)
        return TextContext(
            tokens: LongTensor(last + pad, [1, length]), position: LongTensor([Int64(last.count - 1)], [1]))
    }
}
