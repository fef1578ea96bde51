import Foundation

/// A finished task in the queue.
struct Pending: Body {
    let task: String
    let round: Int
    /// Where the update goes.
    let url: String
    /// Idempotency key of the upload.
    let key: String
    /// When it is of no use any more, by this device's clock.
    let deadline: Double
    /// Of the update.
    let sha256: String
    /// Of the update.
    let bytes: Int
    /// Of the task: what protects the update; for the policy of a later start.
    let privacy: TaskPrivacy
    /// Names of the numbers that go along.
    let reports: [String]
    /// The report that goes after it; nil for none.
    let evaluation: EvaluationReport?
    /// Version of the personal state that this task wrote and that is to serve; nil for none.
    var adopts: Int?
    /// The version that served before.
    let insteadOf: Int
    /// Names of the copies whose change is sent; taken back where the update is not accepted.
    let copies: [String]
    /// Whether the update is accepted, so that only the evaluation is left.
    var uploaded = false
    /// Of the membership that it was made for; it goes to no other. Nil in files of an earlier version.
    let server: String?
    /// Likewise.
    let device: String?

    init(
        task: RoundTask, key: String, deadline: Double, update: [UInt8], evaluation: EvaluationReport?, adopts: Int?,
        insteadOf: Int, copies: [String], membership: Membership?
    ) {
        self.task = task.id
        round = task.round
        url = task.updateURL
        self.key = key
        self.deadline = deadline
        sha256 = Sha256.hex(update)
        bytes = update.count
        privacy = task.privacy
        reports = task.reports
        self.evaluation = evaluation
        self.adopts = adopts
        self.insteadOf = insteadOf
        self.copies = copies
        server = membership?.server
        device = membership?.device
    }

    init(_ fields: inout Fields) throws {
        let version = try fields.required("schema_version", Fields.whole)
        if version != DeviceFolder.schemaVersion {
            throw Malformed("schema_version: \(version) is not \(DeviceFolder.schemaVersion)")
        }
        task = try fields.required("task", Fields.text)
        round = try fields.required("round", Fields.whole)
        url = try fields.required("url", Fields.text)
        key = try fields.required("key", Fields.text)
        deadline = try fields.required("deadline", Fields.finite)
        sha256 = try fields.required("sha256", Fields.text)
        bytes = try fields.required("bytes", Fields.whole)
        privacy = try fields.body("privacy")
        reports = try fields.required("reports", Fields.list(Fields.text))
        evaluation = try fields.maybeBody("evaluation")
        adopts = try fields.maybe("adopts", Fields.whole)
        insteadOf = try fields.field("instead_of", Fields.whole, default: 0)
        copies = try fields.required("copies", Fields.list(Fields.text))
        uploaded = try fields.field("uploaded", Fields.truth, default: false)
        server = try fields.maybe("server", Fields.text)
        device = try fields.maybe("device", Fields.text)
        let versions = 0...Int(Int32.max)
        if !versions.contains(adopts ?? 0) || !versions.contains(insteadOf) {
            throw Malformed("no number of a version")
        }
    }

    var json: JSON {
        object(
            ("schema_version", .integer(DeviceFolder.schemaVersion)), ("task", .string(task)),
            ("round", .integer(round)), ("url", .string(url)), ("key", .string(key)), ("deadline", .double(deadline)),
            ("sha256", .string(sha256)), ("bytes", .integer(bytes)), ("privacy", privacy.json),
            ("reports", .texts(reports)), ("evaluation", .maybe(evaluation, \.json)),
            ("adopts", .maybe(adopts, JSON.integer)), ("instead_of", .integer(insteadOf)), ("copies", .texts(copies)),
            ("uploaded", .bool(uploaded)), ("server", .maybe(server, JSON.string)),
            ("device", .maybe(device, JSON.string)))
    }
}

/// A device's place in a federation.
struct Membership: Body, Equatable {
    /// Address of the aggregator.
    let server: String
    /// Its id there.
    let device: String
    /// What it proves itself with.
    let credential: String

    init(server: String, device: String, credential: String) {
        self.server = server
        self.device = device
        self.credential = credential
    }

    init(_ fields: inout Fields) throws {
        server = try fields.required("server", Fields.text)
        device = try fields.required("device", Fields.text)
        credential = try fields.required("credential", Fields.text)
    }

    var json: JSON {
        object(("server", .string(server)), ("device", .string(device)), ("credential", .string(credential)))
    }
}

private struct MembershipFile: Body {
    let schemaVersion: Int
    let model: ModelId
    let membership: Membership

    init(_ model: ModelId, _ membership: Membership) {
        schemaVersion = DeviceFolder.schemaVersion
        self.model = model
        self.membership = membership
    }

    init(_ fields: inout Fields) throws {
        schemaVersion = try fields.required("schema_version", Fields.whole)
        let model = try fields.required("model", Fields.list(Fields.text))
        if model.count != 3 { throw Malformed("model is not name, version and fingerprint") }
        self.model = ModelId(name: model[0], version: model[1], fingerprint: model[2])
        membership = try Membership(&fields)
    }

    var json: JSON {
        object(
            ("schema_version", .integer(schemaVersion)),
            ("model", .texts([model.name, model.version, model.fingerprint])), ("server", .string(membership.server)),
            ("device", .string(membership.device)), ("credential", .string(membership.credential)))
    }
}

private struct LeavingFile: Body {
    let memberships: [Membership]

    init(_ memberships: [Membership]) {
        self.memberships = memberships
    }

    init(_ fields: inout Fields) throws {
        _ = try fields.required("schema_version", Fields.whole)
        memberships = try fields.bodies("memberships")
    }

    var json: JSON {
        object(
            ("schema_version", .integer(DeviceFolder.schemaVersion)),
            ("memberships", .array(memberships.map(\.json))))
    }
}

private struct UserFile: Body {
    let user: String

    init(_ user: String) {
        self.user = user
    }

    init(_ fields: inout Fields) throws { user = try fields.required("user", Fields.text) }

    var json: JSON { object(("user", .string(user))) }
}

/// What a device keeps: credential, personal state, downloaded values, finished updates that wait to be sent. Python, Kotlin and
/// Swift open each other's folders, one after the other.
///
///     FOLDER/lock              held while a process uses the folder, of any of the languages
///     FOLDER/device.json       server, model, device id and credential; readable by the owner alone
///     FOLDER/leaving.json      memberships that ended here and that the aggregator was not told of yet
///     FOLDER/user.json         whose device it is, where one program serves several users
///     FOLDER/personal/         the personal state, see `PersonalStateStore`
///     FOLDER/sets/<sha256>     values as downloaded; `.part` while they arrive
///     FOLDER/sent.json         what was sent under the device's own noise
///     FOLDER/spent.json        what was sent in all, for a status screen
///     FOLDER/serves.json       what predictions use of the versions of the personal state that tasks made; of Kotlin and Swift
///     FOLDER/checkpoint        training under way, where the personal state lies elsewhere
///     FOLDER/queue/<task>.update, <task>.json     a finished update and what is to be done with it
///
/// Every file is replaced in one step, and an update is on the disk before its `.json` names it, so a process that is killed at
/// any moment leaves a folder to go on from.
///
/// It must not be in a backup: what is restored would count less than was sent, and two phones would have one credential. So
/// the folder is marked as one that backups leave out, where the system knows such a mark.
///
/// One task at a time.
public final class DeviceFolder {
    /// Of the files in a device's folder.
    static let schemaVersion = 1

    /// Where it lies.
    public let directory: String
    /// The personal state.
    public let personal: PersonalStateStore
    /// Where training of a task is kept.
    let checkpoint: String
    /// What was sent under the device's own noise.
    let sent: SentNoise
    /// What was sent, for a status screen.
    let spent: Spent
    /// What is served of the versions that tasks made.
    let serves: ServeNotes
    private(set) var membership: Membership?
    /// Memberships that ended here and that their aggregators were not told of yet.
    private(set) var toLeave: [Membership] = []
    /// Whether a device runs in it.
    var running = false

    private let model: ModelId
    private let files: AtomicFiles
    private var lock: FolderLock?
    // Only a personal model, whose folder Python does not open, tells a count that was lost from one that never began.
    private let counted: Bool

    private var sets: String { "\(directory)/sets" }
    private var queue: String { "\(directory)/queue" }

    /// Opens and locks a folder.
    ///
    /// - Parameters:
    ///   - directory: made when missing, for its owner alone
    ///   - model: what the device trains; a folder of another model is refused
    ///   - user: whose device it is; a folder of another user is refused. Nil where every folder has the same user, as on a
    ///     phone
    /// - Throws: `.deviceFolder`: in use by another process, damaged, or of another model or user; `.unwritable`: it cannot be
    ///   written
    public convenience init(_ directory: URL, model: ModelId, user: String? = nil) throws {
        try self.init(directory.path, model: model, user: user, shared: nil)
    }

    init(
        _ directory: String, model: ModelId, user: String? = nil, shared: PersonalStateStore? = nil,
        disk: any Disk = RealDisk()
    ) throws {
        let path = URL(fileURLWithPath: directory).path
        let files = AtomicFiles(disk)
        self.directory = path
        self.model = model
        self.files = files
        counted = shared != nil
        try privateFolder(path, ours: DeviceFolder.names.contains)
        for folder in ["\(path)/sets", "\(path)/queue"] { try privateFolder(folder) { _ in true } }
        leaveOutOfBackups(path)
        lock = try diskErrors(path) { try FolderLock.take(file: "\(path)/\(DeviceFolder.lockName)") }
        if lock == nil {
            throw PFLError(
                .deviceFolder, "\(path) is in use by another process",
                mend: "one process for each device: wait for the other, or give another folder")
        }
        func isThere(_ name: String) throws -> Bool { try diskErrors(path) { try status("\(path)/\(name)") != nil } }
        let begun =
            try shared != nil && (isThere(DeviceFolder.deviceName) || isThere(DeviceFolder.leavingName))
        sent = try SentNoise(
            "\(path)/\(DeviceFolder.sentName)",
            begun: try begun || shared != nil && isThere(DeviceFolder.spentName), files: files)
        spent = try Spent(
            "\(path)/\(DeviceFolder.spentName)", begun: begun || shared != nil && sent.updates > 0, files: files)
        serves = ServeNotes("\(path)/\(DeviceFolder.servesName)", files: files)
        personal =
            try shared
            ?? PersonalStateStore(
                "\(path)/personal", model: model, keep: 5, clock: { Date().timeIntervalSince1970 }, disk: disk,
                waitSeconds: 2)
        checkpoint = shared == nil ? personal.checkpoint : "\(path)/checkpoint"
        toLeave = try readToLeave()
        // With a state of its own, a new version of the bundle has taken that over, and the federation knows the old one only.
        membership = try readMembership(renew: shared != nil)
        // killed between the two files
        if let membership, toLeave.contains(membership) { try forget() }
        if let user { try noteUser(user) }
    }

    /// Whether the device is enrolled in a federation.
    public var enrolled: Bool { membership != nil }

    /// How many updates were sent under this device's own noise.
    public var sentUnderOwnNoise: Int { sent.updates }

    /// Epsilon at a delta of all that was sent under this device's own noise, by its own count.
    public func ownEpsilon(_ delta: Double) -> Double { sent.epsilon(delta: delta) }

    /// How many finished updates or reports wait to be sent.
    ///
    /// - Throws: `.unwritable`: the folder cannot be read
    public var waiting: Int {
        get throws { try list(queue).count(where: isEntry) }
    }

    /// Unlocks it.
    public func close() { lock = nil }

    // -- the credential

    /// Keeps the credential; returns it. A count that is missing beside it was lost.
    @discardableResult
    func join(_ server: String, _ enrolled: Enrolled) throws -> Membership {
        let found = Membership(server: server, device: enrolled.device, credential: enrolled.credential)
        if counted {
            try sent.begin()
            try spent.begin()
        }
        try write(DeviceFolder.deviceName, MembershipFile(model, found))
        membership = found
        return found
    }

    /// Removes the credential.
    func forget() throws {
        try files.delete("\(directory)/\(DeviceFolder.deviceName)")
        membership = nil
    }

    /// Ends the membership here, with what waits for it; its credential is kept to tell the aggregator, see `left`.
    func leaveLater() throws {
        try discardWaiting()
        guard let ended = membership else { return }
        try keepToLeave(toLeave + [ended])
        try forget()
    }

    /// The aggregator of a membership in `toLeave` knows that it ended.
    func left(_ ended: Membership) throws { try keepToLeave(toLeave.filter { $0 != ended }) }

    private func keepToLeave(_ now: [Membership]) throws {
        if now.isEmpty {
            try files.delete("\(directory)/\(DeviceFolder.leavingName)")
        } else {
            try write(DeviceFolder.leavingName, LeavingFile(now))
        }
        toLeave = now
    }

    private func readToLeave() throws -> [Membership] {
        let path = "\(directory)/\(DeviceFolder.leavingName)"
        do {
            return try read(path, LeavingFile.self)?.memberships ?? []
        } catch let error as SystemError {
            throw DeviceFolder.unreadable(path, error)
        } catch is Malformed {
            return []  // nobody can leave with it
        }
    }

    /// - Parameter renew: a membership with another version of the bundle ends here, with what waited for its rounds
    private func readMembership(renew: Bool) throws -> Membership? {
        let path = "\(directory)/\(DeviceFolder.deviceName)"
        let read = try damaged(path, "remove the file to enrol as a new device") {
            try self.read(path, MembershipFile.self)
        }
        guard let found = read else { return nil }
        if found.schemaVersion != DeviceFolder.schemaVersion {
            throw PFLError(
                .deviceFolder,
                "\(path) has schema \(found.schemaVersion), this version reads \(DeviceFolder.schemaVersion)",
                mend: "update the app")
        }
        if found.model == model { return found.membership }
        if renew {
            try keepToLeave(toLeave.filter { $0 != found.membership } + [found.membership])
            try DeviceFolder.clear(directory, kept: [DeviceFolder.leavingName])
            return nil
        }
        let differ = found.model.name == model.name ? " (its tensors differ)" : ""
        throw PFLError(
            .deviceFolder,
            "\(directory) belongs to a device with model \(found.model.name) \(found.model.version)\(differ)",
            mend: "use its bundle, or another folder for this one")
    }

    private func noteUser(_ user: String) throws {
        let path = "\(directory)/user.json"
        let found = try damaged(path, "remove it if the folder is '\(user)''s, else give another folder") {
            try read(path, UserFile.self)
        }
        guard let found else { return try write("user.json", UserFile(user)) }
        if Exact(found.user) != Exact(user) {
            throw PFLError(
                .deviceFolder, "\(directory) holds the personal state of user '\(found.user)', not of '\(user)'",
                mend: "give another folder for each user")
        }
    }

    // -- downloaded values

    /// Where the values with this digest lie, or will.
    func setPath(_ sha256: String) -> String { "\(sets)/\(sha256)" }

    /// Downloaded values; nil when they are not there. A damaged file is removed and counts as not there.
    ///
    /// - Throws: `.nonFinite`: a value is NaN or infinite; `.tensorFile`: what was sent is no safetensors file
    func loadSet(_ sha256: String) throws -> TensorSet? {
        let path = setPath(sha256)
        let data: Data
        do {
            data = try map(path)
        } catch let error as SystemError where error.isMissing {
            return nil
        } catch {
            throw DeviceFolder.unreadable(path, error)
        }
        var sha = Sha256()
        data.withUnsafeBytes { sha.add($0) }
        if hex(sha.bytes) != sha256 {
            try files.delete(path)
            return nil
        }
        let tensors = try Safetensors.read(data, "set \(sha256.prefix(12))...").tensors
        try Safetensors.checkFinite(tensors)
        return tensors
    }

    /// Removes all downloaded values but these.
    func keepSets(_ digests: some Collection<String>) throws {
        for name in try list(sets) {
            let digest = name.hasSuffix(".part") ? String(name.dropLast(".part".count)) : name
            if !digests.contains(digest) { try files.delete("\(sets)/\(name)") }
        }
    }

    // -- the queue

    /// Keeps a finished update until it is sent; after this a crash does not lose it.
    ///
    /// - Throws: `.storageFull`: the disk is full; the queue is as it was
    func put(_ pending: Pending, _ update: [UInt8]) throws {
        try files.write(updatePath(pending.task), update)
        try change(pending)
    }

    /// Puts `pending` in the place of what the queue has of its task.
    func change(_ pending: Pending) throws { try write("queue/\(pending.task).json", pending) }

    /// Forgets a task; no error when it is not there.
    func remove(_ task: String) throws {
        try files.delete("\(queue)/\(task).json")
        try files.delete(updatePath(task))
    }

    /// Where the update of a task lies.
    func updatePath(_ task: String) -> String { "\(queue)/\(task).update" }

    /// What waits to be sent, the oldest round first, and the tasks whose entries are damaged.
    ///
    /// - Throws: `.deviceFolder`: a file cannot be read now; nothing is thrown away
    func pending() throws -> (found: [Pending], damaged: [String]) {
        var found: [Pending] = []
        var damaged: [String] = []
        for name in try list(queue) where isEntry(name) {
            let task = String(name.dropLast(".json".count))
            let path = "\(queue)/\(name)"
            do {
                guard let entry = try read(path, Pending.self) else { continue }
                let whole = try entry.uploaded || intact(entry)
                guard Exact(entry.task) == Exact(task), whole else {
                    damaged.append(task)
                    continue
                }
                found.append(entry)
            } catch let error as SystemError {
                throw DeviceFolder.unreadable(path, error)
            } catch is Malformed {
                damaged.append(task)
            }
        }
        return (
            found.sorted { $0.round == $1.round ? nameOrder($0.task, $1.task) : $0.round < $1.round },
            damaged.sorted(by: nameOrder)
        )
    }

    /// Throws away what waits to be sent, and training of a task that is under way. Nothing of it leaves the device any more;
    /// copies that the aggregator counts on get the values that it knows.
    func discardWaiting() throws {
        for entry in try pending().found.reversed() {
            if !entry.uploaded { try takeBack(personal, entry.copies, before: entry.insteadOf, serves) }
            try remove(entry.task)
        }
        for name in try list(queue) { try files.delete("\(queue)/\(name)") }
        try files.delete(checkpoint)
    }

    /// Makes an earlier version of the personal state serve; returns its number. What a killed process was about to let serve no
    /// longer will.
    ///
    /// - Parameter version: which; 0 for the shipped values; nil for the one before the current
    /// - Throws: `.state`: there is no such version, or it is damaged
    @discardableResult
    public func revert(_ version: Int? = nil) throws -> Int {
        for var entry in try pending().found where entry.adopts != nil {
            entry.adopts = nil
            try change(entry)
        }
        return try personal.revert(version)
    }

    /// Removes updates of a process that was killed before it could write their entries.
    func removeOrphans() throws {
        let all = try list(queue)
        let known = Set(all.filter(isEntry).map { $0.dropLast(".json".count) })
        for name in all where name.hasSuffix(".update") && !known.contains(name.dropLast(".update".count)) {
            try files.delete("\(queue)/\(name)")
        }
    }

    private func isEntry(_ name: String) -> Bool { name.hasSuffix(".json") && !name.hasPrefix(".") }

    private func intact(_ entry: Pending) throws -> Bool {
        let path = updatePath(entry.task)
        do {
            let data = try map(path)
            var sha = Sha256()
            data.withUnsafeBytes { sha.add($0) }
            return data.count == entry.bytes && hex(sha.bytes) == entry.sha256
        } catch let error as SystemError where error.isMissing {
            return false
        } catch let error as SystemError {
            throw DeviceFolder.unreadable(path, error)
        }
    }

    // -- files

    private func write(_ name: String, _ content: some Body) throws {
        try files.write("\(directory)/\(name)", Array((pythonJSON(content.json) + "\n").utf8))
    }

    /// What a file of JSON holds; nil where there is none.
    private func read<Form: Body>(_ path: String, _ form: Form.Type) throws -> Form? {
        do {
            return try Bodies.read(form, try parseJSON(bytes: try readBytes(path)))
        } catch let error as SystemError where error.isMissing {
            return nil
        }
    }

    private func list(_ folder: String) throws -> [String] { try diskErrors(folder) { try namesIn(folder) } }

    private static let lockName = "lock"
    private static let sentName = "sent.json"
    private static let spentName = "spent.json"
    static let servesName = "serves.json"
    private static let deviceName = "device.json"
    private static let leavingName = "leaving.json"
    private static let queueName = "queue"

    /// What only a device's folder holds.
    private static let names: Set = [
        lockName, deviceName, leavingName, "user.json", sentName, spentName, "personal", queueName,
    ]

    /// Removes everything from a folder that no device uses but how much was sent: that cannot be taken back, so a budget must
    /// go on from there. Works on a damaged folder too. Killed or failed on the way, it leaves nothing that could go out, and a
    /// membership until the end; all that can be removed is.
    ///
    /// - Parameter kept: names of files that stay too
    static func clear(_ directory: String, kept: Set<String> = []) throws {
        guard try diskErrors(directory, { try status(directory) }) != nil else { return }
        let files = AtomicFiles()
        let stay = kept.union([lockName, sentName, spentName])
        var fault: (any Error)?

        func remove(_ path: String) {
            do {
                try diskErrors(path) {
                    if let found = try status(path, links: false), found.isFolder {
                        for name in try namesIn(path) { remove("\(path)/\(name)") }
                        try files.syncFolder(path)
                    } else {
                        try files.delete(path)
                    }
                }
            } catch {
                fault = fault ?? error
            }
        }
        // What could be sent goes first, and last what says that there is something to clear.
        func rank(_ name: String) -> Int {
            switch name {
            case queueName: -1
            case leavingName: 1
            case deviceName: 2
            default: 0
            }
        }
        let all = try diskErrors(directory) { try namesIn(directory) }.filter { !stay.contains($0) }
        for name in all.sorted(by: { rank($0) < rank($1) }) { remove("\(directory)/\(name)") }
        if let fault { throw fault }
        try files.syncFolder(directory)
    }

    static func unreadable(_ path: String, _ error: any Error) -> PFLError {
        PFLError(
            .deviceFolder, "\(path) cannot be read: \(error)",
            mend: "check what is there and its permissions; if it is no file of this device, remove it", cause: error)
    }

    private func damaged<Result>(_ path: String, _ mend: String, _ read: () throws -> Result) throws -> Result {
        do {
            return try read()
        } catch let error as PFLError {
            throw error
        } catch {
            var found = PFLError(.deviceFolder, "\(path) is damaged: \(error)", mend: mend, cause: error)
            found.damaged = !(error is SystemError)
            throw found
        }
    }
}

/// Tells the system that a folder belongs in no backup, where it knows such a mark.
private func leaveOutOfBackups(_ path: String) {
    #if canImport(Darwin)
        var values = URLResourceValues()
        values.isExcludedFromBackup = true
        var url = URL(fileURLWithPath: path, isDirectory: true)
        try? url.setResourceValues(values)
    #endif
}
