import Foundation

/// The user's examples in a file, each encrypted and authenticated with AES-256-GCM; new ones are appended, and what is erased is
/// gone with the old file.
///
///     magic "PFLEXMP1", next id, age, wall clock, seconds since boot, boot                 8 bytes each
///     each example: id, oldest id, created, age, seconds since boot, boot, kind, length    8 bytes each
///                   nonce (12), encrypted payload, tag (16)                                length bytes
///
/// Numbers are little-endian, the moments float64, the others unsigned; kind is 0 for a text and 1 for arrays. The 64 bytes before
/// an example are authenticated with it. What a killed process or a full disk left behind the last whole example is cut off.
///
/// Ages are not differences of the wall clock, which the user or a network may set to anything. The store counts the seconds that
/// it has seen go by: while the device runs by the clock that cannot be set, over a restart by the wall clock, but never backwards
/// and at most half of the age limit at once. So a wrong date never makes everything look old.
///
/// What limits remove leaves the file when it is next opened, read or closed, or when it has become as much as what is kept.
public final class FileExampleStore: ExampleStore {
    private struct Entry {
        let id: Int
        let created: Double
        let aged: Double
        /// In the file, behind its head.
        let sealed: Range<Int>
        let kind: UInt64
        let head: [UInt8]

        /// Of the payload.
        var bytes: Int { sealed.count - Seal.overhead }
        /// In the file.
        var length: Int { FileExampleStore.headBytes + sealed.count }
    }

    private struct Kept {
        var entries: [Entry] = []
        var next = 1
        /// Seconds that were seen to go by, at a moment.
        var aged = 0.0
        var then: Moment?
        /// Length of what is whole; nil where there is no file.
        var length: Int?
        var seal: Seal
        var closed = false

        /// Bytes of the file that nobody needs.
        var dead: Int { (length ?? 0) - FileExampleStore.fileHead - entries.reduce(0) { $0 + $1.length } }
    }

    private static let magic = Array("PFLEXMP1".utf8)
    fileprivate static let fileHead = 48
    fileprivate static let headBytes = 64
    private static let kinds = ["text", "arrays"]
    /// One example must not drive all others out.
    private static let mostBytes = 1 << 20
    private static let mostAtOnce = 365 * 86_400.0
    /// The file is not written anew for less.
    private static let leastDead = 1 << 16

    private let path: String
    private let retention: Retention
    private let files: AtomicFiles
    private let clock: @Sendable () -> Moment
    private let kept: Locked<Kept>

    /// The examples in a file, which is made with the first one. One process at a time.
    ///
    /// - Parameters:
    ///   - file: its folder must exist
    ///   - key: keeps the key that they are encrypted with
    /// - Throws: `.state`: the file is damaged, or of a newer version
    public convenience init(_ file: URL, retention: Retention = .standard, key: any DataKey) throws {
        try self.init(file.path, retention, key, disk: RealDisk(), clock: Moment.now)
    }

    init(
        _ path: String, _ retention: Retention, _ key: any DataKey, disk: any Disk,
        clock: @escaping @Sendable () -> Moment
    ) throws {
        self.path = path
        self.retention = retention
        files = AtomicFiles(disk)
        self.clock = clock
        kept = Locked(Kept(seal: Seal(key)))
        try kept { kept in
            try read(&kept)
            try applyLimits(&kept)
            try tidy(&kept)
        }
    }

    public func add(_ payload: Payload) throws -> Int? {
        let plain = try payload.encode()
        if plain.count > FileExampleStore.mostBytes {
            throw PFLError(
                .data, "the example has \(plain.count) bytes, more than \(FileExampleStore.mostBytes)",
                mend: "remember a smaller part")
        }
        return try open { kept in
            // Alone, and not with all that are older.
            if let most = retention.maxBytes, plain.count > most { return nil }
            let now = clock()
            if kept.length == nil { try write([], &kept) }
            guard let length = kept.length else { return nil }
            let aged = age(kept, now)
            let id = kept.next
            let sealed =
                length + FileExampleStore.headBytes..<length + FileExampleStore.headBytes + plain.count
                + Seal.overhead
            let kind = payload.kind == "text" ? UInt64(0) : 1
            var entry = Entry(id: id, created: now.wall, aged: aged, sealed: sealed, kind: kind, head: [])
            let gone = beyond(kept.entries + [entry], aged)
            let oldest = gone < kept.entries.count ? kept.entries[gone].id : id
            let head =
                word(UInt64(id)) + word(UInt64(oldest)) + word(now.wall) + word(aged) + word(now.sinceBoot)
                + word(now.boot) + word(kind) + word(UInt64(sealed.count))
            entry = Entry(id: id, created: now.wall, aged: aged, sealed: sealed, kind: kind, head: head)
            try append(head + (try kept.seal.seal(plain, about: head)), at: length)
            kept.entries.removeFirst(gone)
            kept.entries.append(entry)
            kept.length = sealed.upperBound
            kept.next = id + 1
            kept.aged = aged
            kept.then = now
            let live = sealed.upperBound - kept.dead
            if kept.dead > max(live, FileExampleStore.leastDead) { try tidy(&kept) }
            return id
        }
    }

    public func examples(newest: Int?) throws -> [Example] {
        try open { kept in
            if kept.length == nil { return [] }
            try applyLimits(&kept)
            try tidy(&kept)
            let data = try content()
            var found: [Example] = []
            var lost: Set<Int> = []
            for entry in kept.entries.suffix(newest ?? kept.entries.count) {
                let sealed = data.subdata(in: entry.sealed)
                guard let plain = try kept.seal.open(sealed, about: entry.head) else {
                    lost.insert(entry.id)
                    continue
                }
                let kind = FileExampleStore.kinds[Int(entry.kind)]
                let payload = try Payload(kind: kind, decoding: plain)
                found.append(Example(id: entry.id, created: entry.created, payload: payload))
            }
            // Nobody can ever read them again.
            if !lost.isEmpty { try write(kept.entries.filter { !lost.contains($0.id) }, &kept) }
            return found
        }
    }

    public func count() throws -> Int { try open { $0.entries.count } }

    public func erase(_ ids: some Collection<Int>) throws -> Int {
        let ids = Set(ids)
        return try open { kept in
            let left = kept.entries.filter { !ids.contains($0.id) }
            let erased = kept.entries.count - left.count
            if erased > 0 { try write(left, &kept) }
            return erased
        }
    }

    public func eraseAll() throws -> Int {
        try open { kept in
            let count = kept.entries.count
            // The file first: the keeper of the key may not answer.
            try files.delete(path)
            kept.entries = []
            kept.length = nil
            kept.next = 1
            kept.aged = 0
            kept.then = nil
            try kept.seal.destroy()
            return count
        }
    }

    public func close() throws {
        try kept { kept in
            if kept.closed { return }
            try tidy(&kept)
            kept.closed = true
        }
    }

    // ---- parts

    private func open<Result>(_ body: (inout Kept) throws -> Result) throws -> Result {
        try kept { kept in
            if kept.closed { throw closedExamples("in \(path)") }
            return try body(&kept)
        }
    }

    /// Seconds that were seen to go by until a moment.
    private func age(_ kept: Kept, _ now: Moment) -> Double {
        guard let then = kept.then else { return kept.aged }
        if now.boot == then.boot, now.sinceBoot >= then.sinceBoot { return kept.aged + now.sinceBoot - then.sinceBoot }
        let most = (retention.maxAge ?? FileExampleStore.mostAtOnce) / 2
        return kept.aged + min(max(now.wall - then.wall, 0), most)
    }

    private func beyond(_ entries: [Entry], _ aged: Double) -> Int {
        retention.beyond(entries.map { (age: aged - $0.aged, bytes: $0.bytes) })
    }

    private func applyLimits(_ kept: inout Kept) throws {
        if kept.length == nil { return }
        if let most = retention.maxBytes { kept.entries.removeAll { $0.bytes > most } }
        kept.entries.removeFirst(beyond(kept.entries, age(kept, clock())))
    }

    /// Takes what limits removed out of the file; where the disk is full it stays a little longer.
    private func tidy(_ kept: inout Kept) throws {
        if kept.length == nil || kept.dead == 0 { return }
        do {
            try write(kept.entries, &kept)
        } catch let error as PFLError where error.code == .storageFull {
            return
        }
    }

    /// Writes the file anew with these examples; nothing is changed where that fails.
    private func write(_ entries: [Entry], _ kept: inout Kept) throws {
        let now = clock()
        let aged = age(kept, now)
        var bytes =
            FileExampleStore.magic + word(UInt64(kept.next)) + word(aged) + word(now.wall) + word(now.sinceBoot)
            + word(now.boot)
        let data = kept.length == nil ? Data() : try content()
        var moved: [Entry] = []
        for entry in entries {
            bytes += entry.head
            let start = bytes.count
            bytes += data[entry.sealed]
            moved.append(
                Entry(
                    id: entry.id, created: entry.created, aged: entry.aged, sealed: start..<bytes.count,
                    kind: entry.kind, head: entry.head))
        }
        try files.write(path, bytes)
        kept.entries = moved
        kept.length = bytes.count
        kept.aged = aged
        kept.then = now
    }

    private func append(_ bytes: [UInt8], at length: Int) throws {
        try diskErrors(path) {
            let file = try OpenFile.open(path, O_WRONLY | O_APPEND)
            // What a killed process left there.
            if try file.status().st_size != off_t(length) { try cut(file, length) }
            do {
                try files.disk.write(file, bytes)
                try files.disk.sync(file)
            } catch {
                try? cut(file, length)
                throw error
            }
        }
    }

    private func cut(_ file: OpenFile, _ length: Int) throws {
        if ftruncate(file.descriptor, off_t(length)) != 0 { throw SystemError.last(path) }
    }

    private func content() throws -> Data {
        do {
            return try map(path)
        } catch {
            throw damaged("\(error)")
        }
    }

    private func damaged(_ why: String) -> PFLError {
        PFLError(
            .state, "the examples in \(path) cannot be used: \(why)",
            mend: "restore the file from a copy; PersonalModel.erase(folder) removes them")
    }

    private func read(_ kept: inout Kept) throws {
        do {
            if try status(path) == nil { return }
        } catch {
            throw damaged("\(error)")
        }
        let data = try content()
        let start = data.prefix(8)
        guard data.count >= FileExampleStore.fileHead, start.elementsEqual(FileExampleStore.magic) else {
            if start.prefix(7).elementsEqual(FileExampleStore.magic.prefix(7)), data.count >= 8, data[7] > 0x31 {
                throw PFLError(.state, "the examples in \(path) are of a newer version", mend: "update the app")
            }
            throw damaged("it is no file of examples")
        }
        func number(_ at: Int) throws -> UInt64 {
            (0..<8).reduce(0) { $0 | UInt64(data[at + $1]) << UInt64(8 * $1) }
        }
        func float(_ at: Int) throws -> Double { Double(bitPattern: try number(at)) }
        func whole(_ at: Int, below: Int = 1 << 53) throws -> Int {
            guard let found = Int(exactly: try number(at)), found < below else {
                throw damaged("a number is too large")
            }
            return found
        }
        kept.next = max(try whole(8), 1)
        kept.aged = try float(16)
        kept.then = Moment(wall: try float(24), sinceBoot: try float(32), boot: try number(40))
        var at = FileExampleStore.fileHead
        var oldest = 0
        while at + FileExampleStore.headBytes <= data.count {
            let head = Array(data[at..<at + FileExampleStore.headBytes])
            // Reserved, but never written.
            if head.allSatisfy({ $0 == 0 }), data[at...].allSatisfy({ $0 == 0 }) { break }
            let id = try whole(at)
            let kind = try whole(at + 48, below: FileExampleStore.kinds.count)
            let length = try whole(at + 56, below: FileExampleStore.mostBytes + Seal.overhead + 1)
            if id <= kept.entries.last?.id ?? 0 || length < Seal.overhead {
                throw damaged("its parts do not follow each other")
            }
            let sealed = at + FileExampleStore.headBytes..<at + FileExampleStore.headBytes + length
            if sealed.upperBound > data.count { break }
            let aged = try float(at + 24)
            kept.entries.append(
                Entry(
                    id: id, created: try float(at + 16), aged: aged, sealed: sealed, kind: UInt64(kind), head: head))
            // Those that were moved by a later writing are older than what its head says.
            if id >= kept.next {
                oldest = max(oldest, try whole(at + 8))
                kept.next = id + 1
                kept.aged = aged
                kept.then = Moment(
                    wall: try float(at + 16), sinceBoot: try float(at + 32), boot: try number(at + 40))
            }
            at = sealed.upperBound
        }
        kept.length = at
        kept.entries.removeAll { $0.id < oldest }
    }
}

private func word(_ value: UInt64) -> [UInt8] { withUnsafeBytes(of: value.littleEndian) { Array($0) } }

private func word(_ value: Double) -> [UInt8] { word(value.bitPattern) }
