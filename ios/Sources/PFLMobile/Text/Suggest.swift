/// A next word.
public struct Suggestion: Sendable, Equatable {
    /// The word, or a symbol.
    public let word: String
    /// Probability that the model gives it, from 0 to 1.
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

/// At most `count` different next words or symbols, the likeliest first, over a vocabulary of words.
///
/// - Parameters:
///   - encoder: with the user's words in its slots
///   - text: what was typed, up to the end of a word
///   - predict: the program, with the user's tensors
/// - Throws: as the program
func suggest(
    _ encoder: TextEncoder, after text: String, count: Int = 3, predict: (TextContext) throws -> Predicted
) throws -> [Suggestion] {
    let next = try predict(try encoder.context(text))
    var found: [Suggestion] = []
    var seen: Set<Exact> = []
    for (id, probability) in zip(next.ids, next.probabilities) where !encoder.isSpecial(Int(id)) {
        if found.count >= count { break }
        let word = try encoder.word(Int(id))
        if !word.isEmpty, seen.insert(Exact(word)).inserted {
            found.append(Suggestion(word: word, probability: Double(probability)))
        }
    }
    return found
}
