import Foundation

/// One request of a device.
public struct TransportRequest: Sendable {
    /// For instance `GET`.
    public let method: String
    /// Where it goes; nothing else may be asked in its place.
    public let url: URL
    /// By name.
    public let headers: [String: String]
    /// What is sent; nil for nothing.
    public let body: Data?
    /// Seconds for connecting, and between two pieces of an answer.
    public let timeoutS: Double

    /// A request.
    public init(method: String, url: URL, headers: [String: String], body: Data?, timeoutS: Double) {
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.timeoutS = timeoutS
    }
}

/// Status and headers of an answer.
public struct AnswerHead: Sendable {
    /// For instance 200.
    public let status: Int
    private let headers: [String: String]

    /// The head of an answer; names of headers may be in any case of letters.
    public init(status: Int, headers: [String: String]) {
        self.status = status
        self.headers = Dictionary(headers.map { ($0.key.lowercased(), $0.value) }) { "\($0), \($1)" }
    }

    /// The value of a header; nil where there is none.
    public func header(_ name: String) -> String? { headers[name.lowercased()] }
}

/// Who reads an answer, piece by piece as it comes; one call at a time. What a call throws ends the request, and is thrown by
/// `Transport.exchange`.
public protocol AnswerReader: AnyObject, Sendable {
    /// The answer has begun. Nothing of its body is read before.
    func began(_ head: AnswerHead) throws

    /// A piece of its body.
    func piece(_ bytes: Data) throws

    /// So many more bytes of the request's body went out.
    func sent(_ bytes: Int)
}

/// What carries a device's requests: `URLSessionTransport`, or one of the app that pins the operator's key.
///
/// Redirects must not be followed, as what a device sends is for the aggregator alone, and answers must not be kept.
public protocol Transport: Sendable {
    /// One request, and its answer to the end; no further try. A cancelled task ends it at once.
    ///
    /// - Throws: `TransportFault` where the connection failed; `CancellationError`; what `reader` throws
    func exchange(_ request: TransportRequest, _ reader: any AnswerReader) async throws
}

/// Why a request got no whole answer.
public struct TransportFault: Error, Sendable {
    /// What kind of failure it is: only some may pass.
    public enum Kind: Sendable {
        /// No connection, or it broke or timed out.
        case broken
        /// There is no address for the name.
        case noAddress
        /// Nobody listens there.
        case refused
        /// What answers speaks no HTTP.
        case noHTTP
        /// No TLS connection could be agreed on.
        case tls
        /// The certificate is not valid yet.
        case certificateNotYetValid
        /// It is no longer valid.
        case certificateExpired
        /// It is not accepted for another reason.
        case certificate
        /// The system lets the app speak no plain HTTP to this place.
        case plainForbidden
    }

    /// Its kind.
    public let kind: Kind
    /// In words.
    public let what: String

    /// A fault.
    public init(_ kind: Kind, _ what: String) {
        self.kind = kind
        self.what = what
    }
}
