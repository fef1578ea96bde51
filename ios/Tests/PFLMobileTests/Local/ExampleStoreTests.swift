import Foundation
import Testing

@testable import PFLMobile

/// A key that can be lost.
private final class TestKey: DataKey {
    let state = Locked((key: [UInt8](repeating: 1, count: 32), destroyed: 0))

    func bytes() -> [UInt8] { state { $0.key } }

    func destroy() { state { $0.destroyed += 1 } }

    func lose() { state { $0.key[0] += 1 } }
}

/// A disk with room for so many bytes more.
private final class FullDisk: Disk {
    let real = RealDisk()
    let left: Locked<Int>

    init(room: Int) { left = Locked(room) }

    func create(_ path: String) throws -> OpenFile { try real.create(path) }

    func write(_ file: OpenFile, _ data: [UInt8]) throws {
        let fits = left { left in
            defer { left = max(left - data.count, 0) }
            return min(left, data.count)
        }
        try real.write(file, Array(data.prefix(fits)))
        if fits < data.count { throw SystemError(number: ENOSPC, what: "a test") }
    }

    func sync(_ file: OpenFile) throws { try real.sync(file) }
    func rename(_ from: String, _ to: String) throws { try real.rename(from, to) }
    func syncFolder(_ folder: String) throws { try real.syncFolder(folder) }
    func delete(_ path: String) throws { try real.delete(path) }
}

@Suite struct FileExampleStoreTests {
    private let folder: TemporaryFolder
    private let key = TestKey()
    private let now = Locked(Moment(wall: 1e9, sinceBoot: 100, boot: 1))

    init() throws { folder = try TemporaryFolder() }

    private var path: String { folder("examples") }

    private func open(_ retention: Retention = .standard, disk: any Disk = RealDisk()) throws -> FileExampleStore {
        let now = now
        return try FileExampleStore(path, retention, key, disk: disk) { now.now }
    }

    private func texts(_ store: any ExampleStore, newest: Int? = nil) throws -> [String] {
        try store.examples(newest: newest).compactMap { if case .text(let text) = $0.payload { text } else { nil } }
    }

    private func pass(_ seconds: Double) {
        now {
            $0.wall += seconds
            $0.sinceBoot += seconds
        }
    }

    private var size: Int { (try? status(path).map { Int($0.st_size) }) ?? 0 }

    @Test("examples are kept in order, over a restart, and unreadable on the disk")
    func kept() throws {
        let store = try open()
        #expect(try store.count() == 0)
        #expect(try status(path) == nil)
        let ids = try ["see you", "at the zorp", "\u{1F44B}"].map { try #require(try store.add(.text($0))) }
        let again = try open()  // without closing, as after a kill
        #expect(try again.examples(newest: nil).map(\.id) == ids)
        #expect(try texts(again) == ["see you", "at the zorp", "\u{1F44B}"])
        #expect(try texts(again, newest: 1) == ["\u{1F44B}"])
        #expect(try again.examples(newest: nil).first?.created == 1e9)
        #expect(Data(try readBytes(path)).range(of: Data("zorp".utf8)) == nil)
        #expect(try again.erase([ids[1], 99]) == 1)
        #expect(try texts(again) == ["see you", "\u{1F44B}"])
        #expect(try texts(try open()) == ["see you", "\u{1F44B}"])
    }

    @Test("ids are not used again, though the newest are erased and it is opened again")
    func ids() throws {
        let store = try open()
        let first = try #require(try store.add(.text("a")))
        let second = try #require(try store.add(.text("b")))
        _ = try store.erase([first, second])
        #expect(try #require(try open().add(.text("c"))) > second)
    }

    @Test("arrays come back as they were")
    func arrays() throws {
        let store = try open()
        let tensor = Tensor.float(FloatTensor([1, -0.0], [1, 2]))
        _ = try store.add(.arrays(["x": tensor]))
        guard case .arrays(let found)? = try store.examples(newest: nil).first?.payload else {
            Issue.record("no arrays")
            return
        }
        #expect(found["x"]?.sameBits(tensor) == true)
    }

    @Test("the limits hold at each addition and at each opening, the oldest go first")
    func limits() throws {
        let store = try open(try Retention(maxExamples: 3))
        for number in 0..<5 { _ = try store.add(.text("\(number)")) }
        #expect(try texts(store) == ["2", "3", "4"])
        #expect(try texts(try open()) == ["2", "3", "4"])
        #expect(try texts(try open(try Retention(maxExamples: 2))) == ["3", "4"])
        let bytes = try open(try Retention(maxBytes: 8))
        _ = try bytes.add(.text("123456"))
        #expect(try texts(bytes) == ["3", "4", "123456"])
        _ = try bytes.add(.text("ab"))
        #expect(try texts(bytes) == ["123456", "ab"])
        #expect(try bytes.add(.text("longer than all of it")) == nil)
        #expect(try texts(bytes) == ["123456", "ab"])
        expectError(.data) { _ = try bytes.add(.text(String(repeating: "x", count: 2 << 20))) }
        expectError(.config) { _ = try Retention(maxExamples: 0) }
    }

    @Test("what limits removed stays removed after a kill, and the file does not grow for ever")
    func dropped() throws {
        let store = try open(try Retention(maxExamples: 2))
        let text = String(repeating: "x", count: 5000)
        for number in 0..<100 { _ = try store.add(.text("\(number) \(text)")) }
        #expect(size < 100_000, "\(size)")
        #expect(try open().count() == 2)
        #expect(try open().examples(newest: nil).map(\.id) == [99, 100])
    }

    @Test("old examples go")
    func old() throws {
        let store = try open(try Retention(maxAge: 100))
        _ = try store.add(.text("old"))
        pass(60)
        _ = try store.add(.text("new"))
        pass(60)
        _ = try store.add(.text("newest"))
        #expect(try texts(store) == ["new", "newest"])
        pass(1000)
        #expect(try open(try Retention(maxAge: 100)).count() == 0)
        #expect(size == 48)
    }

    @Test("a clock that jumps makes nothing old")
    func jumps() throws {
        let limit = try Retention(maxAge: 100)
        let store = try open(limit)
        _ = try store.add(.text("kept"))
        now { $0.wall = 9e9 }  // the user sets a date far away
        _ = try store.add(.text("far"))
        now { $0.wall = 1e3 }  // and back before it
        _ = try store.add(.text("back"))
        #expect(try store.count() == 3)
        now { $0 = Moment(wall: 9e9, sinceBoot: 1, boot: 2) }  // a wrong date after a restart
        #expect(try open(limit).count() == 3)
        now { $0 = Moment(wall: 5e8, sinceBoot: 1, boot: 3) }
        #expect(try open(limit).count() == 3)
    }

    @Test("a lost key loses the examples and nothing else")
    func lostKey() throws {
        _ = try open().add(.text("see you"))
        key.lose()
        let store = try open()
        #expect(try store.count() == 1)
        #expect(try texts(store) == [])
        #expect(try store.count() == 0)
        _ = try store.add(.text("again"))
        #expect(try texts(store) == ["again"])
    }

    @Test("erased, no file is left, and it can be used on")
    func erased() throws {
        let store = try open()
        _ = try store.add(.text("see you"))
        #expect(try store.eraseAll() == 1)
        #expect(try namesIn(folder.path) == [])
        #expect(key.state { $0.destroyed } == 1)
        #expect(try store.count() == 0)
        _ = try store.add(.text("again"))
        #expect(try texts(store) == ["again"])
    }

    @Test("a full disk changes nothing, wherever it is full")
    func full() throws {
        _ = try open().add(.text("first"))
        for room in 0..<140 {
            let store = try open(disk: FullDisk(room: room))
            expectError(.storageFull, "\(room)") { _ = try store.add(.text(String(repeating: "x", count: 60))) }
            #expect(try texts(store) == ["first"])
            expectError(.storageFull, "\(room)") { _ = try store.erase([1]) }
            #expect(try texts(store) == ["first"])
        }
        #expect(try texts(try open()) == ["first"])
    }

    @Test("what a kill cut off is left out, and the next one is kept")
    func cutOff() throws {
        let store = try open()
        _ = try store.add(.text("first"))
        let whole = size
        _ = try store.add(.text("second"))
        let bytes = try readBytes(path)
        for length in whole..<bytes.count {
            try Data(bytes.prefix(length)).write(to: URL(fileURLWithPath: path))
            #expect(try texts(try open()) == ["first"])
        }
        try (Data(bytes.prefix(whole)) + Data(count: 90)).write(to: URL(fileURLWithPath: path))
        let again = try open()
        #expect(try texts(again) == ["first"])
        _ = try again.add(.text("third"))
        #expect(try texts(try open()) == ["first", "third"])
    }

    @Test("every changed byte is seen: an example is lost or the file refused, and none is made up")
    func changed() throws {
        let store = try open()
        for text in ["first", "second"] { _ = try store.add(.text(text)) }
        let bytes = try readBytes(path)
        for place in 48..<bytes.count {
            var other = bytes
            other[place] ^= 0x40
            try Data(other).write(to: URL(fileURLWithPath: path))
            do {
                let found = try texts(try open())
                #expect(found.count < 2 && found.allSatisfy { ["first", "second"].contains($0) }, "\(place): \(found)")
            } catch let error as PFLError {
                #expect(error.code == .state)
            }
        }
    }

    @Test("a damaged file is said and not removed, a newer and a closed one are refused")
    func damaged() throws {
        let store = try open()
        _ = try store.add(.text("see you"))
        try store.close()
        expectError(.state) { _ = try store.count() }
        var bytes = try readBytes(path)
        bytes[7] = UInt8(ascii: "2")
        try Data(bytes).write(to: URL(fileURLWithPath: path))
        expectError(.state) { _ = try open() }
        try Data(repeating: 7, count: 8192).write(to: URL(fileURLWithPath: path))
        do {
            _ = try open()
            Issue.record("it was opened")
        } catch let error as PFLError {
            #expect(error.mend.contains("erase"))
        }
        #expect(size == 8192)
    }

    @Test("a key file is made, kept and destroyed")
    func keyFile() throws {
        let key = FileKey(URL(fileURLWithPath: folder("key")))
        let bytes = try key.bytes()
        #expect(bytes.count == 32)
        #expect(try key.bytes() == bytes)
        #expect(try status(folder("key")).map { $0.st_mode & 0o777 } == 0o600)
        try key.destroy()
        #expect(try key.bytes() != bytes)
    }

    @Test("the store in memory keeps the same limits")
    func inMemory() throws {
        let now = now
        let store = InMemoryExampleStore(try Retention(maxExamples: 3, maxAge: 100, maxBytes: 8)) { now { $0.wall } }
        for number in 0..<5 { _ = try store.add(.text("\(number)")) }
        #expect(try texts(store) == ["2", "3", "4"])
        #expect(try store.add(.text("longer than all of it")) == nil)
        _ = try store.add(.text("1234567"))
        #expect(try texts(store) == ["4", "1234567"])
        #expect(try store.erase([5]) == 1)
        pass(101)
        #expect(try texts(store) == [])
        #expect(try store.eraseAll() == 0)
        store.close()
        expectError(.state) { _ = try store.count() }
    }
}
