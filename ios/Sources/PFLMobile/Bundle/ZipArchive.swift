import Foundation

/// An entry as the directory at the end of a zip has it; nothing of it was checked.
struct ZipItem: Sendable {
    let name: String
    let flags: Int
    let method: Int
    let crc: UInt32
    let packed: Int
    let size: Int
    let offset: Int
    /// Kind and permissions of a file on Unix; 0 where the zip has none.
    let mode: Int

    var isFolder: Bool { name.hasSuffix("/") }
}

/// A zip without encryption, without zip64 and on one disk (APPNOTE.TXT of PKWARE, 6.3). Foundation has no reader of zips.
/// What is no zip, or damaged, is `Malformed`; where the system refuses to read, `SystemError`.
struct ZipArchive: Sendable {
    static let stored = 0
    static let deflated = 8
    static let encrypted = 1
    private static let patched = 0x20
    private static let strong = 0x40
    private static let utf8 = 0x800
    private static let chunk = 1 << 16
    private static let local = 30
    private static let central = 46
    private static let end = 22
    private static let mostVersion = 63
    private static let mostDirectory = 64 << 20

    let items: [ZipItem]
    private let file: OpenFile

    /// Reads the directory of a zip.
    init(_ file: OpenFile) throws {
        self.file = file
        let length = Int(try file.status().st_size)
        let (record, at) = try ZipArchive.endRecord(file, length)
        let size = record.int(12)
        let shift = at - size - record.int(16)
        let start = record.int(16) + shift
        if start < 0 { throw Malformed("bad offset of its directory") }
        if size > ZipArchive.mostDirectory { throw Malformed("its directory has \(size) bytes") }
        let directory = try bytes(file, start, size)
        var items: [ZipItem] = []
        var place = 0
        while place < directory.count {
            let (item, next) = try ZipArchive.item(directory, place, shift)
            items.append(item)
            place = next
        }
        self.items = items
    }

    /// Gives the content of an entry in pieces; false ends the reading.
    func read(_ item: ZipItem, _ piece: (ArraySlice<UInt8>) throws -> Bool) throws {
        let header = try bytes(file, item.offset, ZipArchive.local)
        if header.int(0) != 0x0403_4b50 { throw Malformed("bad magic number of its header") }
        let nameLength = header.short(26)
        let name = try ZipArchive.name(
            try bytes(file, item.offset + ZipArchive.local, nameLength)[...], header.short(6))
        if item.flags & (ZipArchive.patched | ZipArchive.strong | ZipArchive.encrypted) != 0 {
            throw Malformed("it is encrypted or patched")
        }
        if Exact(name) != Exact(item.name) { throw Malformed("it has another name in its header") }
        let start = item.offset + ZipArchive.local + nameLength + header.short(28)
        var crc = Crc32()
        var left = item.size
        var whole = true
        try unpacked(item, start) { data in
            let fits = data.prefix(left)
            crc.add(fits)
            left -= fits.count
            whole = fits.isEmpty ? true : try piece(fits)
            return whole && left > 0
        }
        if whole && crc.value != item.crc { throw Malformed("its CRC-32 is another") }
    }

    private func unpacked(_ item: ZipItem, _ start: Int, _ piece: (ArraySlice<UInt8>) throws -> Bool) throws {
        var at = start
        var left = item.packed
        let next: () throws -> ArraySlice<UInt8> = {
            let count = min(left, ZipArchive.chunk)
            if count == 0 { return [] }
            defer {
                at += count
                left -= count
            }
            return try bytes(file, at, count)[...]
        }
        if item.method == ZipArchive.stored {
            while left > 0 { if try !piece(try next()) { return } }
        } else {
            try withoutActuallyEscaping(next) { next in
                var inflate = Inflate(next)
                try inflate.run(piece)
            }
        }
    }

    /// The record at the end, and where it is: behind it there may be a comment.
    private static func endRecord(_ file: OpenFile, _ length: Int) throws -> (ArraySlice<UInt8>, Int) {
        let from = max(length - end - 1 << 16, 0)
        let tail = try bytes(file, from, length - from)
        let last = tail.count - end
        let magic: [UInt8] = [0x50, 0x4b, 5, 6]
        func isRecord(_ at: Int) -> Bool { tail[at..<at + 4].elementsEqual(magic) }
        if last >= 0, isRecord(last), tail[last...].short(20) == 0 { return (tail[last...], from + last) }
        guard let found = stride(from: tail.count - 4, through: 0, by: -1).first(where: isRecord), found <= last else {
            throw Malformed("it is not a zip")
        }
        return (tail[found..<found + end], from + found)
    }

    private static func item(_ all: [UInt8], _ at: Int, _ shift: Int) throws -> (ZipItem, Int) {
        guard all.count - at >= central else { throw Malformed("its directory is cut short") }
        let entry = all[at...]
        if entry.int(0) != 0x0201_4b50 { throw Malformed("bad magic number in its directory") }
        let flags = entry.short(8)
        let nameEnd = at + central + entry.short(28)
        let extraEnd = nameEnd + entry.short(30)
        let next = extraEnd + entry.short(32)
        guard next <= all.count else { throw Malformed("its directory is cut short") }
        if entry[at + 6] > mostVersion { throw Malformed("it is of a newer kind of zip") }
        var extra = nameEnd
        while extraEnd - extra >= 4 {
            extra += 4 + all[extra...].short(2)
            if extra > extraEnd { throw Malformed("an extra field is cut short") }
        }
        let item = ZipItem(
            name: try name(all[at + central..<nameEnd], flags), flags: flags, method: entry.short(10),
            crc: UInt32(entry.int(16)), packed: entry.int(20), size: entry.int(24), offset: entry.int(42) + shift,
            mode: entry.short(40))
        return (item, next)
    }

    private static func name(_ bytes: ArraySlice<UInt8>, _ flags: Int) throws -> String {
        if flags & utf8 != 0 { return try PFLMobile.utf8(bytes) }
        // Not the code page of DOS: what is not ASCII is refused whatever it means.
        return String(String.UnicodeScalarView(bytes.map { Unicode.Scalar($0) }))
    }
}

/// So many bytes of a file from a place on.
private func bytes(_ file: OpenFile, _ at: Int, _ count: Int) throws -> [UInt8] {
    let size = Int(try file.status().st_size)
    guard at >= 0, count <= size, at <= size - count else { throw Malformed("it is cut short") }
    var data = [UInt8](repeating: 0, count: count)
    var have = 0
    while have < count {
        let got = data.withUnsafeMutableBytes {
            pread(file.descriptor, $0.baseAddress?.advanced(by: have), count - have, off_t(at + have))
        }
        if got < 0 && errno == EINTR { continue }
        if got < 0 { throw SystemError.last("read") }
        if got == 0 { throw Malformed("it is cut short") }
        have += got
    }
    return data
}

extension RandomAccessCollection where Element == UInt8, Index == Int {
    /// Two bytes from a place on, little-endian.
    fileprivate func short(_ at: Int) -> Int {
        Int(self[startIndex + at]) | Int(self[startIndex + at + 1]) << 8
    }

    /// Four bytes from a place on, little-endian.
    fileprivate func int(_ at: Int) -> Int {
        short(at) | short(at + 2) << 16
    }
}
