/// On every answer of an aggregator, errors among them: the version of the protocol that the answer is in.
///
/// Between a device and its aggregator there are proxies, sign-in pages of networks, and addresses with a mistake in them. All
/// of them answer with statuses and bodies of their own, and none may be taken for a word of the aggregator: a device would drop
/// an update because of a proxy's 404. So every answer of an aggregator carries this header, and only those do.
let protocolHeader = "PFL-Protocol"

/// What an answer is; the raw value is the word of `conformance/protocol.json`.
enum Answer: String, Sendable {
    case answer
    case problem
    case otherProtocol = "other-protocol"
    case changedOnTheWay = "changed-on-the-way"
    case redirect
    case tooLargeOnTheWay = "too-large-on-the-way"
    case proxyRefuses = "proxy-refuses"
    case busyOnTheWay = "busy-on-the-way"
    case notTheAggregator = "not-the-aggregator"
}

/// What a device does with an answer.
enum Then: String, Sendable {
    /// Use its body.
    case use
    /// Decide by the code of the problem.
    case decideByCode = "decide-by-code"
    /// Ask again after a pause.
    case retry
    /// The same request would not do better, and what waits to be sent stays in the queue.
    case end
}

struct Verdict: Sendable, Equatable {
    let answer: Answer
    let then: Then
}

/// What an answer is, by its status and headers alone.
///
/// - Parameter header: value of the header of a name in any case of letters, nil where there is none
func judge(_ status: Int, _ header: (String) -> String?) -> Verdict {
    guard let version = header(protocolHeader).map(trimmed) else { return ofAnother(status) }
    let encoding = header("Content-Encoding").map(trimmed) ?? "identity"
    if version != "\(protocolVersion)" { return Verdict(answer: .otherProtocol, then: .end) }
    if encoding.lowercased() != "identity" { return Verdict(answer: .changedOnTheWay, then: .end) }
    if (200..<300).contains(status) { return Verdict(answer: .answer, then: .use) }
    if status >= 400 {
        return Verdict(answer: .problem, then: PFLError.passing.contains(status) ? .retry : .decideByCode)
    }
    return Verdict(answer: .redirect, then: .end)
}

/// What an answer without the header is.
private func ofAnother(_ status: Int) -> Verdict {
    switch status {
    case 300..<400: Verdict(answer: .redirect, then: .end)
    case 413: Verdict(answer: .tooLargeOnTheWay, then: .end)
    case 407: Verdict(answer: .proxyRefuses, then: .end)
    // No such method, no such HTTP, and a network that wants a sign-in do not pass by themselves.
    case 501, 505, 511: Verdict(answer: .notTheAggregator, then: .end)
    case 408, 425, 429, 500...: Verdict(answer: .busyOnTheWay, then: .retry)
    default: Verdict(answer: .notTheAggregator, then: .end)
    }
}

/// Without white space at its ends.
func trimmed(_ text: String) -> String {
    let isSpace: (Character) -> Bool = \.isWhitespace
    guard let first = text.firstIndex(where: { !isSpace($0) }), let last = text.lastIndex(where: { !isSpace($0) })
    else {
        return ""
    }
    return String(text[first...last])
}
