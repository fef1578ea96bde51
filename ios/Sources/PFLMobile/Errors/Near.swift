/// Words for a mend: the known names nearest to a name, or all when none is near.
func near(_ name: String, _ known: some Sequence<String>) -> String {
    // Comparing takes the product of the lengths: what is longer than a name is not looked at, nor more than a person gives.
    let names = Set(known.map(Exact.init)).map(\.text).filter { $0.unicodeScalars.count <= longest }.sorted(
        by: nameOrder)
    let given = Array(name.unicodeScalars.prefix(longest))
    let close =
        names.prefix(most)
        .map { ($0, distance(given, Array($0.unicodeScalars)), max($0.unicodeScalars.count, given.count)) }
        .filter { $0.1 <= $0.2 / 2 }
        .enumerated()
        .sorted { ($0.element.1, $0.offset) < ($1.element.1, $1.offset) }
        .prefix(3)
    if !close.isEmpty { return "did you mean \(close.map { "'\($0.element.0)'" }.joined(separator: " or "))?" }
    if names.isEmpty { return "none are known" }
    return "known: \(names.prefix(12).joined(separator: ", "))" + (names.count > 12 ? ", ..." : "")
}

/// Letters to insert, remove or replace (Levenshtein 1966).
private func distance(_ one: [Unicode.Scalar], _ other: [Unicode.Scalar]) -> Int {
    var row = Array(0...other.count)
    for (i, letter) in one.enumerated() {
        var next = [i + 1]
        for (j, against) in other.enumerated() {
            next.append(min(row[j] + (letter == against ? 0 : 1), row[j + 1] + 1, next[j] + 1))
        }
        row = next
    }
    return row[other.count]
}

private let longest = 200
private let most = 5000
