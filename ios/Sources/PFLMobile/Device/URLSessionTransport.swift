import Foundation

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// Requests through the system's `URLSession`: no cookies, no cache, no redirects, certificates as the system accepts them.
public final class URLSessionTransport: Transport {
    private let session: URLSession
    private let exchanges = Exchanges()

    /// A transport of its own session.
    ///
    /// - Parameter configuration: for instance one with a proxy or, on Apple's systems, a multipath service; cookies, cache and
    ///   credentials are switched off in it
    public init(_ configuration: URLSessionConfiguration = .ephemeral) {
        configuration.httpCookieStorage = nil
        configuration.httpShouldSetCookies = false
        configuration.urlCache = nil
        configuration.urlCredentialStorage = nil
        configuration.requestCachePolicy = .reloadIgnoringLocalCacheData
        let queue = OperationQueue()
        queue.maxConcurrentOperationCount = 1
        session = URLSession(configuration: configuration, delegate: exchanges, delegateQueue: queue)
    }

    deinit {
        session.finishTasksAndInvalidate()
    }

    /// One request, and its answer to the end.
    public func exchange(_ request: TransportRequest, _ reader: any AnswerReader) async throws {
        try Task.checkCancellation()
        var asked = URLRequest(url: request.url, timeoutInterval: request.timeoutS)
        asked.httpMethod = request.method
        asked.httpShouldHandleCookies = false
        for (name, value) in request.headers { asked.setValue(value, forHTTPHeaderField: name) }
        let task =
            request.body.map { session.uploadTask(with: asked, from: $0) } ?? session.dataTask(with: asked)
        do {
            try await withTaskCancellationHandler {
                try await withCheckedThrowingContinuation { (done: CheckedContinuation<Void, any Error>) in
                    exchanges.begin(task.taskIdentifier, reader, done)
                    task.resume()
                    if Task.isCancelled { task.cancel() }
                }
            } onCancel: {
                task.cancel()
            }
        } catch {
            try Task.checkCancellation()
            throw error
        }
    }
}

/// The exchanges of a session that are under way.
private final class Exchanges: NSObject, URLSessionDataDelegate, @unchecked Sendable {
    private struct Exchange {
        let reader: any AnswerReader
        let done: CheckedContinuation<Void, any Error>
        var error: (any Error)?
    }

    private let lock = NSLock()
    private var exchanges: [Int: Exchange] = [:]

    func begin(_ task: Int, _ reader: any AnswerReader, _ done: CheckedContinuation<Void, any Error>) {
        lock.withLock { exchanges[task] = Exchange(reader: reader, done: done) }
    }

    /// The reader of a task, unless it threw already.
    private func reader(_ task: URLSessionTask) -> (any AnswerReader)? {
        lock.withLock { exchanges[task.taskIdentifier].flatMap { $0.error == nil ? $0.reader : nil } }
    }

    /// Lets a reader read; what it throws ends the task. False where it has ended.
    private func read(_ task: URLSessionTask, _ body: (any AnswerReader) throws -> Void) -> Bool {
        guard let reader = reader(task) else { return false }
        do {
            try body(reader)
            return true
        } catch {
            lock.withLock { exchanges[task.taskIdentifier]?.error = error }
            task.cancel()
            return false
        }
    }

    func urlSession(
        _ session: URLSession, dataTask: URLSessionDataTask, didReceive response: URLResponse,
        completionHandler: @escaping (URLSession.ResponseDisposition) -> Void
    ) {
        let goOn = read(dataTask) { reader in
            guard let response = response as? HTTPURLResponse else {
                throw TransportFault(.noHTTP, "the answer is not HTTP")
            }
            var headers: [String: String] = [:]
            for (name, value) in response.allHeaderFields { headers["\(name)"] = "\(value)" }
            try reader.began(AnswerHead(status: response.statusCode, headers: headers))
        }
        completionHandler(goOn ? .allow : .cancel)
    }

    func urlSession(_ session: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        _ = read(dataTask) { try $0.piece(data) }
    }

    func urlSession(
        _ session: URLSession, task: URLSessionTask, didSendBodyData bytesSent: Int64, totalBytesSent: Int64,
        totalBytesExpectedToSend: Int64
    ) {
        reader(task)?.sent(Int(bytesSent))
    }

    func urlSession(
        _ session: URLSession, task: URLSessionTask, willPerformHTTPRedirection response: HTTPURLResponse,
        newRequest request: URLRequest, completionHandler: @escaping (URLRequest?) -> Void
    ) {
        completionHandler(nil)
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: (any Error)?) {
        guard let ended = lock.withLock({ exchanges.removeValue(forKey: task.taskIdentifier) }) else { return }
        if let own = ended.error {
            ended.done.resume(throwing: own)
        } else if let error {
            ended.done.resume(throwing: fault(error))
        } else {
            ended.done.resume()
        }
    }
}

/// What kind of fault an error of `URLSession` is.
private func fault(_ error: any Error) -> TransportFault {
    let what = error.localizedDescription
    guard let code = (error as? URLError)?.code else { return TransportFault(.broken, what) }
    switch code {
    case .cannotFindHost, .dnsLookupFailed: return TransportFault(.noAddress, what)
    case .cannotConnectToHost: return TransportFault(.refused, what)
    case .badServerResponse, .cannotParseResponse: return TransportFault(.noHTTP, what)
    case .serverCertificateNotYetValid: return TransportFault(.certificateNotYetValid, what)
    case .serverCertificateHasBadDate: return TransportFault(.certificateExpired, what)
    case .serverCertificateUntrusted, .serverCertificateHasUnknownRoot: return TransportFault(.certificate, what)
    case .secureConnectionFailed, .clientCertificateRejected, .clientCertificateRequired:
        return TransportFault(.tls, what)
    case .appTransportSecurityRequiresSecureConnection: return TransportFault(.plainForbidden, what)
    default: return TransportFault(byWords(what) ?? .broken, what)
    }
}

/// The kind that libcurl's words name: off Apple's systems Foundation keeps them, and gives no code of its own for most of TLS.
private func byWords(_ what: String) -> TransportFault.Kind? {
    #if canImport(FoundationNetworking)
        if what.contains("certificate has expired") { return .certificateExpired }
        if what.contains("certificate is not yet valid") { return .certificateNotYetValid }
        let refused = [
            "SSL certificate problem", "certificate subject name", "server certificate verification failed",
            "signature failure",  // who signed it has the name of somebody known, and another key
        ]
        if refused.contains(where: what.contains) { return .certificate }
        if what.contains("SSL"), ["alert", "wrong version", "unsupported protocol"].contains(where: what.contains) {
            return .tls
        }
    #endif
    return nil
}
