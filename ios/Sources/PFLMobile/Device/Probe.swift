import Foundation

/// Finds out what a port speaks, where it does not speak what its address says.
protocol Probe: Sendable {
    /// The first bytes that a port sends after it was sent something; none where it sends nothing in two seconds.
    func firstBytes(_ host: String, _ port: Int, of question: [UInt8]) async -> [UInt8]
}

/// The probe of the device: a socket.
struct SocketProbe: Probe {
    private static let seconds = 2

    func firstBytes(_ host: String, _ port: Int, of question: [UInt8]) async -> [UInt8] {
        await withCheckedContinuation { done in
            // It waits, so not on a thread of those that tasks share.
            Thread.detachNewThread { done.resume(returning: ask(host, port, question)) }
        }
    }

    private func ask(_ host: String, _ port: Int, _ question: [UInt8]) -> [UInt8] {
        var hints = addrinfo()
        #if canImport(Darwin)
            hints.ai_socktype = SOCK_STREAM
        #else
            hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        #endif
        var found: UnsafeMutablePointer<addrinfo>?
        guard getaddrinfo(host, "\(port)", &hints, &found) == 0, let address = found else { return [] }
        defer { freeaddrinfo(found) }
        let socket = socket(address.pointee.ai_family, address.pointee.ai_socktype, address.pointee.ai_protocol)
        guard socket >= 0 else { return [] }
        defer { close(socket) }
        var most = timeval(tv_sec: SocketProbe.seconds, tv_usec: 0)
        let size = socklen_t(MemoryLayout<timeval>.size)
        setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &most, size)
        setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &most, size)
        #if canImport(Darwin)
            let noSignal: Int32 = 0
            var on: Int32 = 1
            setsockopt(socket, SOL_SOCKET, SO_NOSIGPIPE, &on, socklen_t(MemoryLayout<Int32>.size))
        #else
            let noSignal = Int32(MSG_NOSIGNAL)
        #endif
        guard connect(socket, address.pointee.ai_addr, address.pointee.ai_addrlen) == 0,
            send(socket, question, question.count, noSignal) == question.count
        else { return [] }
        var first = [UInt8](repeating: 0, count: 5)
        let count = recv(socket, &first, first.count, 0)
        return Array(first.prefix(max(count, 0)))
    }
}
