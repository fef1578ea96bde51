import Foundation

/// An open regular file.
///
/// - Throws: `SystemError`: it is not there, or the system refuses; `Malformed`: it is no regular file
func openRegular(_ path: String, links: Bool = true) throws -> OpenFile {
    // Opening a pipe would wait for ever without O_NONBLOCK.
    let file = try OpenFile.open(path, O_RDONLY | O_NONBLOCK | (links ? 0 : O_NOFOLLOW))
    guard try file.status().isFile else { throw Malformed("it is not a regular file") }
    return file
}

/// The content of a regular file, mapped into memory: what is not looked at is not read, and no copy is made. The file must
/// not be changed in place meanwhile; replacing and removing it does no harm.
///
/// - Throws: as `openRegular`; `Malformed`: it is larger than `most` bytes
func map(_ path: String, most: Int = .max) throws -> Data {
    let file = try MappedFile(path, most: most)
    guard let start = file.bytes.baseAddress else { return Data() }
    return Data(
        bytesNoCopy: UnsafeMutableRawPointer(mutating: start), count: file.bytes.count,
        deallocator: .custom { _, _ in withExtendedLifetime(file) {} })
}

/// The content of a regular file, as `map`; its bytes stay where they are as long as it lives.
final class MappedFile: @unchecked Sendable {
    let bytes: UnsafeRawBufferPointer

    /// Maps a file.
    ///
    /// - Throws: as `map`
    init(_ path: String, most: Int = .max) throws {
        let file = try openRegular(path)
        let size = Int(try file.status().st_size)
        if size > most { throw Malformed("it has more than \(most) bytes") }
        if size == 0 {
            bytes = UnsafeRawBufferPointer(start: nil, count: 0)
            return
        }
        let start = mmap(nil, size, PROT_READ, MAP_PRIVATE, file.descriptor, 0)
        guard let start, start != MAP_FAILED else { throw SystemError.last(path) }
        bytes = UnsafeRawBufferPointer(start: start, count: size)
    }

    deinit {
        if let start = bytes.baseAddress { munmap(UnsafeMutableRawPointer(mutating: start), bytes.count) }
    }
}

/// The content of a regular file.
///
/// - Throws: as `map`
func readBytes(_ path: String, most: Int = JSONLimits.bytes) throws -> [UInt8] {
    let file = try openRegular(path)
    let size = Int(try file.status().st_size)
    if size > most { throw Malformed("it has more than \(most) bytes") }
    var bytes = [UInt8](repeating: 0, count: size)
    var have = 0
    while have < size {
        let got = bytes.withUnsafeMutableBytes {
            read(file.descriptor, $0.baseAddress?.advanced(by: have), size - have)
        }
        if got < 0 && errno == EINTR { continue }
        if got < 0 { throw SystemError.last(path) }
        if got == 0 { break }
        have += got
    }
    return Array(bytes.prefix(have))
}
