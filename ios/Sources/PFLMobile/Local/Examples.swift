/// A device's examples, oldest first.
public enum Examples: Sendable {
    /// Texts, for a bundle with an encoder.
    case texts([String])
    /// Arrays, as the inputs of the bundle's programs name them, with `weight`.
    case arrays(Rows)

    /// How many there are.
    public var size: Int {
        switch self {
        case .texts(let texts): texts.count
        case .arrays(let rows): rows.first?.value.shape.first ?? 0
        }
    }

    /// The first so many, and the others.
    public func cut(_ at: Int) -> (Examples, Examples) {
        switch self {
        case .texts(let texts): return (.texts(Array(texts[..<at])), .texts(Array(texts[at...])))
        case .arrays(let rows):
            let (first, rest) = cutRows(rows, at)
            return (.arrays(first), .arrays(rest))
        }
    }
}

/// Examples by age.
public struct Parts: Sendable {
    /// What is trained on.
    public let train: Examples
    /// Newer: what the guard measures.
    public let holdout: Examples
    /// Newest: what neither training nor the guard sees.
    public let test: Examples
    /// How many there were before them, beyond what a device keeps.
    public let older: Int
}

/// Cuts examples into the three parts.
///
/// - Parameters:
///   - test: share of all examples, the newest, to test on; at least one
///   - holdout: share of the others, the newest, for the guard
///   - most: examples that a device keeps for training and guard, the newest; nil for all
/// - Throws: `.noExamples`: fewer than 2; `.config`: `test` is not between 0 and 1
public func parts(
    _ examples: Examples, test: Double = 0.2, holdout: Double = 0.2, most: Int? = nil
) throws -> Parts {
    let count = examples.size
    if count < 2 {
        throw PFLError(
            .noExamples, "the device has \(count) example\(count == 1 ? "" : "s")",
            mend: "give at least 3: one to learn from, one for the guard, one to test on")
    }
    if !(test > 0 && test < 1) {
        throw PFLError(
            .config, "the test part is \(test)", mend: "give a share between 0 and 1, for instance 0.2")
    }
    // The small term keeps 0.8 * 100 at 80 although the product may fall just short of it in binary.
    let cut = min(max(Int((Double(count) * (1 - test) + 1e-9).rounded(.down)), 1), count - 1)
    let (all, tested) = examples.cut(cut)
    let older = most.map { max(cut - $0, 0) } ?? 0
    let learn = all.cut(older).1
    let (train, held) = learn.cut(learn.size - holdoutSize(learn.size, holdout))
    return Parts(train: train, holdout: held, test: tested, older: older)
}

/// Turns texts into rows, as training asks for it.
public protocol ExampleEncoder: Sendable {
    /// The user's words in slot order.
    var words: [String] { get }

    /// The id of what is not in the vocabulary.
    var unknown: Int { get }

    /// This encoder with these words in the slots.
    func withWords(_ words: [String]) throws -> any ExampleEncoder

    /// This encoder for a user who wants these words forgotten: they get no slot and read as unknown.
    func withBlocked(_ blocked: BlockList) throws -> any ExampleEncoder

    /// Slot words for a user who wrote these texts; words that have a slot keep it.
    func chooseWords(_ texts: [String], minCount: Int) throws -> [String]

    /// Rows of the texts, labels outside the vocabulary with weight 0 if `dropUnknown`.
    func encode(_ texts: [String], dropUnknown: Bool) throws -> Rows
}

/// A bundle's text encoder, as training asks for it.
public struct TrainingEncoder: ExampleEncoder {
    /// The encoder itself.
    public let text: TextEncoder

    /// The same, as training asks for it.
    public init(_ text: TextEncoder) {
        self.text = text
    }

    /// The user's words in slot order.
    public var words: [String] { text.words }

    /// The id of what is not in the vocabulary.
    public var unknown: Int { text.unknown }

    /// This encoder with these words in the slots.
    public func withWords(_ words: [String]) throws -> any ExampleEncoder {
        words.map(Exact.init) == self.words.map(Exact.init) ? self : TrainingEncoder(try text.withWords(words))
    }

    /// This encoder for a user who wants these words forgotten.
    public func withBlocked(_ blocked: BlockList) throws -> any ExampleEncoder {
        TrainingEncoder(try text.withBlocked(blocked))
    }

    /// Slot words for a user who wrote these texts.
    public func chooseWords(_ texts: [String], minCount: Int) throws -> [String] {
        try text.chooseWords(texts, minCount: minCount)
    }

    /// Rows of the texts.
    public func encode(_ texts: [String], dropUnknown: Bool) throws -> Rows {
        let rows = try text.encode(texts, dropUnknown: dropUnknown)
        return ["tokens": .long(rows.tokens), "labels": .long(rows.labels), "weight": .float(rows.weight)]
    }
}

/// The encoder that a bundle describes; nil for a bundle that takes arrays.
///
/// - Throws: `.data`: its tokenizer cannot be read, or is not cut by the rules that the manifest says
public func textEncoder(_ bundle: ModelBundle) throws -> TextEncoder? {
    guard case .text(let entry) = bundle.manifest.encoder, let json = try bundle.tokenizer() else { return nil }
    let tokenizer: any Tokenizer
    if let subwords = entry.subwords {
        let specials = SpecialIds(
            pad: subwords.pad, bos: subwords.bos, eos: subwords.eos, unk: subwords.unk ?? -1)
        tokenizer = try SubwordTokenizer(json: json, specials: specials)
    } else {
        tokenizer = try WordTokenizer(json: json)
        if entry.rules != tokenizer.rules.rawValue {
            throw PFLError(
                .data,
                "the manifest says version \(entry.rules) of the piece rules, the tokenizer's file version "
                    + "\(tokenizer.rules.rawValue)",
                mend: "export the bundle again")
        }
    }
    return try TextEncoder(tokenizer, length: entry.length, vocabulary: entry.vocabulary, slots: entry.slots)
}
