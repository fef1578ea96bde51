import Foundation

/// An open, verified bundle (`Bundle` is the name of something else on this platform): nothing of it is used before all of it
/// is checked. A zip is unpacked into a folder of its own, which is removed when nobody holds the bundle any more.
public final class ModelBundle: Sendable {
    /// Told while files of a bundle are read: the file, how many bytes are done, and of how many. What it throws ends the
    /// reading.
    public typealias ReadProgress = (_ file: String, _ done: Int, _ total: Int) throws -> Void

    /// Where its files lie.
    public let folder: URL
    /// What is in it.
    public let manifest: Manifest
    /// Public key of the signature in hex, or nil when it is not signed.
    public let signedBy: String?
    /// Whether the signature was checked against a key that the opener gave: someone whom the opener knows vouches for every
    /// byte.
    public let pinned: Bool
    /// sha256 of `manifest.json` in hex, which has the digests of all files: it stands for the whole bundle.
    public let digest: String
    private let unpacked: Bool

    // No manifest is as large as this: it bounds what is read before a signature is checked.
    private static let maxManifestBytes = 32 << 20

    /// Bytes of a bundle's files together, unless the caller allows more.
    public static let maxBytes = 4 << 30

    private init(
        _ folder: String, _ manifest: Manifest, signedBy: String?, pinned: Bool, digest: String, unpacked: Bool
    ) {
        self.folder = URL(fileURLWithPath: folder)
        self.manifest = manifest
        self.signedBy = signedBy
        self.pinned = pinned
        self.digest = digest
        self.unpacked = unpacked
    }

    deinit {
        // What cannot be removed stays until the system clears its temporary files.
        if unpacked { try? FileManager.default.removeItem(at: folder) }
    }

    /// Checks every file of a bundle and opens it.
    ///
    /// - Parameters:
    ///   - url: its folder or its `.pflb` zip; a zip is unpacked into a folder of its own
    ///   - publicKey: the pinned key; with one, only a bundle signed by it is opened
    ///   - requireSignature: refuse an unsigned bundle also when no key is pinned
    ///   - cacheFolder: where to unpack a zip; the system's temporary folder by default
    ///   - maxBytes: refuse a bundle with more bytes, before any is unpacked
    ///   - progress: told while files are read
    /// - Throws: `.missingFile`: the bundle, its manifest, or a file that the manifest lists is not there; `.notABundle`: the
    ///   path is neither a folder nor a zip, or the zip is of an unknown kind; `.signature`: unsigned, signed by another key,
    ///   or changed since; `.schemaVersion`: made by a newer version of pfl-mobile; `.invalidManifest`: the manifest breaks its
    ///   schema; `.truncatedFile`: a file has another length than the manifest says; `.tamperedBundle`: a file has other bytes
    ///   than the manifest says, or is not listed there; `.unsafePath`: a path, link or special file would lead out of the
    ///   bundle; `.bundleTooLarge`: more than `maxBytes`; `.unreadableFile`: the system refuses to read a file;
    ///   `.storageFull`: no room to unpack the zip
    public static func open(
        _ url: URL, publicKey: VerificationKey? = nil, requireSignature: Bool = false, cacheFolder: URL? = nil,
        maxBytes: Int = ModelBundle.maxBytes, progress: ReadProgress? = nil
    ) throws -> ModelBundle {
        let place = url.path
        let source = try bundleSource(place)
        guard let data = try source.small(Paths.manifest, limit: maxManifestBytes) else {
            throw noManifest(place, source)
        }
        // First the signature, so that as little as possible is done with bytes of unknown origin.
        let signature = try source.small(Paths.signature, limit: Signatures.maxBytes)
        let check = signature != nil || publicKey != nil || requireSignature
        let signedBy = check ? try Signatures.verify(data, signature: signature, pinned: publicKey) : nil
        let manifest = try ManifestReader.parse(data)
        try checkPresence(source, manifest, maxBytes)
        var folder = place
        let unpack = source is ZipSource
        if unpack {
            folder = try self.unpack(source, place, manifest, data, signature, cacheFolder?.path, progress)
        } else {
            try checkFiles(source, manifest, nil, progress)
        }
        return ModelBundle(
            folder, manifest, signedBy: signedBy, pinned: publicKey != nil, digest: Sha256.hex(data), unpacked: unpack)
    }

    /// Where a file of the manifest lies.
    ///
    /// - Throws: `.missingFile`: the manifest has no such file
    public func path(_ name: String) throws -> String {
        guard manifest.files[name] != nil else {
            throw PFLError(
                .missingFile, "bundle '\(manifest.name)' has no file '\(name)'", mend: near(name, manifest.files.keys))
        }
        return "\(folder.path)/\(name)"
    }

    /// The bytes of a file, checked again: these very bytes have the digest of the manifest. They are mapped, so what is not
    /// looked at again is not in memory.
    ///
    /// - Throws: `.missingFile`, `.truncatedFile`, `.tamperedBundle` or `.unreadableFile`, as `open`
    public func read(_ name: String) throws -> Data {
        let file = try path(name)
        guard let expected = manifest.files[name] else {
            throw PFLError(.missingFile, "\(name) is not there", mend: obtainAgain)
        }
        let length = try bundleErrors(name, file) { Int(try openRegular(file, links: false).status().st_size) }
        if length != expected.bytes { throw ModelBundle.otherLength(name, expected.bytes, length) }
        let data = try bundleErrors(name, file) { try map(file) }
        var sha = Sha256()
        data.withUnsafeBytes { sha.add($0) }
        if hex(sha.bytes) != expected.sha256 { throw ModelBundle.otherBytes(name) }
        return data
    }

    /// Initial values of all device tensors, by name.
    ///
    /// - Throws: `.tensorFile`: the file is damaged; `.tensorMismatch`: it does not hold what the manifest says; or as `read`
    public func values() throws -> TensorSet {
        let tensors = try Safetensors.read(try read(manifest.values), manifest.values).tensors
        try Content.checkValues(manifest, tensors)
        return tensors
    }

    /// For each program with a golden call: its complete inputs, and the outputs that PyTorch gave.
    ///
    /// - Throws: `.tensorFile`: the file is damaged; `.tensorMismatch`: it does not fit the programs; or as `read`
    public func golden() throws -> [String: GoldenCase] {
        let tensors = try Safetensors.read(try read(manifest.golden), manifest.golden).tensors
        return try Content.goldenCases(manifest, tensors, try values())
    }

    /// The text of the plan.
    ///
    /// - Throws: `.invalidManifest` where it is not UTF-8; or as `read`
    public func planJSON() throws -> String {
        do {
            return try utf8(try read(manifest.plan))
        } catch let error as Malformed {
            throw PFLError(.invalidManifest, "\(manifest.plan) is not UTF-8 text", mend: obtainAgain, cause: error)
        }
    }

    /// The bytes of the tokenizer, or nil for a model that has none.
    ///
    /// - Throws: as `read`
    public func tokenizer() throws -> Data? {
        try manifest.tokenizer.map(read)
    }

    /// The files of an engine by purpose.
    ///
    /// - Throws: `.engineUnavailable`: there are none
    public func engineFiles(_ engine: String) throws -> [String: String] {
        try manifest.engine(engine).files.mapValues(path)
    }

    private static func noManifest(_ path: String, _ source: any BundleSource) -> PFLError {
        var inner: String?
        try? source.files { file, _ in
            if inner == nil, file.hasSuffix("/\(Paths.manifest)") {
                inner = String(file.dropLast(Paths.manifest.count + 1))
            }
        }
        return PFLError(
            .missingFile, "\(path) has no \(Paths.manifest), so it is not a bundle",
            mend: inner.map { "the bundle may be in its folder '\($0)'" }
                ?? "give the folder of a bundle, or its .pflb zip")
    }

    /// Names and lengths, before any large file is read.
    private static func checkPresence(_ source: any BundleSource, _ manifest: Manifest, _ maxBytes: Int) throws {
        let total = manifest.measured.totalBytes
        if total > maxBytes {
            throw PFLError(
                .bundleTooLarge, "the bundle has \(total) bytes, more than the \(maxBytes) allowed",
                mend: "raise maxBytes if you trust where the bundle came from")
        }
        var sizes: [String: Int] = [:]
        try source.files { path, size in
            if manifest.files[path] != nil {
                sizes[path] = size
            } else if path != Paths.manifest && path != Paths.signature {
                throw PFLError(
                    .tamperedBundle, "'\(path)' is in the bundle, but its manifest does not list it",
                    mend: "remove it, or \(obtainAgain)")
            }
        }
        for path in manifest.filePaths {
            guard let size = sizes[path] else {
                throw PFLError(
                    .missingFile, "\(path), which the manifest lists, is not in the bundle", mend: obtainAgain)
            }
            if let expected = manifest.files[path], size != expected.bytes {
                throw otherLength(path, expected.bytes, size)
            }
        }
    }

    /// Reads every file once, and puts it into a folder on the way.
    private static func checkFiles(
        _ source: any BundleSource, _ manifest: Manifest, _ target: String?, _ progress: ReadProgress?
    ) throws {
        var done = 0
        for path in manifest.filePaths {
            guard let expected = manifest.files[path] else { continue }
            var sha = Sha256()
            var count = 0
            let out = try target.map { try create("\($0)/\(path)") }
            try source.read(path, limit: expected.bytes) { data in
                sha.add(data)
                count += data.count
                if let out { try diskErrors(path) { try RealDisk().write(out, Array(data)) } }
                try progress?(path, done + count, manifest.measured.totalBytes)
            }
            if count != expected.bytes { throw otherLength(path, expected.bytes, count) }
            if hex(sha.bytes) != expected.sha256 { throw otherBytes(path) }
            done += count
        }
    }

    private static func create(_ file: String) throws -> OpenFile {
        try privateFolder(PFLMobile.folder(of: file)) { _ in false }
        return try diskErrors(file) { try RealDisk().create(file) }
    }

    private static func unpack(
        _ source: any BundleSource, _ place: String, _ manifest: Manifest, _ data: [UInt8], _ signature: [UInt8]?,
        _ cacheFolder: String?, _ progress: ReadProgress?
    ) throws -> String {
        let above = cacheFolder ?? NSTemporaryDirectory()
        let folder = "\(above)/pfl-bundle-\(UUID().uuidString)"
        try diskErrors(folder) { if mkdir(folder, 0o700) != 0 { throw SystemError.last(folder) } }
        do {
            let needed = manifest.measured.totalBytes + data.count + Signatures.maxBytes
            if let free = freeSpace(folder), free < needed {
                throw PFLError(
                    .storageFull, "no space to unpack \(place): it needs \(needed) bytes",
                    mend: "free some space, or give another cacheFolder")
            }
            try checkFiles(source, manifest, folder, progress)
            try AtomicFiles().write("\(folder)/\(Paths.manifest)", data)
            if let signature { try AtomicFiles().write("\(folder)/\(Paths.signature)", signature) }
            return folder
        } catch {
            try? FileManager.default.removeItem(atPath: folder)
            throw error
        }
    }

    private static func freeSpace(_ folder: String) -> Int? {
        let found = try? FileManager.default.attributesOfFileSystem(forPath: folder)[.systemFreeSize] as? NSNumber
        return found?.intValue
    }

    private static func otherLength(_ path: String, _ expected: Int, _ found: Int) -> PFLError {
        PFLError(.truncatedFile, "\(path) has \(found) bytes, but the manifest says \(expected)", mend: obtainAgain)
    }

    private static func otherBytes(_ path: String) -> PFLError {
        PFLError(.tamperedBundle, "\(path) is not the file that the manifest lists (sha256 differs)", mend: obtainAgain)
    }
}
