import Foundation

/// The steps that change a disk. Tests end the process between any two of them, and fill the disk.
protocol Disk: Sendable {
    /// A new file that only its owner may read.
    func create(_ path: String) throws -> OpenFile

    /// Writes all of the bytes.
    func write(_ file: OpenFile, _ data: [UInt8]) throws

    /// Waits until what was written would outlive a loss of power.
    func sync(_ file: OpenFile) throws

    /// In one step; a file at the new name is replaced.
    func rename(_ from: String, _ to: String) throws

    /// Makes renames and new names inside a folder outlive a loss of power.
    func syncFolder(_ folder: String) throws

    /// Nothing where there is no such file.
    func delete(_ path: String) throws
}

/// The disk of the device.
struct RealDisk: Disk {
    func create(_ path: String) throws -> OpenFile {
        try OpenFile.open(path, O_WRONLY | O_CREAT | O_EXCL, 0o600)
    }

    func write(_ file: OpenFile, _ data: [UInt8]) throws {
        var done = 0
        while done < data.count {
            let wrote = data.withUnsafeBytes { start in
                Foundation.write(file.descriptor, start.baseAddress?.advanced(by: done), data.count - done)
            }
            if wrote < 0 && errno == EINTR { continue }
            if wrote < 0 { throw SystemError.last("write") }
            done += wrote
        }
    }

    func sync(_ file: OpenFile) throws {
        #if canImport(Darwin)
            // fsync leaves bytes in the drive's cache there.
            if fcntl(file.descriptor, F_FULLFSYNC) == 0 { return }
        #endif
        if fsync(file.descriptor) != 0 { throw SystemError.last("fsync") }
    }

    func rename(_ from: String, _ to: String) throws {
        if Foundation.rename(from, to) != 0 { throw SystemError.last(to) }
    }

    func syncFolder(_ folder: String) throws {
        let file = try OpenFile.open(folder, O_RDONLY)
        // File systems without it.
        if fsync(file.descriptor) != 0, ![EINVAL, ENOTSUP, EBADF].contains(errno) { throw SystemError.last(folder) }
    }

    func delete(_ path: String) throws {
        if unlink(path) != 0, errno != ENOENT { throw SystemError.last(path) }
    }
}
