/// The table of code points that version 2 of the piece rules is stated over: `unicode.json`, the same file in every language,
/// so that no platform's Unicode version matters. `pfl_mobile/text/pieces.py` explains it.
struct UnicodeTable: Sendable {
    static let shared = UnicodeTable()

    private static let plane = 0x10000
    private static let symbol = UInt8(ascii: "S")

    private let kinds: Ranges
    private let kindOfRange: [UInt8]
    /// Kinds of the first plane, where nearly all text lies.
    private let firstPlane: [UInt8]
    /// First, last, step, and what is added, of each run of code points with a lower-case mapping.
    private let lowerRuns: [(first: UInt32, last: UInt32, step: UInt32, add: Int64)]

    /// The rules that the table belongs to.
    let rules: Int
    /// Code points of Unicode 8.0: every platform in use normalizes them alike.
    let assigned: Ranges
    /// Code points whose NFKC begins with a space and a mark.
    let accents: Ranges

    private init() {
        // It is compiled into the package; a test compares it with Python's.
        let table = (try? parseJSON(bytes: PackageResources.unicode_json))?.object ?? JSONObject()
        func numbers(_ json: JSON?) -> [Int] { json?.array?.compactMap(\.integer) ?? [] }
        rules = table["rules"]?.integer ?? 0
        var ranges: [(first: Int, last: Int, kind: UInt8)] = []
        for (kind, ends) in table["kinds"]?.object ?? JSONObject() {
            let ends = numbers(ends)
            for at in stride(from: 0, to: ends.count - 1, by: 2) {
                ranges.append((ends[at], ends[at + 1], kind.utf8.first ?? UnicodeTable.symbol))
            }
        }
        ranges.sort { $0.first < $1.first }
        kinds = Ranges(ranges.flatMap { [$0.first, $0.last] })
        kindOfRange = ranges.map(\.kind)
        var plane = [UInt8](repeating: UnicodeTable.symbol, count: UnicodeTable.plane)
        for range in ranges where range.first < UnicodeTable.plane {
            for point in range.first...min(range.last, UnicodeTable.plane - 1) { plane[point] = range.kind }
        }
        firstPlane = plane
        let runs = numbers(table["lower"])
        var lower: [(first: UInt32, last: UInt32, step: UInt32, add: Int64)] = []
        for at in stride(from: 0, to: runs.count - 3, by: 4) {
            lower.append((UInt32(runs[at]), UInt32(runs[at + 1]), UInt32(runs[at + 2]), Int64(runs[at + 3])))
        }
        lowerRuns = lower
        assigned = Ranges(numbers(table["assigned"]))
        accents = Ranges(numbers(table["accents"]))
    }

    /// The kind of a code point.
    func kind(_ point: UInt32) -> UInt8 {
        if point < UnicodeTable.plane { return firstPlane[Int(point)] }
        return kinds.index(of: point).map { kindOfRange[$0] } ?? UnicodeTable.symbol
    }

    /// What a code point is folded to: apostrophes of every kind to U+0027, else its simple lower-case mapping.
    func lower(_ point: UInt32) -> UInt32 {
        if kind(point) == UInt8(ascii: "a") { return 0x27 }
        var low = 0
        var high = lowerRuns.count
        while low < high {
            let middle = (low + high) / 2
            if lowerRuns[middle].first <= point { low = middle + 1 } else { high = middle }
        }
        guard low > 0 else { return point }
        let run = lowerRuns[low - 1]
        return point <= run.last && (point - run.first) % run.step == 0 ? UInt32(Int64(point) + run.add) : point
    }
}

/// A set of code points, from first, last, first, last, ... in order.
struct Ranges: Sendable {
    private let ends: [UInt32]

    init(_ ends: [Int]) {
        self.ends = ends.map { UInt32($0) }
    }

    /// Which range a code point lies in; nil for none.
    func index(of point: UInt32) -> Int? {
        var low = 0
        var high = ends.count / 2 - 1
        while low <= high {
            let middle = (low + high) / 2
            if point < ends[2 * middle] {
                high = middle - 1
            } else if point > ends[2 * middle + 1] {
                low = middle + 1
            } else {
                return middle
            }
        }
        return nil
    }

    func contains(_ point: UInt32) -> Bool { index(of: point) != nil }
}
