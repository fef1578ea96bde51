/// Versions of runtimes: numbers with points between; what builds put behind them (`1.5.1+cpu`) does not count.
enum Versions {
    /// The numbers of a version as bundles write them; nil where it does not begin with any.
    static func plain(_ version: String) -> String? {
        let text = Array(version.utf8)
        var end: Int?
        var at = 0
        for _ in 0..<4 {
            let start = at
            while at < text.count, isDigit(text[at]) { at += 1 }
            // A number of more digits is no number of a version; what is before it is one.
            if !(1...6).contains(at - start) { break }
            end = at
            guard at < text.count, text[at] == UInt8(ascii: ".") else { break }
            at += 1
        }
        return end.map { String(decoding: text[..<$0], as: UTF8.self) }
    }

    /// Whether a bundle may write it.
    static func isPlain(_ version: String) -> Bool {
        plain(version).map { Exact($0) == Exact(version) } ?? false
    }

    /// Whether a runtime is older than a version; numbers that are missing are 0.
    ///
    /// A runtime whose version does not begin with numbers was built by somebody who knows what it is: it is not older.
    static func isOlder(_ version: String, than other: String) -> Bool {
        guard let one = numbers(version), let two = numbers(other) else { return false }
        return one.lexicographicallyPrecedes(two)
    }

    private static func numbers(_ version: String) -> [Int]? {
        guard let found = plain(version)?.split(separator: ".").compactMap({ Int($0) }) else { return nil }
        return found + [Int](repeating: 0, count: 4 - found.count)
    }

    private static func isDigit(_ byte: UInt8) -> Bool { byte >= UInt8(ascii: "0") && byte <= UInt8(ascii: "9") }
}
