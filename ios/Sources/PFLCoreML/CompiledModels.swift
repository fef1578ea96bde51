#if canImport(CoreML)
    import CoreML
    import Foundation
    import PFLMobile

    /// Programs compiled for this phone and its system. Compiling takes seconds, so what came of it is kept in a folder of caches, from
    /// which the system may take it at any time. There is nothing personal in it.
    struct CompiledModels: Sendable {
        /// The app's own caches, of which there is no backup.
        static var usual: URL {
            let caches =
                FileManager.default.urls(for: .cachesDirectory, in: .userDomainMask).first
                ?? FileManager.default.temporaryDirectory
            return caches.appendingPathComponent("pfl-mobile/coreml", isDirectory: true)
        }

        private let folder: URL

        init(_ folder: URL) {
            self.folder = folder
        }

        /// What `open` gives for the compiled form of a package. Where it refuses one that was kept, which the system may have taken
        /// half of, the package is compiled again.
        ///
        /// - Throws: what `open` throws, what Core ML's compiler throws; `.storageFull`: the disk is full
        func load<Model>(_ package: URL, _ open: (URL) throws -> Model) throws -> Model {
            let place = folder.appendingPathComponent("\(try digest(package)).mlmodelc", isDirectory: true)
            if isThere(place) {
                if let found = try? open(place) {
                    try? FileManager.default.setAttributes([.modificationDate: Date()], ofItemAtPath: place.path)
                    return found
                }
                try? FileManager.default.removeItem(at: place)
            }
            try keep(try MLModel.compileModel(at: package), place)
            return try open(place)
        }

        private func isThere(_ place: URL) -> Bool { FileManager.default.fileExists(atPath: place.path) }

        /// Moves what was compiled to its place, unless somebody else was faster, and removes what nobody used for a month.
        private func keep(_ compiled: URL, _ place: URL) throws {
            let files = FileManager.default
            defer { try? files.removeItem(at: compiled) }
            do {
                try files.createDirectory(at: folder, withIntermediateDirectories: true)
                removeUnused()
                try files.moveItem(at: compiled, to: place)
            } catch {
                if isThere(place) { return }
                throw PFLError(
                    isFull(error) ? .storageFull : .unwritable,
                    "the compiled program cannot be kept in \(folder.path): \(error)",
                    mend: "free some space, or give the engine another folder", cause: error)
            }
        }

        private func removeUnused() {
            let files = FileManager.default
            let month: TimeInterval = 30 * 24 * 3600
            let known = try? files.contentsOfDirectory(
                at: folder, includingPropertiesForKeys: [.contentModificationDateKey])
            for old in known ?? [] {
                let used = try? old.resourceValues(forKeys: [.contentModificationDateKey]).contentModificationDate
                if let used, Date().timeIntervalSince(used) > month { try? files.removeItem(at: old) }
            }
        }

        private func isFull(_ error: any Error) -> Bool {
            (error as? CocoaError)?.code == .fileWriteOutOfSpace
        }

        /// Of the files of a package and of the system, whose updates compile in other ways.
        private func digest(_ package: URL) throws -> String {
            var sha = Sha256()
            sha.add(ProcessInfo.processInfo.operatingSystemVersionString)
            let root = package.path
            let inside = FileManager.default.enumerator(atPath: root)?.compactMap { $0 as? String }.sorted() ?? []
            for path in inside {
                var isFolder: ObjCBool = false
                let full = "\(root)/\(path)"
                guard FileManager.default.fileExists(atPath: full, isDirectory: &isFolder), !isFolder.boolValue else {
                    continue
                }
                do {
                    let bytes = try Data(contentsOf: URL(fileURLWithPath: full), options: .mappedIfSafe)
                    sha.add("\n\(path) \(bytes.count)\n")
                    bytes.withUnsafeBytes { sha.add($0) }
                } catch {
                    throw PFLError(
                        .engine, "Core ML's package cannot be read: \(error)", mend: "export the bundle again",
                        cause: error)
                }
            }
            return hex(sha.bytes.prefix(16))
        }
    }
#endif
