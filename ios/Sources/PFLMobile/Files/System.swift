#if canImport(Darwin)
    import Darwin
#else
    import Glibc
#endif

/// A system call that failed.
struct SystemError: Error, CustomStringConvertible {
    let number: Int32
    let what: String

    /// The error of the last call.
    static func last(_ what: String) -> SystemError {
        SystemError(number: errno, what: what)
    }

    var description: String { String(cString: strerror(number)) }

    var isMissing: Bool { number == ENOENT }

    var isFull: Bool { number == ENOSPC || number == EDQUOT || number == EFBIG }
}

/// A file that the system has open; closed when nobody holds it.
final class OpenFile: Sendable {
    let descriptor: Int32

    private init(_ descriptor: Int32) {
        self.descriptor = descriptor
    }

    deinit {
        close(descriptor)
    }

    /// Opens a file.
    ///
    /// - Throws: `SystemError`
    static func open(_ path: String, _ flags: Int32, _ mode: mode_t = 0o600) throws -> OpenFile {
        while true {
            #if canImport(Darwin)
                let found = Darwin.open(path, flags | O_CLOEXEC, mode)
            #else
                let found = Glibc.open(path, flags | O_CLOEXEC, mode)
            #endif
            if found >= 0 { return OpenFile(found) }
            if errno != EINTR { throw SystemError.last(path) }
        }
    }

    /// What the system says of it.
    func status() throws -> stat {
        var found = stat()
        if fstat(descriptor, &found) != 0 { throw SystemError.last("fstat") }
        return found
    }

    /// Takes a lock that ends with the process; false where another has it, true too where the file system has no locks.
    func lock() -> Bool {
        while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
            if errno != EINTR { return errno != EWOULDBLOCK }
        }
        return true
    }
}

extension OpenFile {
    /// Takes the kind of lock that Java takes on Linux, which does not see the one of `lock`; false where another has it.
    func lockAsJava() -> Bool {
        #if os(Linux)
            let setLock: Int32 = 37  // F_OFD_SETLK
            var whole = flock()
            whole.l_type = Int16(F_WRLCK)
            whole.l_whence = Int16(SEEK_SET)
            while fcntl(descriptor, setLock, &whole) != 0 {
                if errno != EINTR { return errno != EAGAIN && errno != EACCES }
            }
        #endif
        return true
    }
}

/// What the system says of a path; nil where nothing is there.
///
/// - Throws: `SystemError`
func status(_ path: String, links: Bool = true) throws -> stat? {
    var found = stat()
    if (links ? stat(path, &found) : lstat(path, &found)) == 0 { return found }
    if errno == ENOENT || errno == ENOTDIR { return nil }
    throw SystemError.last(path)
}

extension stat {
    var isFile: Bool { st_mode & S_IFMT == S_IFREG }
    var isFolder: Bool { st_mode & S_IFMT == S_IFDIR }
    var isLink: Bool { st_mode & S_IFMT == S_IFLNK }
}

/// Names in a folder, without `.` and `..`, in order.
///
/// - Throws: `SystemError`
func namesIn(_ folder: String) throws -> [String] {
    guard let stream = opendir(folder) else { throw SystemError.last(folder) }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
            pointer.withMemoryRebound(to: CChar.self, capacity: MemoryLayout.size(ofValue: pointer.pointee)) {
                String(cString: $0)
            }
        }
        if name != "." && name != ".." { names.append(name) }
    }
    return names.sorted(by: nameOrder)
}
