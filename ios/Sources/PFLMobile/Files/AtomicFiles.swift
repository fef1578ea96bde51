import Foundation

/// Writes files so that a crash leaves the old content or the new, never a mixture.
///
/// Everything new is written beside its destination under a hidden temporary name, flushed to the disk, and renamed in one
/// step. While it writes, a process holds a lock on its temporary; a temporary that nobody locks belongs to a process that
/// was killed, and the next write of the same destination removes it. Files are for their owner alone.
struct AtomicFiles: Sendable {
    let disk: any Disk

    init(_ disk: any Disk = RealDisk()) {
        self.disk = disk
    }

    /// Puts the bytes at a path; after a crash at any moment the file holds its old bytes or the new ones.
    ///
    /// - Throws: `.storageFull`: the disk is full, and the old file is kept; `.unwritable`: the folder is missing or may
    ///   not be written
    func write(_ path: String, _ data: [UInt8]) throws {
        try diskErrors(path) {
            try removeStale(path)
            let temporary = temporaryName(path)
            do {
                let file = try disk.create(temporary)
                _ = file.lock()
                try disk.write(file, data)
                try disk.sync(file)
                try disk.rename(temporary, path)
            } catch {
                try? disk.delete(temporary)
                throw error
            }
            try disk.syncFolder(folder(of: path))
        }
    }

    /// Removes a file, if there is one.
    func delete(_ path: String) throws {
        try diskErrors(path) { try disk.delete(path) }
    }

    /// Makes removed and new names in a folder outlive a loss of power.
    func syncFolder(_ folder: String) throws {
        try diskErrors(folder) { try disk.syncFolder(folder) }
    }

    /// Removes temporaries of a path, or of all files of its folder, whose writer was killed; those in use are left alone.
    func removeStale(_ path: String, ofAll: Bool = false) throws {
        let folder = folder(of: path)
        let prefix = prefix(path)
        for name in try namesIn(folder) where isTemporary(name, prefix: ofAll ? "." : prefix) {
            let temporary = "\(folder)/\(name)"
            guard let found = try? openRegular(temporary, links: false), found.lock() else { continue }
            try disk.delete(temporary)
        }
    }
}

/// The folder that a path lies in.
func folder(of path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
}

/// The last part of a path.
func name(of path: String) -> String {
    path.lastIndex(of: "/").map { String(path[path.index(after: $0)...]) } ?? path
}

private func prefix(_ path: String) -> String {
    ".\(name(of: path).prefix(180))."
}

private func temporaryName(_ path: String) -> String {
    var generator = SystemRandomNumberGenerator()
    let random = (0..<6).map { _ in UInt8.random(in: 0...255, using: &generator) }
    return "\(folder(of: path))/\(prefix(path))\(hex(random)).tmp"
}

private func isTemporary(_ name: String, prefix: String) -> Bool {
    guard name.hasPrefix(prefix), name.hasSuffix(".tmp") else { return false }
    let ending = Array(name.utf8.dropLast(4).suffix(12))
    let before = name.utf8.count - 16
    return before >= prefix.utf8.count && (prefix == "." || before == prefix.utf8.count)
        && ending.allSatisfy { "0123456789abcdef".utf8.contains($0) }
}

/// Turns a failed system call while writing a path into an error that names it and the mend.
func diskErrors<Result>(_ path: String, _ step: () throws -> Result) throws -> Result {
    do {
        return try step()
    } catch let error as SystemError {
        if error.isFull {
            throw PFLError(
                .storageFull, "no space left on the disk while writing \(path); nothing was changed",
                mend: "free some space, or choose a folder on another disk", cause: error)
        }
        throw PFLError(
            .unwritable, "cannot write \(path): \(error)",
            mend: "check that the folder exists and that you may write in it, or choose another", cause: error)
    }
}
