/// The words of a vocabulary by how they begin. Made once for a tokenizer, as a keyboard asks at every key.
///
/// Upper and lower case, and the kinds of apostrophe, are one.
struct PrefixIndex: Sendable {
    private let sorted: [(folded: String, id: Int)]

    init(_ tokenizer: WordTokenizer) throws {
        sorted = try (WordTokenizer.specialWords.count..<max(tokenizer.size, WordTokenizer.specialWords.count))
            .map { (word: try tokenizer.word($0), id: $0) }
            .filter { !tokenizer.isSymbol($0.word) }
            .map { (folded: folded($0.word), id: $0.id) }
            .sorted { nameOrder($0.folded, $1.folded) }
    }

    /// Ids of the words that begin with a prefix and are longer, in the order of the ids: the most used first.
    func startingWith(_ prefix: String) -> [Int] {
        let start = folded(prefix)
        var low = 0
        var high = sorted.count
        while low < high {
            let middle = (low + high) / 2
            if nameOrder(sorted[middle].folded, start) { low = middle + 1 } else { high = middle }
        }
        return sorted[low...].prefix { $0.folded.utf8.starts(with: start.utf8) }
            .filter { $0.folded.utf8.count > start.utf8.count }
            .map(\.id).sorted()
    }
}

/// At most `count` different words that begin with a prefix and are longer: those that the model finds likely, in that order,
/// then the user's own, then those of the vocabulary, the most used first.
///
/// A program gives only so many next words as it was exported for, and the word that was begun may be none of them.
///
/// - Parameters:
///   - likely: what the model suggests, the likeliest first
///   - own: the user's words
///   - vocabulary: none over subwords, which are no words
func complete(_ likely: [String], own: [String], vocabulary: [String], prefix: String, count: Int) -> [String] {
    let start = folded(prefix)
    var seen: Set<Exact> = []
    var found: [String] = []
    for word in [likely, own, vocabulary].lazy.joined() {
        if found.count >= count { break }
        let text = folded(word)
        guard text.utf8.starts(with: start.utf8), text.utf8.count > start.utf8.count else { continue }
        if seen.insert(Exact(word)).inserted { found.append(word) }
    }
    return found
}

private func folded(_ word: String) -> String {
    String(
        String.UnicodeScalarView(
            word.lowercased().unicodeScalars.map { $0 == "\u{2019}" || $0 == "\u{2018}" ? "'" : $0 }))
}
