import Foundation

/// Exponential backoff with jitter, so that devices that failed together do not come back together.
public struct Backoff: Sendable {
    /// Tries without progress before giving up.
    public let attempts: Int
    /// Seconds before the second try; doubled before each further one.
    public let firstS: Double
    /// Longest wait that is chosen here.
    public let mostS: Double

    private static let mostDoublings = 60
    /// Longest wait that an answer can impose, in seconds.
    private static let mostToldS = 24 * 3600.0

    /// A backoff.
    public init(attempts: Int = 6, firstS: Double = 0.5, mostS: Double = 60) {
        self.attempts = attempts
        self.firstS = firstS
        self.mostS = mostS
    }

    /// Seconds to wait after a number of failures in a row. The wait doubles with each failure; a random factor between a half
    /// and one keeps devices apart. It is never shorter than the server asked for.
    ///
    /// - Parameters:
    ///   - failures: 1 or more
    ///   - toldS: `Retry-After` of the answer; nil where there is none
    ///   - draw: for the jitter, from 0 to 1
    func pause(_ failures: Int, toldS: Double?, draw: Double) -> Double {
        let doubled = firstS * pow(2, Double(min(failures - 1, Backoff.mostDoublings)))
        let own = min(mostS, doubled) * (0.5 + 0.5 * draw)
        return toldS.map { max(own, min($0, Backoff.mostToldS)) } ?? own
    }
}

/// Seconds that a `Retry-After` header asks for, given as seconds or as a date; nil when unreadable.
///
/// - Parameter now: seconds since 1970
func retryAfter(_ value: String?, now: Double = Date().timeIntervalSince1970) -> Double? {
    guard let told = value.map(trimmed), !told.isEmpty else { return nil }
    if told.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }) { return Double(told) }
    return httpDate(told).map { max($0 - now, 0) }
}

private let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
private let weekdays = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]

/// `Tue, 14 Nov 2023 22:13:27 GMT` in seconds since 1970; nil for other text. The locale of the device has no part in it.
private func httpDate(_ text: String) -> Double? {
    let parts = text.split(separator: " ", omittingEmptySubsequences: false).map(String.init)
    guard parts.count == 6, parts[0].hasSuffix(","), weekdays.contains(String(parts[0].dropLast())),
        let month = months.firstIndex(of: parts[2]), let day = number(parts[1], 1...2),
        let year = number(parts[3], 4...4)
    else { return nil }
    let clock = parts[4].split(separator: ":", omittingEmptySubsequences: false).map { number(String($0), 2...2) }
    guard clock.count == 3, let hour = clock[0], let minute = clock[1], let second = clock[2], hour < 24, minute < 60,
        second < 60, let zone = offset(parts[5])
    else { return nil }
    var calendar = Calendar(identifier: .gregorian)
    guard let utc = TimeZone(secondsFromGMT: 0) else { return nil }
    calendar.timeZone = utc
    let date = DateComponents(year: year, month: month + 1, day: day, hour: hour, minute: minute, second: second)
    guard let found = calendar.date(from: date), calendar.component(.day, from: found) == day else { return nil }
    return found.timeIntervalSince1970 - zone
}

private func number(_ text: String, _ digits: ClosedRange<Int>) -> Int? {
    guard digits.contains(text.utf8.count), text.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }) else { return nil }
    return Int(text)
}

/// Seconds of `GMT` or `+0100`.
private func offset(_ text: String) -> Double? {
    if text == "GMT" { return 0 }
    guard text.utf8.count == 5, let sign = text.first, sign == "+" || sign == "-",
        let digits = number(String(text.dropFirst()), 4...4)
    else { return nil }
    return Double((digits / 100 * 60 + digits % 100) * 60) * (sign == "-" ? -1 : 1)
}
