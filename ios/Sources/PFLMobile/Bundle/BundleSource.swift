import Foundation

let obtainAgain = "obtain the bundle again, or export it again"
private let give = "give the folder of a bundle, or its .pflb file"

/// Where the files of a bundle come from.
protocol BundleSource {
    /// Calls `each` with path and length in bytes of each file there is; links and the like are refused on the way.
    func files(_ each: (String, Int) throws -> Void) throws

    /// Gives the content in pieces; stops after the piece that goes beyond `limit` bytes.
    func read(_ path: String, limit: Int, _ piece: (ArraySlice<UInt8>) throws -> Void) throws

    /// Whether there is such a file.
    func has(_ path: String) throws -> Bool
}

extension BundleSource {
    /// The whole content when it has at most `limit` bytes; nil when there is no such file.
    func small(_ path: String, limit: Int) throws -> [UInt8]? {
        guard try has(path) else { return nil }
        var out: [UInt8] = []
        try read(path, limit: limit) { out += $0 }
        if out.count > limit {
            throw PFLError(
                .notABundle, "\(path) has more than \(limit) bytes, which no bundle needs", mend: obtainAgain)
        }
        return out
    }
}

/// The folder or zip at a path.
///
/// - Throws: `.missingFile`: nothing is there; `.notABundle`: it is neither a folder nor a zip; `.truncatedFile`: it is the
///   beginning of a zip; `.unsafePath` or `.tamperedBundle`: the zip has entries that no bundle has; `.unreadableFile`: the
///   system refuses to read it
func bundleSource(_ path: String) throws -> any BundleSource {
    if let found = try? status(path), found.isFolder { return FolderSource(folder: path) }
    return try ZipSource(path)
}

/// Calls `step` and turns what the system says of a file into errors of bundles.
func bundleErrors<Result>(_ name: String, _ path: String, _ step: () throws -> Result) throws -> Result {
    do {
        return try step()
    } catch let error as SystemError where error.isMissing {
        throw PFLError(.missingFile, "\(name) is not there (\(path))", mend: obtainAgain, cause: error)
    } catch let error as SystemError where error.number == ELOOP {
        throw link(name)
    } catch let error as SystemError {
        throw PFLError(
            .unreadableFile, "cannot read \(name) (\(path)): \(error)",
            mend: "check the permissions of the file and its folder", cause: error)
    } catch let error as Malformed {
        throw PFLError(.unsafePath, "\(path): \(error)", mend: "replace it by a file", cause: error)
    }
}

/// A bundle that is a folder.
struct FolderSource: BundleSource {
    let folder: String

    private static let chunk = 1 << 16

    func files(_ each: (String, Int) throws -> Void) throws {
        try scan(folder, "", each)
    }

    func has(_ path: String) throws -> Bool {
        guard let found = try bundleErrors(path, folder, { try status("\(folder)/\(path)", links: false) }) else {
            return false
        }
        if found.isLink { throw link(path) }
        return true
    }

    func read(_ path: String, limit: Int, _ piece: (ArraySlice<UInt8>) throws -> Void) throws {
        let place = "\(folder)/\(path)"
        let file = try bundleErrors(path, place) { try openRegular(place, links: false) }
        var data = [UInt8](repeating: 0, count: FolderSource.chunk)
        var left = limit
        while left >= 0 {
            let count = data.withUnsafeMutableBytes { Foundation.read(file.descriptor, $0.baseAddress, $0.count) }
            if count < 0 && errno == EINTR { continue }
            if count < 0 { try bundleErrors(path, place) { throw SystemError.last(path) } }
            if count == 0 { return }
            left -= count
            try piece(data[..<count])
        }
    }

    private func scan(_ folder: String, _ prefix: String, _ each: (String, Int) throws -> Void) throws {
        for name in try bundleErrors("a folder", folder, { try namesIn(folder) }) {
            let path = prefix + name
            let place = "\(folder)/\(name)"
            guard let found = try bundleErrors(path, place, { try status(place, links: false) }) else { continue }
            if found.isLink { throw link(path) }
            if found.isFolder {
                try scan(place, "\(path)/", each)
            } else if found.isFile {
                try each(path, Int(found.st_size))
            } else {
                throw PFLError(.unsafePath, "\(path) in the bundle is not a regular file", mend: obtainAgain)
            }
        }
    }
}

/// A bundle that is a zip. Names, kinds and lengths of all entries are checked before any is read.
struct ZipSource: BundleSource {
    private let archive: ZipArchive
    private let path: String
    private let entries: [String: ZipItem]

    init(_ path: String) throws {
        self.path = path
        archive = try ZipSource.open(path)
        let files = archive.items.filter { !$0.isFolder }
        for item in files { try ZipSource.check(item) }
        var seen: Set<Exact> = []
        for item in archive.items {
            if item.isFolder { try Paths.check(String(item.name.dropLast())) }
            if !seen.insert(Exact(item.name)).inserted {
                throw PFLError(.tamperedBundle, "the zip has two files named '\(item.name)'", mend: obtainAgain)
            }
        }
        try Paths.checkDistinct(files.map(\.name))
        entries = Dictionary(files.map { ($0.name, $0) }) { first, _ in first }
    }

    func files(_ each: (String, Int) throws -> Void) throws {
        for item in archive.items where !item.isFolder { try each(item.name, item.size) }
    }

    func has(_ path: String) -> Bool { entries[path] != nil }

    func read(_ path: String, limit: Int, _ piece: (ArraySlice<UInt8>) throws -> Void) throws {
        guard let item = entries[path] else { throw PFLError(.missingFile, "\(path) is not there", mend: obtainAgain) }
        var left = limit
        do {
            try archive.read(item) { data in
                left -= data.count
                try piece(data)
                return left >= 0
            }
        } catch let error as Malformed {
            throw PFLError(.tamperedBundle, "\(path) is damaged in the zip: \(error)", mend: obtainAgain, cause: error)
        }
    }

    private static func check(_ item: ZipItem) throws {
        switch item.mode & 0xf000 {
        case 0xa000: throw link(item.name)
        case 0, 0x8000: break
        default: throw PFLError(.unsafePath, "'\(item.name)' in the zip is not a regular file", mend: obtainAgain)
        }
        try Paths.check(item.name)
        if item.flags & ZipArchive.encrypted != 0 || ![ZipArchive.stored, ZipArchive.deflated].contains(item.method) {
            throw PFLError(
                .notABundle, "\(item.name) in the zip is encrypted or packed in a way that bundles are not",
                mend: "pack it again with: pfl-export, or with plain zip (stored or deflate)")
        }
    }

    private static func open(_ path: String) throws -> ZipArchive {
        let file: OpenFile
        do {
            file = try openRegular(path)
        } catch let error as Malformed {
            throw PFLError(.notABundle, "\(path) is neither a folder nor a file", mend: give, cause: error)
        } catch let error as SystemError where error.isMissing {
            throw PFLError(.missingFile, "there is no bundle at \(path)", mend: "check the path", cause: error)
        } catch let error as SystemError {
            throw PFLError(
                .unreadableFile, "cannot read \(path): \(error)", mend: "check its permissions", cause: error)
        }
        do {
            return try ZipArchive(file)
        } catch let error as SystemError {
            throw PFLError(
                .unreadableFile, "cannot read \(path): \(error)", mend: "check its permissions", cause: error)
        } catch let error as Malformed {
            var start = [UInt8](repeating: 0, count: 4)
            let count = start.withUnsafeMutableBytes { pread(file.descriptor, $0.baseAddress, 4, 0) }
            if count == 4 && start == [0x50, 0x4b, 3, 4] {
                throw PFLError(
                    .truncatedFile, "\(path) is an incomplete or damaged zip: \(error)", mend: obtainAgain, cause: error
                )
            }
            throw PFLError(
                .notABundle, "\(path) \(count == 0 ? "is empty" : "is not a zip"), so it is not a bundle", mend: give,
                cause: error)
        }
    }
}

private func link(_ path: String) -> PFLError {
    PFLError(
        .unsafePath, "'\(path)' in the bundle is a symbolic link, which could lead anywhere",
        mend: "put the file itself in its place; if you did not make this bundle, do not use it")
}
