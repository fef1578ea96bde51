import Foundation
import Testing

@testable import PFLMobile

/// A disk that fails at the step with a number, as when the process were killed there or the disk were full.
final class FailingDisk: Disk, @unchecked Sendable {
    let real = RealDisk()
    var left: Int
    let number: Int32

    init(after steps: Int, _ number: Int32) {
        left = steps
        self.number = number
    }

    private func step() throws {
        left -= 1
        if left < 0 { throw SystemError(number: number, what: "a test") }
    }

    func create(_ path: String) throws -> OpenFile {
        try step()
        return try real.create(path)
    }

    func write(_ file: OpenFile, _ data: [UInt8]) throws {
        try step()
        try real.write(file, Array(data.prefix(data.count / 2)))
        try step()
        try real.write(file, Array(data.dropFirst(data.count / 2)))
    }

    func sync(_ file: OpenFile) throws { try step() }

    func rename(_ from: String, _ to: String) throws {
        try step()
        try real.rename(from, to)
    }

    func syncFolder(_ folder: String) throws { try step() }

    func delete(_ path: String) throws {
        try step()
        try real.delete(path)
    }
}

@Suite struct AtomicFilesTests {
    @Test("a file has its old bytes or the new ones, wherever the writing ends")
    func everyStep() throws {
        let folder = try TemporaryFolder()
        let path = folder("file")
        let old = Array("old".utf8)
        let new = Array("newer".utf8)
        for steps in 0..<6 {
            try AtomicFiles().write(path, old)
            let disk = FailingDisk(after: steps, ENOSPC)
            expectError(.storageFull, "\(steps)") { try AtomicFiles(disk).write(path, new) }
            #expect(try readBytes(path) == (steps < 5 ? old : new), "\(steps)")
        }
        try AtomicFiles(FailingDisk(after: 6, ENOSPC)).write(path, new)
        #expect(try namesIn(folder.path) == ["file"])
        #expect(try #require(try status(path)).st_mode & 0o777 == 0o600)
    }

    @Test("leftovers of killed writers go, those in use stay")
    func leftovers() throws {
        let folder = try TemporaryFolder()
        let ours = folder(".file.0123456789ab.tmp")
        let used = folder(".file.0123456789ac.tmp")
        let other = folder(".other.0123456789ab.tmp")
        for path in [ours, used, other] { try RealDisk().write(try RealDisk().create(path), [1]) }
        let writer = try OpenFile.open(used, O_WRONLY)
        #expect(writer.lock())
        try AtomicFiles().write(folder("file"), [2])
        #expect(try namesIn(folder.path) == [name(of: used), name(of: other), "file"])
        try withExtendedLifetime(writer) { try AtomicFiles().removeStale(folder("file"), ofAll: true) }
        #expect(try namesIn(folder.path) == [name(of: used), "file"])
    }

    @Test("what cannot be written is said")
    func unwritable() throws {
        let folder = try TemporaryFolder()
        expectError(.unwritable) { try AtomicFiles().write(folder("missing/file"), [1]) }
        expectError(.unwritable) { try privateFolder("/dev/null/folder") { _ in true } }
        try privateFolder(folder("a/b")) { _ in true }
        #expect(try #require(try status(folder("a"))).st_mode & 0o777 == 0o700)
    }

    @Test("a lock keeps out the next, and ends")
    func lock() throws {
        let folder = try TemporaryFolder()
        var first = try FolderLock.take(folder.path, seconds: 0)
        #expect(first != nil)
        #expect(try FolderLock.take(folder.path, seconds: 0.05) == nil)
        first = nil
        #expect(try FolderLock.take(folder.path, seconds: 0) != nil)
    }

    @Test("a lock as Python takes it and one as Kotlin takes it each keep out")
    func locksOfOthers() throws {
        let folder = try TemporaryFolder()
        var python: OpenFile? = try OpenFile.open(folder.path, O_RDONLY)
        #expect(python?.lock() == true)
        #expect(try FolderLock.take(folder.path, seconds: 0) == nil)
        python = nil
        #if os(Linux)  // where Java's locks are another kind
            var kotlin: OpenFile? = try OpenFile.open(folder(".lock"), O_RDWR | O_CREAT)
            #expect(kotlin?.lockAsJava() == true)
            #expect(try FolderLock.take(folder.path, seconds: 0) == nil)
            kotlin = nil
        #endif
        #expect(try FolderLock.take(folder.path, seconds: 0) != nil)
    }

    @Test("only regular files are read")
    func regular() throws {
        let folder = try TemporaryFolder()
        #expect(throws: Malformed.self) { try readBytes(folder.path) }
        #expect(mkfifo(folder("pipe"), 0o600) == 0)
        #expect(throws: Malformed.self) { try map(folder("pipe")) }
        #expect(throws: SystemError.self) { try readBytes(folder("missing")) }
        try AtomicFiles().write(folder("empty"), [])
        #expect(try map(folder("empty")).isEmpty)
        #expect(throws: Malformed.self) { try readBytes("\(Vectors.folder)/README.md", most: 10) }
    }
}
