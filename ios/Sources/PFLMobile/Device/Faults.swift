import Foundation

// What stands between a device and its aggregator, as errors that say which way out there is. Answers are judged by
// Protocol/Answers.swift; a connection that failed is judged by why: certificates, TLS and what speaks no HTTP end the try, all
// else may pass.

/// No more seconds does an answer that is not the aggregator's make a device wait.
private let mostToldS = 60.0
private let mostWords = 40
private let mostAddress = 200
private let signIn = "if this network has a sign-in page, sign in first"

/// The error of an answer that is neither the aggregator's answer nor its problem.
///
/// - Parameters:
///   - answer: of `judge`
///   - server: the address that was asked
///   - path: that was asked for
///   - sent: bytes of the request's body
func answerFault(_ answer: Answer, _ server: String, _ path: String, _ head: AnswerHead, sent: Int) -> PFLError {
    let what = described(head)
    switch answer {
    case .otherProtocol: return otherProtocol(server, trimmed(head.header(protocolHeader) ?? ""))
    case .changedOnTheWay:
        return PFLError(
            .protocol,
            "an answer of \(server) was compressed on the way (\(shown(head.header("Content-Encoding")))), which the device "
                + "does not ask for",
            mend: "switch compression off for the aggregator in what lies between")
    case .redirect: return redirected(server, path, head.status, head.header("Location") ?? "")
    case .tooLargeOnTheWay:
        return PFLError(
            .tooLargeOnTheWay,
            "something between this device and \(server) refuses a body of \(sent) bytes (\(what)); it is not the "
                + "aggregator, which would say so itself",
            mend: "let it pass bodies of \(sent) bytes (nginx: client_max_body_size), or take an address without it")
    case .proxyRefuses: return proxyRefuses(server, what)
    case .busyOnTheWay:
        return PFLError(
            .unreachable, "\(server) cannot be reached: something between answers in its place (\(what))",
            mend: "wait; if it stays so, ask the operator whether the aggregator behind it runs",
            retryAfterS: retryAfter(head.header("Retry-After")).map { min($0, mostToldS) })
    case .answer, .problem, .notTheAggregator:
        return PFLError(
            .notTheAggregator,
            "what answers at \(server) is not an aggregator of pfl-mobile (\(what), without the header \(protocolHeader))",
            mend:
                "check the server's address and port; \(signIn); an aggregator of an older version must be updated, and what "
                + "lies between must pass the header on")
    }
}

/// The error of a request that got no whole answer.
///
/// - Parameters:
///   - server: the address that was asked
///   - reached: whether the aggregator was heard from there before, so that it speaks what its address says
func connectionFault(_ fault: TransportFault, _ server: String, probe: any Probe, reached: Bool) async -> PFLError {
    func unreachable(_ what: String, _ mend: String = "check the address and the network") -> PFLError {
        PFLError(.unreachable, "\(server) cannot be reached: \(what)", mend: mend, cause: fault)
    }
    switch fault.kind {
    case .plainForbidden:
        return PFLError(
            .config, "this app may not speak plain HTTP to \(server)",
            mend: "use https://, or permit it in the app's Info.plist (NSAppTransportSecurity)", cause: fault)
    case .certificateNotYetValid, .certificateExpired, .certificate: return certificate(fault, server)
    case .noAddress:
        return unreachable(
            "there is no address for its name", "check the spelling of the address, and the network")
    case .refused: return unreachable(fault.what)
    case .tls, .noHTTP, .broken:
        if server.hasPrefix("http:") {
            if !reached, let plain = await plainFault(server, probe) { return plain }
            return fault.kind == .noHTTP ? noHTTP(server) : unreachable(fault.what)
        }
        return await tlsFault(fault, server, probe, reached: reached) ?? unreachable(fault.what)
    }
}

private func proxyRefuses(_ server: String, _ what: String) -> PFLError {
    PFLError(
        .notTheAggregator, "the proxy of this network refuses the way to \(server) (\(what))",
        mend: "give its user and password in the system's settings, or take another network")
}

/// What a port that gave no answer to plain HTTP speaks instead; nil where it may be HTTP after all. Asks it once more, for
/// nothing, and then for TLS.
func plainFault(_ server: String, _ probe: any Probe) async -> PFLError? {
    guard let url = URLComponents(string: server), let host = url.host else { return nil }
    let first = await probe.firstBytes(host, url.port ?? 80, of: plainQuestion(host))
    if isAlert(first) || first.isEmpty || first.starts(with: http) {
        guard isTLS(await probe.firstBytes(host, url.port ?? 80, of: tlsGreeting(host))) else { return nil }
        return PFLError(
            .tls, "\(server) is plain HTTP, and the port speaks TLS",
            mend: "give the address with https://: https://\(server.dropFirst("http://".count))")
    }
    return noHTTP(server)
}

/// Why no connection with TLS came about; nil where nobody knows, so that it may pass.
private func tlsFault(_ fault: TransportFault, _ server: String, _ probe: any Probe, reached: Bool) async -> PFLError? {
    guard !reached, let url = URLComponents(string: server), let host = url.host else { return nil }
    let first = await probe.firstBytes(host, url.port ?? 443, of: tlsGreeting(host))
    if first.isEmpty { return nil }
    if !isTLS(first) {
        return PFLError(
            .tls, "\(server) is HTTPS, and what answers there speaks no TLS",
            mend: "check the address and port; an aggregator without TLS has an address that begins with http://",
            cause: fault)
    }
    if fault.kind != .tls { return nil }
    return PFLError(
        .tls, "no TLS connection to \(server) could be agreed on (\(fault.what))",
        mend: "the server must offer TLS 1.2 or newer under this name, and ask for no certificate of the device",
        cause: fault)
}

private let http = Array("HTTP/".utf8)

private func isAlert(_ bytes: [UInt8]) -> Bool { bytes.starts(with: [0x15, 0x03]) }

/// Whether bytes are the beginning of a record of TLS: an alert, or a part of the greeting.
private func isTLS(_ bytes: [UInt8]) -> Bool { isAlert(bytes) || bytes.starts(with: [0x16, 0x03]) }

private func plainQuestion(_ host: String) -> [UInt8] {
    Array("HEAD / HTTP/1.1\r\nHost: \(host)\r\nConnection: close\r\n\r\n".utf8)
}

/// The greeting of a client of TLS 1.2 (RFC 5246, 7.4.1.2), which any server answers in TLS, if only with an alert. The connection
/// is closed after the first bytes of the answer.
private func tlsGreeting(_ host: String) -> [UInt8] {
    func sized(_ bytes: [UInt8], _ width: Int) -> [UInt8] {
        (0..<width).reversed().map { UInt8(bytes.count >> (8 * $0) & 0xff) } + bytes
    }
    func list(_ codes: [UInt16]) -> [UInt8] { sized(codes.flatMap { [UInt8($0 >> 8), UInt8($0 & 0xff)] }, 2) }
    func named(_ type: UInt8, _ content: [UInt8]) -> [UInt8] { [0, type] + sized(content, 2) }
    let name: [UInt8] = [0] + sized(Array(host.utf8), 2)
    var extensions = named(0, sized(name, 2))
    extensions += named(10, list([0x001d, 0x0017]))  // curves
    extensions += named(11, sized([0], 1))  // their points
    extensions += named(13, list([0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501]))  // signatures
    var generator = SystemRandomNumberGenerator()
    var hello: [UInt8] = [3, 3]
    hello += (0..<32).map { _ in UInt8.random(in: 0...255, using: &generator) }
    hello += [0]  // no session
    hello += list([0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0x009c, 0x002f])  // ciphers
    hello += [1, 0]  // no compression
    hello += sized(extensions, 2)
    let greeting: [UInt8] = [1] + sized(hello, 3)
    return [0x16, 3, 1] + sized(greeting, 2)
}

private func noHTTP(_ server: String) -> PFLError {
    PFLError(
        .notTheAggregator, "what answers at \(server) speaks no HTTP, so it is not an aggregator",
        mend: "check the server's address and port")
}

private func shown(_ text: String?) -> String {
    let seen = trimmed(text ?? "").unicodeScalars.prefix(mostWords).filter { $0.value >= 0x20 && $0.value < 0x7f }
    return "'\(String(String.UnicodeScalarView(seen)))'"
}

/// The answer in a few words, of which strangers choose no more than 40 characters each.
private func described(_ head: AnswerHead) -> String {
    let kind = trimmed(String((head.header("Content-Type") ?? "").prefix { $0 != ";" }))
    let program = trimmed(head.header("Server") ?? "")
    var said = ["status \(head.status)"]
    if !kind.isEmpty { said.append(shown(kind)) }
    if !program.isEmpty { said.append("of \(shown(program))") }
    return said.joined(separator: ", ")
}

private func otherProtocol(_ server: String, _ theirs: String) -> PFLError {
    let newer = (Int(theirs) ?? 0) > protocolVersion
    return PFLError(
        .otherProtocol,
        "\(server) speaks version \(shown(String(theirs.prefix(20)))) of the protocol, this device version \(protocolVersion)",
        mend: newer ? "update the app on the device" : "update the aggregator")
}

private func redirected(_ server: String, _ path: String, _ status: Int, _ location: String) -> PFLError {
    let to =
        URL(string: trimmed(location), relativeTo: URL(string: server + path))?.absoluteString ?? location
    let base = to.hasSuffix(path) ? String(to.dropLast(path.count)) : ""
    return PFLError(
        .redirected,
        "\(server) sends its visitors to '\(to.prefix(mostAddress))' (status \(status)); the device did not follow, as what it "
            + "sends is for the aggregator alone",
        mend: !base.isEmpty && base != server
            ? "if you trust it, give that address: \(base.prefix(mostAddress))"
            : "check the server's address; \(signIn)")
}

private func certificate(_ fault: TransportFault, _ server: String) -> PFLError {
    let mend =
        switch fault.kind {
        case .certificateNotYetValid: "check this device's clock; else the operator's certificate is not valid yet"
        case .certificateExpired: "the operator must renew it; check this device's clock too"
        default:
            "give the address with the name that is in the certificate; if it is the operator's own, give a transport that "
                + "trusts who signed it; \(signIn)"
        }
    return PFLError(
        .certificate, "the certificate of \(server) is not accepted: \(fault.what)", mend: mend, cause: fault)
}
