/// Which names a file in a bundle may have, and the names of the files every bundle has.
enum Paths {
    static let manifest = "manifest.json"
    static let signature = "manifest.json.sig"

    /// Gives a path back when it is a safe relative path inside a bundle: relative, `/` between at most 8 parts, each part of
    /// 1 to 100 plain ASCII letters, digits and `_ . + -`, beginning with none of `. + -` and not ending with `.`: the same
    /// file on every system, and nothing that leads out of the folder or hides in it.
    ///
    /// - Throws: `.unsafePath`: it is absolute, climbs with `..`, has a backslash, or a character that some system treats
    ///   specially
    @discardableResult
    static func check(_ path: String) throws -> String {
        let parts = Array(path.utf8).split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false)
        if parts.count > 8 || !parts.allSatisfy(isSafe) {
            throw PFLError(
                .unsafePath, "unsafe path '\(path.prefix(200))' in a bundle",
                mend: "use a relative path of ASCII letters, digits and _ . + - with / between the parts; "
                    + "if you did not make this bundle, do not use it")
        }
        return path
    }

    private static func isSafe(_ part: ArraySlice<UInt8>) -> Bool {
        guard let first = part.first, let last = part.last, part.count <= 100 else { return false }
        guard isWord(first), last != UInt8(ascii: ".") else { return false }
        return part.allSatisfy { isWord($0) || [0x2e, 0x2b, 0x2d].contains($0) } && !isDevice(part)
    }

    private static func isWord(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "a")...UInt8(ascii: "z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"):
            true
        default: false
        }
    }

    /// Windows opens a device, not a file, under these names, whatever follows the first dot.
    private static func isDevice(_ part: ArraySlice<UInt8>) -> Bool {
        let stem = String(decoding: part.prefix { $0 != UInt8(ascii: ".") }, as: UTF8.self).lowercased()
        if ["con", "prn", "aux", "nul"].contains(stem) { return true }
        return stem.count == 4 && (stem.hasPrefix("com") || stem.hasPrefix("lpt")) && stem.last?.isNumber == true
    }

    /// Refuses paths that are one file on a system that ignores case, or a file and a folder at once.
    ///
    /// - Throws: `.unsafePath`, naming both
    static func checkDistinct(_ paths: [String]) throws {
        var seen: [String: String] = [:]
        var folders: [String: String] = [:]
        for path in paths {
            let key = path.lowercased()
            if let other = seen.updateValue(path, forKey: key) {
                throw PFLError(
                    .unsafePath, "'\(path)' and '\(other)' are the same file on a phone", mend: "rename one of the two")
            }
            for end in key.indices where key[end] == "/" {
                let folder = String(key[..<end])
                if folders[folder] == nil { folders[folder] = path }
            }
        }
        for (key, path) in seen {
            if let other = folders[key] {
                throw PFLError(
                    .unsafePath, "'\(path)' is a file, and '\(other)' needs a folder of that name",
                    mend: "rename one of the two")
            }
        }
    }
}
