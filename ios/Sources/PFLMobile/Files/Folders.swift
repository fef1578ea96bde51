import Foundation

/// Has a folder that nobody but its owner may enter; folders above it that are missing are made so too. One that is there and
/// too open is closed to others where it is surely ours: it is empty, or holds a name that only we write.
///
/// - Throws: `.unwritable`: it cannot be made, or is no folder
func privateFolder(_ path: String, ours: (String) -> Bool) throws {
    try diskErrors(path) {
        try makeFolders(path)
        guard let found = try status(path), found.isFolder else { throw SystemError(number: ENOTDIR, what: path) }
        guard found.st_mode & 0o077 != 0 else { return }
        let names = try namesIn(path)
        if names.isEmpty || names.contains(where: ours), chmod(path, found.st_mode & 0o700) != 0 {
            throw SystemError.last(path)
        }
    }
}

private func makeFolders(_ path: String) throws {
    if try status(path) != nil { return }
    let above = folder(of: path)
    if above != path { try makeFolders(above) }
    if mkdir(path, 0o700) != 0, errno != EEXIST { throw SystemError.last(path) }
}

/// A lock on a folder, which ends with it or with the process. It keeps out other holders in this process too.
final class FolderLock: Sendable {
    /// The file in a folder that Kotlin locks, as Java locks no folders; it is made and stays.
    static let name = ".lock"

    private let files: [OpenFile]

    private init(_ files: [OpenFile]) {
        self.files = files
    }

    /// The lock of a folder as Python takes it, and as Kotlin does; nil where another had one of them all the time.
    ///
    /// - Parameter seconds: to wait for another who has it
    /// - Throws: `SystemError`: the folder cannot be opened
    static func take(_ folder: String, seconds: Double) throws -> FolderLock? {
        let until = ContinuousClock.now.advanced(by: .seconds(seconds))
        let opened = try OpenFile.open(folder, O_RDONLY)
        let file: OpenFile?
        do {
            file = try OpenFile.open("\(folder)/\(name)", O_RDWR | O_CREAT, 0o600)
        } catch let error as SystemError where error.isFull {
            file = nil  // Kotlin was never here, and a full disk keeps nobody from erasing
        }
        while !opened.lock() || file?.lockAsJava() == false {
            if ContinuousClock.now >= until { return nil }
            usleep(20_000)
        }
        return FolderLock([opened] + (file.map { [$0] } ?? []))
    }

    /// The lock of a file, which is made and stays; nil where another has it, be it of Python or of Kotlin.
    ///
    /// - Throws: `SystemError`: the file cannot be made
    static func take(file path: String) throws -> FolderLock? {
        let file = try OpenFile.open(path, O_RDWR | O_CREAT, 0o600)
        return file.lock() && file.lockAsJava() ? FolderLock([file]) : nil
    }
}
