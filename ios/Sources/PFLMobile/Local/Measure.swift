/// Metrics of values on examples, as sum and weight by metric, so that those of several devices can be added. Recalls count
/// labels outside the vocabulary as misses. The loss leaves them out, so that it is of the same labels whatever words have a
/// slot.
///
/// - Parameters:
///   - tensors: every device tensor by name
///   - words: slot words that belong to the tensors
///   - known: the loss leaves out labels that are unknown with these slot words
/// - Throws: `.noExamples`: nothing in the examples counts; `.config`: texts without an encoder; `.tensorMismatch`: rows that
///   do not fit the programs
func metricSums(
    _ programs: Programs, _ tensors: TensorSet, _ examples: Examples, _ encoder: (any ExampleEncoder)?,
    _ words: [String],
    known: [String]
) throws -> [String: (sum: Double, weight: Double)] {
    let rows = try encoded(programs, examples, encoder, words)
    let all = try programs.sums(rows, tensors)
    var sums = all.totals.mapValues { (sum: $0, weight: all.weight) }
    guard case .texts = examples, let encoder, let loss = all.totals["loss"] else { return sums }
    let same = known.map(Exact.init) == words.map(Exact.init)
    let labels = (same ? rows : try encoded(programs, examples, encoder, known))["labels"]?.long
    var unknown = weights(rows)
    for (place, label) in (labels?.values ?? []).enumerated() where label != Int64(encoder.unknown) {
        unknown.values[place] = 0
    }
    let touched = counting(unknown)
    if touched.isEmpty { return sums }
    // The same sum without those labels, by measuring only the rows that have any.
    var masked = rows
    masked["weight"] = .float(unknown)
    let part = try programs.sums(take(masked, touched[...], touched.count), tensors)
    let rest = all.weight - part.weight
    sums["loss"] = rest > 0 ? (sum: loss - (part.totals["loss"] ?? 0), weight: rest) : nil
    return sums
}

/// Rows of the examples, checked; labels outside the vocabulary keep their weight.
private func encoded(
    _ programs: Programs, _ examples: Examples, _ encoder: (any ExampleEncoder)?, _ words: [String]
) throws -> Rows {
    let rows: Rows
    switch examples {
    case .arrays(let arrays): rows = arrays
    case .texts(let texts):
        guard let encoder else {
            throw PFLError(.config, "the bundle takes arrays, not texts", mend: "give arrays by name")
        }
        rows = try encoder.withWords(words).encode(texts, dropUnknown: false)
    }
    try programs.check(rows)
    return rows
}
