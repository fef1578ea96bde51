import Foundation

/// One saved version.
public struct VersionInfo: Sendable, Equatable {
    /// Its number.
    public let version: Int
    /// The version that was current when it was saved.
    public let parent: Int
    /// Seconds since 1970.
    public let created: Double
    /// Measured at its adoption.
    public let metrics: [String: Double]
    /// Whether it serves now.
    public let current: Bool
    /// Why it cannot be used; nil when it is good.
    public var problem: String?
}

/// The personal state on disk: numbered versions, one of them current, each swap atomic. Python, Kotlin and Swift open each
/// other's folders.
///
///     FOLDER/CURRENT              the number of the adopted version; 0 or no file: the shipped values
///     FOLDER/000007.safetensors   a version
///     FOLDER/checkpoint           training under way
///     FOLDER/FORGOTTEN            words that must not be learned again
///
/// A version is written and flushed before CURRENT names it, so a process killed at any moment leaves the last good state.
/// Every version carries a digest of all it holds. A damaged current version is never used: `load` falls back to the version
/// before it and says so.
///
/// One task at a time; other processes, and other stores of the same folder, are kept out by `hold`.
public final class PersonalStateStore: StateStore {
    /// Where the state lies.
    public let folder: String
    private let model: ModelId
    private let keep: Int
    private let clock: () -> Double
    private let files: AtomicFiles
    private let waitSeconds: Double
    private var holding = 0
    private var lock: FolderLock?

    private static let currentName = "CURRENT"
    private static let forgottenName = "FORGOTTEN"
    private static let names = [currentName, "checkpoint", "user.json", FolderLock.name]

    /// A store.
    ///
    /// - Parameters:
    ///   - folder: made when missing, for its owner alone
    ///   - model: what the states must belong to
    ///   - keep: how many versions stay; the current one and its parent always do
    ///   - clock: seconds since 1970
    /// - Throws: `.unwritable`: the folder cannot be made
    public convenience init(
        _ folder: URL, model: ModelId, keep: Int = 5, clock: @escaping () -> Double = { Date().timeIntervalSince1970 }
    ) throws {
        try self.init(folder.path, model: model, keep: keep, clock: clock, disk: RealDisk(), waitSeconds: 2)
    }

    init(
        _ folder: String, model: ModelId, keep: Int, clock: @escaping () -> Double, disk: any Disk, waitSeconds: Double
    ) throws {
        self.folder = folder
        self.model = model
        self.keep = max(keep, 1)
        self.clock = clock
        files = AtomicFiles(disk)
        self.waitSeconds = waitSeconds
        try privateFolder(folder) {
            PersonalStateStore.names.contains($0) || PersonalStateStore.number($0) != nil
        }
    }

    public func hold<Result>(_ body: () throws -> Result) throws -> Result {
        if holding == 0 {
            lock = try diskErrors(folder) { try FolderLock.take(folder, seconds: waitSeconds) }
            if lock == nil {
                throw PFLError(
                    .state, "the personal state in \(folder) is in use by another process",
                    mend: "wait until that has ended, or give another folder")
            }
        }
        holding += 1
        defer {
            holding -= 1
            if holding == 0 { lock = nil }
        }
        return try body()
    }

    /// Number of the adopted version; 0 = the shipped values.
    ///
    /// - Throws: `.state`: the file that says so is damaged
    public var current: Int {
        get throws {
            let path = "\(folder)/\(PersonalStateStore.currentName)"
            let text: String
            do {
                text = String(decoding: try readBytes(path, most: 100), as: UTF8.self)
                    .trimmingCharacters(in: .whitespacesAndNewlines)
            } catch let error as SystemError where error.isMissing {
                return 0
            } catch {
                throw damagedPointer(path, "\(error)")
            }
            guard (1...9).contains(text.utf8.count), text.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }),
                let number = Int(text)
            else { throw damagedPointer(path, "'\(text.prefix(20))'") }
            return number
        }
    }

    public func save(_ state: PersonalState) throws -> Int {
        try hold {
            try prune(try current)  // a process killed before it could prune leaves versions behind
            let version = try write(state)
            try pointTo(version)
            try prune(version)
            return version
        }
    }

    public func write(_ state: PersonalState) throws -> Int {
        try hold {
            let blocked = try blocked()
            if state.words.contains(where: blocked.hides) {
                throw PFLError(
                    .state, "a word of this state was forgotten while it was trained; it is not saved",
                    mend: "train again")
            }
            let now = try current
            let version = max(try numbers().last ?? 0, now) + 1
            try files.write(path(version), try StateFile(model, state, parent: now, created: clock()).encode())
            return version
        }
    }

    /// Makes a version current that `write` made.
    ///
    /// - Throws: `.state`: there is no such version; nothing changes
    public func adopt(_ version: Int) throws {
        try hold {
            if try !numbers().contains(version) {
                throw PFLError(.state, "there is no version \(version) to adopt", mend: "write it first")
            }
            try pointTo(version)
            try prune(version)
        }
    }

    /// A saved version, current or not.
    ///
    /// - Throws: `.state`: there is no such version, or it is damaged or of another model
    public func read(_ version: Int) throws -> PersonalState {
        do {
            return try file(version).state
        } catch let damaged as StateFile.Damaged {
            throw damaged.error
        }
    }

    public func load() throws -> LoadedState {
        let first = try current
        var version = first
        var problems: [(version: Int, message: String)] = []
        while version != 0 {
            do {
                let state = try file(version).state
                return LoadedState(
                    state: state, version: version,
                    warnings: problems.map { StateWarning(version: $0.version, message: $0.message, used: version) })
            } catch let damaged as StateFile.Damaged {
                problems.append((version, damaged.error.message))
                version = try before(version)
            }
        }
        guard let problem = problems.first else { return LoadedState(state: nil, version: 0) }
        throw PFLError(
            .state, "no usable personal state in \(folder): version \(first): \(problem.message)",
            mend: "call reset() to go back to the shipped values, or restore the folder from a backup")
    }

    /// All saved versions, oldest first, damaged ones with their problem. Another process may save one meanwhile.
    ///
    /// - Throws: `.unwritable`: the folder cannot be read
    public func versions() throws -> [VersionInfo] {
        let serves = try? current  // load() reports what is wrong with it; the versions can still be listed
        return try numbers().compactMap { number in
            do {
                let found = try file(number)
                return VersionInfo(
                    version: number, parent: found.parent, created: found.created, metrics: found.state.metrics,
                    current: number == serves)
            } catch {
                guard (try? status(path(number), links: false)) != nil else { return nil }
                let message =
                    (error as? StateFile.Damaged)?.error.message ?? (error as? PFLError)?.message ?? "\(error)"
                return VersionInfo(
                    version: number, parent: 0, created: 0, metrics: [:], current: number == serves, problem: message)
            }
        }
    }

    /// Makes an earlier version current; returns its number.
    ///
    /// - Parameter version: which; 0 for the shipped values; nil for the one before the current
    /// - Throws: `.state`: there is no such version, or it is damaged; nothing changes
    @discardableResult
    public func revert(_ version: Int? = nil) throws -> Int {
        try hold {
            let wanted: Int
            if let version {
                wanted = version
            } else {
                let now = try current
                if now == 0 {
                    throw PFLError(.state, "the shipped values serve; nothing is before them", mend: "give a version")
                }
                wanted = try before(now)
            }
            if wanted != 0 {
                let known = try numbers()
                if !known.contains(wanted) {
                    let list = known.isEmpty ? "none" : known.map(String.init).joined(separator: ", ")
                    throw PFLError(
                        .state, "there is no version \(wanted)", mend: "saved versions: \(list); 0 = shipped")
                }
                _ = try read(wanted)
            }
            try pointTo(wanted)
            return wanted
        }
    }

    /// Goes back to the shipped values; the versions stay and can be reverted to.
    public func reset() throws {
        try hold { try pointTo(0) }
    }

    public func blocked() throws -> BlockList {
        let path = "\(folder)/\(PersonalStateStore.forgottenName)"
        let data: [UInt8]
        do {
            data = try readBytes(path)
        } catch let error as SystemError where error.isMissing {
            return BlockList()
        } catch {
            throw PFLError(
                .state, "cannot read \(path): \(error)", mend: "check that the file may be read", cause: error)
        }
        return try BlockList(json: data, path)
    }

    /// Never learns these words (pieces of the tokenizer) again; what was learned is taken out by `rewrite`.
    public func block(_ words: some Sequence<String>) throws {
        try hold {
            try files.write("\(folder)/\(PersonalStateStore.forgottenName)", try blocked().adding(words).json())
        }
    }

    /// Puts `change(state)` in the place of every version, under the same number, parent and time.
    ///
    /// Nothing of what was there before stays: a checkpoint, versions that are damaged and leftovers of killed processes are
    /// removed. (The system may keep the bytes of removed files until it needs their place.)
    ///
    /// - Returns: numbers of the versions
    /// - Throws: `.state`: a version is of another model or newer, or none that should serve can be used, and nothing changes;
    ///   `.storageFull`: some versions may be as before, so call again once there is space
    @discardableResult
    public func rewrite(_ change: (PersonalState) throws -> PersonalState) throws -> [Int] {
        try hold {
            let serves = try load().version
            var found: [(number: Int, file: StateFile)] = []
            for number in try numbers() {
                do {
                    found.append((number, try file(number)))
                } catch is StateFile.Damaged {
                    continue
                }
            }
            try files.delete(checkpoint)
            if try serves != current { try pointTo(serves) }
            for (number, old) in found {
                var new = old
                new.state = try change(old.state)
                try files.write(path(number), try new.encode())
            }
            let kept = found.map(\.number)
            for number in try numbers() where !kept.contains(number) { try files.delete(path(number)) }
            try diskErrors(folder) { try files.removeStale(path(0), ofAll: true) }
            try files.syncFolder(folder)
            return kept
        }
    }

    /// Deletes every version, checkpoint and forgotten word: nothing personal is left.
    public func erase() throws {
        try hold {
            // The pointer first, as nothing serves without it; no file is written, as the disk may be full.
            try files.delete("\(folder)/\(PersonalStateStore.currentName)")
            for name in try list() where name != FolderLock.name {
                let file = "\(folder)/\(name)"
                if let found = try? status(file, links: false), found.isFile { try files.delete(file) }
            }
            try files.syncFolder(folder)
        }
    }

    /// Takes over what an earlier version of the same bundle learned. Versions with the same fingerprint are rewritten under
    /// this model's id, each in one step, so that a process killed on the way goes on with the rest.
    ///
    /// - Parameters:
    ///   - sameWeights: whether an equal fingerprint says that the frozen weights are equal; else the tensors may be the same
    ///     by chance
    ///   - discard: removes versions that do not fit, rather than leaving them to be refused; forgotten words stay
    /// - Returns: whether any was removed
    /// - Throws: `.storageFull`: the disk is full; call again once there is space
    @discardableResult
    func carryOver(sameWeights: Bool, discard: Bool) throws -> Bool {
        try hold {
            var gone: [Int] = []
            for number in try numbers() {
                guard var found = try? StateFile(reading: path(number)), found.model != model else {
                    continue  // load() reports what is damaged
                }
                let same = found.model.name == model.name && found.model.fingerprint == model.fingerprint
                if sameWeights && same {
                    found.model = model
                    try files.write(path(number), try found.encode())
                } else if discard {
                    gone.append(number)
                }
            }
            if gone.isEmpty { return false }
            if gone.contains(try current) { try pointTo(0) }
            try files.delete(checkpoint)
            for number in gone { try files.delete(path(number)) }
            return true
        }
    }

    /// Where training under way is kept.
    var checkpoint: String { "\(folder)/checkpoint" }

    private func file(_ version: Int) throws -> StateFile {
        let path = path(version)
        let found = try StateFile(reading: path)
        if found.model != model {
            let same = found.model.name == model.name && found.model.version == model.version
            throw PFLError(
                .state,
                "\(path) belongs to model \(found.model.name) \(found.model.version), not to \(model.name) \(model.version)"
                    + (same ? " (its tensors differ)" : ""),
                mend: "use the bundle it was trained with, or another folder for this one")
        }
        return found
    }

    /// The version to go back to: the parent, else the newest older one, else 0.
    private func before(_ version: Int) throws -> Int {
        let older = try numbers().filter { $0 < version }
        let newest = older.last ?? 0
        guard let parent = try? file(version).parent else { return newest }
        return parent == 0 || older.contains(parent) ? parent : newest
    }

    private func list() throws -> [String] { try diskErrors(folder) { try namesIn(folder) } }

    /// Of all saved versions, in order.
    func numbers() throws -> [Int] { try list().compactMap(PersonalStateStore.number).sorted() }

    private static func number(_ name: String) -> Int? {
        guard name.hasSuffix(".safetensors") else { return nil }
        let digits = name.dropLast(".safetensors".count)
        guard (1...9).contains(digits.utf8.count), digits.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }) else {
            return nil
        }
        return Int(digits)
    }

    private func path(_ version: Int) -> String {
        let digits = String(version)
        return "\(folder)/\(String(repeating: "0", count: max(6 - digits.count, 0)))\(digits).safetensors"
    }

    private func pointTo(_ version: Int) throws {
        try files.write("\(folder)/\(PersonalStateStore.currentName)", Array("\(version)\n".utf8))
    }

    private func prune(_ current: Int) throws {
        let numbers = try numbers()
        let safe = Set(numbers.suffix(keep) + [current, current == 0 ? 0 : try before(current)])
        for number in numbers where !safe.contains(number) { try files.delete(path(number)) }
    }

    private func damagedPointer(_ path: String, _ why: String) -> PFLError {
        PFLError(
            .state, "\(path) is damaged: \(why)", mend: "call revert(VERSION) with one of versions(), or reset()")
    }
}
