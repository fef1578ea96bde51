import Foundation
import Testing

@testable import PFLMobile

@Suite struct ModelIdTests {
    let vectors: JSON
    let table: [DeviceTensor]

    init() throws {
        vectors = try Vectors.read("model.json")
        table = try vectors["tensors"].table
    }

    @Test("the fingerprint is Python's")
    func fingerprint() throws {
        let id = ModelId(name: "any", version: "1", tensors: table)
        #expect(try id.fingerprint == vectors["fingerprint"].text)
        #expect(id == ModelId(name: "any", version: "1", tensors: table.reversed()))
        let other = String(repeating: "00", count: 32)
        #expect(id != ModelId(name: "any", version: "1", tensors: table, frozenSha256: other))
    }

    @Test("digests of tensors are Python's")
    func digests() throws {
        let digest = try vectors["digest"]
        #expect(try Sealed.digest(digest["tensors"].tensors, digest["text"].text) == digest["sha256"].text)
    }
}

@Suite struct PersonalStateStoreTests {
    let folder: TemporaryFolder
    let model = ModelId(name: "toy", version: "1", fingerprint: String(repeating: "ab", count: 32))

    init() throws {
        folder = try TemporaryFolder()
    }

    private func store(
        _ disk: any Disk = RealDisk(), keep: Int = 5, at: String = "state"
    ) throws -> PersonalStateStore {
        try PersonalStateStore(
            folder(at), model: model, keep: keep, clock: { 1.7e9 }, disk: disk, waitSeconds: 0)
    }

    private func state(_ value: Float) -> PersonalState {
        PersonalState(
            tensors: ["a": .float(FloatTensor([value], [1])), "n": .long(LongTensor([7], []))],
            copies: ["mine": ["a:b": .float(FloatTensor([-value], [1]))]], words: ["zoë"],
            metrics: ["loss": Double(value), "none": .nan])
    }

    private func value(_ loaded: LoadedState) -> Float? { loaded.state?.tensors["a"]?.float?.values.first }

    @Test("Python's file is read, and written byte for byte")
    func file() throws {
        let want = try Vectors.read("state.json")
        let path = "\(Vectors.folder)/state.safetensors"
        let found = try StateFile(reading: path)
        #expect(try [found.model.name, found.model.version, found.model.fingerprint] == want["model"].texts)
        #expect(try found.state.words == want["words"].texts)
        #expect(try found.parent == want["parent"].int)
        for (name, metric) in try want["metrics"].fields { #expect(found.state.metrics[name] == metric.number) }
        for (name, tensor) in try want["tensors"].tensors { expectBits(tensor, found.state.tensors[name], name) }
        expectBits(try want["copies"]["mine"]["a"].tensor, found.state.copies["mine"]?["a"], "a copy")
        #expect(try found.encode() == readBytes(path))
    }

    @Test("folders of Python, damaged in every way, give what they give there")
    func damaged() throws {
        let vectors = try Vectors.read("states.json")
        let about = try vectors["about"]
        let id = try about["model"].texts
        let cases = try vectors["cases"].items
        for (index, vector) in cases.enumerated() {
            let place = folder("\(index)")
            for (file, data) in try about["folder"].fields {
                try Damage.write("\(place)/\(file)", try #require(data.string.flatMap(fromHex)))
            }
            for step in try vector["steps"].items { try Damage.apply(step, place) }
            let store = try PersonalStateStore(
                URL(fileURLWithPath: place), model: ModelId(name: id[0], version: id[1], fingerprint: id[2]))
            if let carry = vector.maybe("carry_over") {
                try store.carryOver(
                    sameWeights: carry.maybe("same_weights") == .bool(true),
                    discard: carry.maybe("discard") == .bool(true))
            }
            try check(store, vector["outcome"], vector["name"].text, blocked: vector.maybe("ask") != nil)
        }
        #expect(cases.count > 70)
    }

    private func check(_ store: PersonalStateStore, _ want: JSON, _ name: String, blocked: Bool) throws {
        do {
            if blocked {
                let words = try store.blocked()
                let hides = want.maybe("hides")
                #expect(hides != nil, "\(name): no error")
                for (word, hidden) in hides?.object ?? JSONObject() {
                    #expect(words.hides(word) == hidden.bool, "\(name): \(word)")
                }
                return
            }
            let found = try store.load()
            #expect(want.maybe("code") == nil, "\(name): no error")
            guard want.maybe("code") == nil else { return }
            let state = found.state ?? PersonalState(tensors: [:])
            let copies = state.copies.flatMap { copy, values in values.keys.map { "\(copy):\($0)" } }
            #expect(try found.version == want["version"].int, "\(name)")
            let warned = found.warnings.map { [$0.version, $0.used] }
            #expect(try warned == want["warned"].items.map { try $0.flat }, "\(name)")
            #expect(try state.words == want["words"].texts, "\(name)")
            #expect(try state.metrics.keys.sorted() == want["metrics"].texts, "\(name)")
            #expect(try (state.tensors.keys + copies).sorted() == want["tensors"].texts, "\(name)")
        } catch let error as PFLError {
            #expect(want.maybe("code")?.string == error.code.rawValue, "\(name): \(error)")
        }
    }

    @Test("the fingerprint of a bundle is Python's")
    func bundleId() throws {
        let bundle = try ModelBundle.open(URL(fileURLWithPath: "\(Vectors.folder)/bundles/small.pflb"))
        let id = ModelId(bundle.manifest)
        let want = try Vectors.read("states.json")["about"]["small"].texts
        #expect([id.name, id.version, id.fingerprint] == want)
    }

    @Test("versions are saved, listed, reverted to and pruned")
    func versions() throws {
        let store = try store(keep: 2)
        #expect(try store.load().state == nil)
        for n in 1...4 { #expect(try store.save(state(Float(n))) == n) }
        #expect(try store.versions().map(\.version) == [3, 4])
        let last = VersionInfo(version: 4, parent: 3, created: 1.7e9, metrics: ["loss": 4], current: true)
        #expect(try store.versions().last == last)
        let loaded = try store.load()
        #expect(value(loaded) == 4)
        #expect(loaded.state?.copies["mine"]?["a:b"]?.float?.values == [-4])
        #expect(try store.revert() == 3)
        #expect(try value(store.load()) == 3)
        #expect(try store.save(state(5)) == 5)
        #expect(try store.versions().map(\.version) == [3, 4, 5])
        #expect(try store.revert() == 3)
        try store.reset()
        #expect(try store.load().state == nil)
        expectError(.state) { try store.revert() }
        expectError(.state) { try store.revert(99) }
        #expect(try store.revert(5) == 5)
        let written = try store.write(state(6))
        #expect(try value(store.load()) == 5)
        try store.adopt(written)
        #expect(try value(store.load()) == 6)
        expectError(.state) { try store.adopt(7) }
        for name in try namesIn(folder("state")) {
            #expect(try #require(try status(folder("state/\(name)"))).st_mode & 0o777 == 0o600, "\(name)")
        }
    }

    @Test("a writer that ends at any step keeps a whole state, old or new")
    func everyStep() throws {
        var steps = 0
        while true {
            let at = "\(steps)"
            for n in 1...3 { _ = try store(keep: 1, at: at).save(state(Float(n))) }
            var done = true
            do {
                _ = try store(FailingDisk(after: steps, EIO), keep: 1, at: at).save(state(4))
            } catch is PFLError {
                done = false
            }
            let after = try store(keep: 1, at: at)
            let loaded = try after.load()
            #expect(loaded.warnings.isEmpty, "step \(steps)")
            #expect(value(loaded) == 4 || (!done && value(loaded) == 3), "step \(steps)")
            // Another training goes on from there, and nothing is left of the one before.
            _ = try after.save(state(9))
            #expect(try value(after.load()) == 9, "step \(steps)")
            #expect(try after.versions().count <= 2, "step \(steps)")
            #expect(try after.versions().allSatisfy { $0.problem == nil }, "step \(steps)")
            if done { break }
            steps += 1
        }
        // Two files of six steps each, and what is pruned.
        #expect(steps >= 13)
    }

    @Test("NaN is not written")
    func notFinite() throws {
        let store = try store()
        _ = try store.save(state(1))
        expectError(.nonFinite) { _ = try store.save(state(.nan)) }
        #expect(try value(store.load()) == 1)
        #expect(try namesIn(folder("state")) == [".lock", "000001.safetensors", "CURRENT"])
    }

    @Test("another who changes the state is waited for, then named")
    func held() throws {
        let one = try store()
        try one.hold {
            expectError(.state) { _ = try store().save(state(1)) }
            _ = try one.save(state(1))
            expectError(.state) { try store().reset() }
        }
        #expect(try store().save(state(2)) == 2)
    }

    @Test("forgotten words are not saved again, and rewriting leaves nothing of them")
    func forgotten() throws {
        let store = try store()
        for n in 1...2 { _ = try store.save(state(Float(n))) }
        try store.block(["zoë"])
        #expect(try self.store().blocked().hides("zoë's"))
        expectError(.state) { _ = try store.save(state(3)) }
        try Damage.write(folder("state/000009.safetensors"), [1])
        try Damage.write(folder("state/checkpoint"), [1])
        try Damage.write(folder("state/.000001.safetensors.0123456789ab.tmp"), Array("zoë".utf8))
        let before = try store.versions().filter { $0.problem == nil }
        let kept = try store.rewrite { state in
            var state = state
            state.words = []
            return state
        }
        #expect(kept == [1, 2])
        #expect(try store.versions() == before)
        #expect(try store.load().state?.words == [])
        #expect(
            try namesIn(folder("state")) == [
                ".lock", "000001.safetensors", "000002.safetensors", "CURRENT", "FORGOTTEN",
            ])
        try store.erase()
        #expect(try namesIn(folder("state")) == [".lock"])
        #expect(try store.load().state == nil)
    }

    @Test("what an earlier version of the bundle learned is carried over")
    func carriedOver() throws {
        _ = try store().save(state(1))
        let next = ModelId(name: "toy", version: "2", fingerprint: model.fingerprint)
        let other = ModelId(name: "toy", version: "2", fingerprint: "cd")
        func opened(_ id: ModelId) throws -> PersonalStateStore {
            try PersonalStateStore(URL(fileURLWithPath: folder("state")), model: id)
        }
        expectError(.state) { _ = try opened(next).load() }
        try opened(other).carryOver(sameWeights: true, discard: false)
        expectError(.state) { _ = try opened(other).load() }
        try opened(next).carryOver(sameWeights: true, discard: true)
        #expect(try value(opened(next).load()) == 1)
        try opened(other).carryOver(sameWeights: true, discard: true)
        #expect(try opened(other).load().state == nil)
    }
}
