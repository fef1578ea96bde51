import Foundation

/// A server of HTTP, or of what a test makes of it, on a port of this machine; one thread for each connection.
final class TinyServer: @unchecked Sendable {
    /// A request as it came.
    struct Request: Sendable {
        /// `GET /path`, without the version.
        let line: String
        /// By name in small letters.
        let headers: [String: String]
        let body: [UInt8]
    }

    /// What is sent back before the connection ends: pieces one after the other, until one is nil or the other side has gone.
    typealias Answering = @Sendable (Request) -> AnySequence<[UInt8]>

    let port: Int
    private let listening: Int32
    private let answering: Answering
    private let lock = NSLock()
    private var seen: [Request] = []
    private var closed = false

    /// - Parameter greeting: sent to everybody in place of an answer
    init(greeting: String? = nil, _ answering: @escaping Answering = { _ in AnySequence([]) }) throws {
        #if canImport(Darwin)
            listening = socket(AF_INET, SOCK_STREAM, 0)
        #else
            listening = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        #endif
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let listening = listening
        let bound = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listening, $0, size) == 0 && listen(listening, 16) == 0 && getsockname(listening, $0, &size) == 0
            }
        }
        guard bound else { throw CocoaError(.fileNoSuchFile) }
        port = Int(UInt16(bigEndian: address.sin_port))
        self.answering = answering
        Thread.detachNewThread { [weak self] in
            while true {
                let one = accept(listening, nil, nil)
                if one < 0 { return }
                Thread.detachNewThread { [weak self] in
                    self?.serve(one, greeting)
                    shutdown(one, Int32(SHUT_RDWR))
                    Foundation.close(one)
                }
            }
        }
    }

    deinit {
        close()
    }

    /// Takes no more connections.
    func close() {
        lock.withLock {
            if closed { return }
            closed = true
            shutdown(listening, Int32(SHUT_RDWR))
            Foundation.close(listening)
        }
    }

    var address: String { "http://127.0.0.1:\(port)" }

    var requests: [Request] { lock.withLock { seen } }

    private func serve(_ one: Int32, _ greeting: String?) {
        if let greeting {
            var first = [UInt8](repeating: 0, count: 1)
            _ = recv(one, &first, 1, 0)
            _ = write(one, Array(greeting.utf8))
            return
        }
        guard let request = read(one) else { return }
        lock.withLock { seen.append(request) }
        for piece in answering(request) where !write(one, piece) { return }
    }

    private func read(_ one: Int32) -> Request? {
        var data: [UInt8] = []
        let end = Array("\r\n\r\n".utf8)
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        func more() -> Bool {
            let count = recv(one, &buffer, buffer.count, 0)
            if count > 0 { data += buffer[..<count] }
            return count > 0
        }
        while !data.contains(end) {
            if !more() { return nil }
        }
        guard let range = Data(data).range(of: Data(end)) else { return nil }
        let lines = String(decoding: data[..<range.lowerBound], as: UTF8.self).components(separatedBy: "\r\n")
        var headers: [String: String] = [:]
        for line in lines.dropFirst() {
            guard let colon = line.firstIndex(of: ":") else { continue }
            let value = line[line.index(after: colon)...]
            headers[line[..<colon].lowercased()] = value.trimmingCharacters(in: .whitespaces)
        }
        let length = headers["content-length"].flatMap { Int($0) } ?? 0
        while data.count < range.upperBound + length {
            if !more() { return nil }
        }
        let line = lines[0].components(separatedBy: " ").prefix(2).joined(separator: " ")
        return Request(line: line, headers: headers, body: Array(data[range.upperBound...]))
    }

    private func write(_ one: Int32, _ bytes: [UInt8]) -> Bool {
        var done = 0
        while done < bytes.count {
            #if canImport(Darwin)
                let flags: Int32 = 0
            #else
                let flags = Int32(MSG_NOSIGNAL)
            #endif
            let sent = bytes.withUnsafeBytes {
                send(one, $0.baseAddress?.advanced(by: done), bytes.count - done, flags)
            }
            if sent <= 0 { return false }
            done += sent
        }
        return true
    }
}

extension FakeAnswer {
    /// As bytes of HTTP.
    var wire: AnySequence<[UInt8]> {
        var head = "HTTP/1.1 \(status) Said\r\n"
        for (name, value) in headers { head += "\(name): \(value)\r\n" }
        head += "Content-Length: \(body.count)\r\nConnection: close\r\n\r\n"
        return AnySequence([Array(head.utf8), Array(body.prefix(cutAfter ?? body.count))])
    }
}
