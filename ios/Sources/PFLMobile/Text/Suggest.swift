/// A next word.
public struct Suggestion: Sendable, Equatable {
    /// The word, or a symbol.
    public let word: String
    /// Probability that the model gives it, from 0 to 1; of a word of several parts, that they follow each other.
    public let probability: Double
}

/// What `predict` gives: ids, the likeliest first, and their probabilities.
struct Predicted: Sendable {
    let ids: [Int64]
    let probabilities: [Float]

    /// The outputs `top_ids` and `top_probs` of the program.
    ///
    /// - Throws: `.engine`: there are none
    init(_ outputs: TensorSet) throws {
        guard let ids = outputs["top_ids"]?.long, let probabilities = outputs["top_probs"]?.float,
            ids.size == probabilities.size
        else {
            throw PFLError(.engine, "the program gives no top_ids and top_probs", mend: "export the bundle again")
        }
        self.ids = ids.values
        self.probabilities = probabilities.values
    }
}

/// A word of more subwords is cut off here.
private let mostParts = 8

/// At most `count` different next words or symbols, the likeliest first.
///
/// Over words an id is a word. Over subwords one call gives the first part of a word; it is gone on from, one call for each
/// further part, until a part begins another word.
///
/// - Parameters:
///   - encoder: with the user's words in its slots
///   - text: what was typed, up to the end of a word
///   - predict: the program, with the user's tensors
/// - Throws: as the program
func suggest(
    _ encoder: TextEncoder, after text: String, count: Int = 3, predict: (TextContext) throws -> Predicted
) throws -> [Suggestion] {
    let before = try encoder.ids(text)
    let next = try predict(encoder.contextAfter(before))
    var found: [Suggestion] = []
    var seen: Set<Exact> = []
    for (id, probability) in zip(next.ids, next.probabilities) where !encoder.isSpecial(Int(id)) {
        if found.count >= count { break }
        let suggestion: Suggestion
        if let tokenizer = encoder.tokenizer as? SubwordTokenizer {
            suggestion = try whole(encoder, tokenizer, before, Int(id), Double(probability), predict)
        } else {
            suggestion = Suggestion(word: try encoder.word(Int(id)), probability: Double(probability))
        }
        if !suggestion.word.isEmpty, seen.insert(Exact(suggestion.word)).inserted { found.append(suggestion) }
    }
    return found
}

/// The word that begins with a subword; empty where it begins none.
private func whole(
    _ encoder: TextEncoder, _ tokenizer: SubwordTokenizer, _ before: [Int], _ first: Int, _ probability: Double,
    _ predict: (TextContext) throws -> Predicted
) throws -> Suggestion {
    var parts = [first]
    var all = probability
    while parts.count < mostParts {
        let next = try predict(encoder.contextAfter(before + parts))
        guard let best = next.ids.first.map({ Int($0) }), let likely = next.probabilities.first,
            !encoder.isSpecial(best), words(tokenizer.text(parts + [best])) <= 1
        else { break }
        parts.append(best)
        all *= Double(likely)
    }
    let word = tokenizer.text(parts).unicodeScalars.drop(while: \.isSpace).reversed().drop(while: \.isSpace).reversed()
    return Suggestion(word: String(String.UnicodeScalarView(word)), probability: all)
}

private func words(_ text: String) -> Int { text.unicodeScalars.split(whereSeparator: \.isSpace).count }
