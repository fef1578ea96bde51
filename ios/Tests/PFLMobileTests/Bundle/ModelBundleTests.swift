import Foundation
import Testing

@testable import PFLMobile

@Suite struct ModelBundleTests {
    let vectors: JSON
    let small = URL(fileURLWithPath: "\(Vectors.folder)/bundles/small.pflb")
    let folder: TemporaryFolder

    init() throws {
        vectors = try Vectors.read("bundles.json")
        folder = try TemporaryFolder()
    }

    private func key(_ name: String) throws -> VerificationKey { try VerificationKey(try vectors["keys"][name].text) }

    private func url(_ name: String) -> URL { URL(fileURLWithPath: folder(name)) }

    @Test("every damage has Python's code")
    func damage() throws {
        let cases = try vectors["cases"].items
        for (index, vector) in cases.enumerated() {
            let name = "\(try vector["bundle"].text), \(try vector["name"].text)"
            let found = try code(vector, "\(index)", name)
            #expect(try found == vector["code"].string, "\(name)")
        }
        #expect(cases.count > 300)
    }

    private func code(_ vector: JSON, _ index: String, _ name: String) throws -> String? {
        let base = folder("\(index)/it")
        let cache = folder("\(index)/cache")
        try FileManager.default.createDirectory(atPath: cache, withIntermediateDirectories: true)
        if try vector["bundle"].text == "small" {
            try Damage.unpackSmall(base)
        } else {
            try FileManager.default.copyItem(atPath: small.path, toPath: base)
        }
        for step in try vector["steps"].items { try Damage.apply(step, base) }
        var code: String?
        do {
            let bundle = try ModelBundle.open(
                URL(fileURLWithPath: base), publicKey: try vector.maybe("key")?.string.map(key),
                requireSignature: vector.maybe("require")?.bool ?? false, cacheFolder: URL(fileURLWithPath: cache),
                maxBytes: vector.maybe("max_bytes")?.integer ?? ModelBundle.maxBytes)
            switch vector.maybe("ask")?.string {
            case "values": _ = try bundle.values()
            case "golden": _ = try bundle.golden()
            case "plan": _ = try bundle.planJSON()
            default: break
            }
        } catch let error as PFLError {
            code = error.code.rawValue
        } catch {
            Issue.record("\(name): \(error)")
        }
        #expect(try namesIn(cache).isEmpty, "left behind by \(name)")
        return code
    }

    @Test("a zip is unpacked, and removed when nobody holds the bundle")
    func unpacked() throws {
        var done: [Int] = []
        let program: String
        do {
            let bundle = try ModelBundle.open(small, publicKey: try key("right"), cacheFolder: url("")) { _, bytes, _ in
                done.append(bytes)
            }
            #expect(bundle.pinned)
            #expect(try bundle.signedBy == key("right").hex)
            #expect(done.last == bundle.manifest.measured.totalBytes)
            #expect(try bundle.tokenizer() == Data("{}".utf8))
            #expect(try Set(bundle.values().keys) == ["a.lora_A", "é"])
            #expect(try bundle.golden()["gradients"]?.inputs["a.lora_A"]?.shape == [3, 2])
            program = try #require(try bundle.engineFiles("onnxruntime")["gradients"])
            #expect(try readBytes(program) == Array("no program".utf8))
        }
        #expect(try status(program) == nil)
        #expect(try namesIn(folder.path).isEmpty)
    }

    @Test("a manifest says what is in it")
    func manifest() throws {
        let bundle = try ModelBundle.open(small)
        #expect(!bundle.pinned)
        let manifest = bundle.manifest
        #expect(manifest.encoder == .text(.init(length: 4, batch: 2, vocabulary: 10, slots: 2)))
        #expect(
            manifest.tensors[1]
                == DeviceTensor(
                    name: "é", role: .group, group: "team", shape: [2], dtype: .float32, update: .assign, module: nil))
        #expect(manifest.limits == BundleLimits(maxExamples: 100))
        #expect(manifest.task == TaskEntry(kind: .tokens, metrics: ["top1"], vocabulary: 12))
        #expect(try manifest.batchInputs("gradients").map(\.name) == ["tokens", "weight"])
        #expect(manifest.plan == "plan.json")
        expectError(.unknownName) { _ = try manifest.program("gradient") }
        expectError(.missingFile) { _ = try bundle.path("manifest.json") }
    }

    @Test("what is changed after the opening is noticed")
    func changed() throws {
        let base = folder("it")
        try Damage.unpackSmall(base)
        let bundle = try ModelBundle.open(URL(fileURLWithPath: base))
        let file = try bundle.path("tensors.safetensors")
        var data = try readBytes(file)
        data[data.count - 1] = 1
        try Damage.write(file, data)
        expectError(.tamperedBundle) { _ = try bundle.values() }
        expectError(.tamperedBundle) { _ = try bundle.golden() }
    }

    @Test("a listener that throws ends the reading and leaves nothing")
    func listener() throws {
        struct Stop: Error {}
        #expect(throws: Stop.self) {
            try ModelBundle.open(small, cacheFolder: url("")) { _, _, _ in throw Stop() }
        }
        #expect(try namesIn(folder.path).isEmpty)
    }

    @Test("a real bundle of Python opens")
    func real() throws {
        let arrays = URL(fileURLWithPath: "\(Vectors.folder)/bundles/arrays")
        let bundle = try ModelBundle.open(arrays, publicKey: try key("right"))
        #expect(try Set(bundle.golden().keys) == ["gradients", "evaluate", "predict"])
        #expect(try bundle.tokenizer() == nil)
        _ = try Plan(json: bundle.planJSON())
    }
}

@Suite struct VerificationKeyTests {
    let hex = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"

    private func pem(_ der: String) throws -> String {
        let bytes = try #require(fromHex(der))
        return "-----BEGIN PUBLIC KEY-----\n\(Data(bytes).base64EncodedString())\n-----END PUBLIC KEY-----\n"
    }

    @Test("hex and PEM are one key")
    func forms() throws {
        #expect(try VerificationKey(hex.uppercased() + "\n").hex == hex)
        #expect(try VerificationKey(hex) == VerificationKey(pem("302a300506032b6570032100\(hex)")))
    }

    @Test("a test vector of RFC 8032 is verified")
    func rfc() throws {
        var value = try #require(
            fromHex(
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
                    + "d25bf5f0595bbe24655141438e7a100b"))
        let key = try VerificationKey(hex)
        #expect(key.verifies(value, []))
        #expect(!key.verifies(value, [0]))
        value[0] = 0
        #expect(!key.verifies(value, []))
    }

    @Test(
        "what is no public key is refused",
        arguments: [
            "", "d75a", "-----BEGIN PRIVATE KEY-----", "-----BEGIN PUBLIC KEY-----\n???\n-----END PUBLIC KEY-----",
        ])
    func refused(_ text: String) throws {
        expectError(.keyFile, text) { _ = try VerificationKey(text) }
        // X25519 and a short key.
        let others = [
            try pem("302a300506032b656e032100\(hex)"), try pem("302a300506032b6570032100\(hex.dropFirst(2))"),
        ]
        for other in others { expectError(.keyFile) { _ = try VerificationKey(other) } }
    }
}

@Suite struct VersionsTests {
    @Test("versions are compared as Python compares them")
    func versions() throws {
        let vectors = try Vectors.read("versions.json")
        for (version, plain) in try vectors["plain"].fields {
            #expect(Versions.plain(version) == plain.string, "\(version)")
        }
        for pair in try vectors["pairs"].items {
            let older = Versions.isOlder(try pair["version"].text, than: try pair["than"].text)
            #expect(try older == pair["older"].truth, "\(pair)")
        }
    }
}

@Suite struct InflateTests {
    /// Gives packed bytes in pieces of a length, and joins what comes.
    private func inflated(_ packed: [UInt8], by length: Int = 7) throws -> [UInt8] {
        var left = packed[...]
        var inflate = Inflate {
            defer { left = left.dropFirst(length) }
            return left.prefix(length)
        }
        var out: [UInt8] = []
        try inflate.run {
            out += $0
            return true
        }
        return out
    }

    @Test("blocks of each kind are unpacked")
    func kinds() throws {
        // zlib's raw streams of "hello hello hello", stored, with fixed codes; and of nothing.
        let stored = [1, 17, 0, 238, 255] + Array("hello hello hello".utf8)
        #expect(try inflated(stored) == Array("hello hello hello".utf8))
        #expect(try inflated([203, 72, 205, 201, 201, 87, 200, 64, 144, 0], by: 1) == Array("hello hello hello".utf8))
        #expect(try inflated([3, 0]).isEmpty)
    }

    @Test(
        "what is damaged is refused",
        arguments: [[], [7], [6], [1, 1, 0, 1, 0, 0], [203], [99, 4, 0xff, 0xff]] as [[UInt8]])
    func damaged(_ bytes: [UInt8]) {
        #expect(throws: Malformed.self) { try inflated(bytes) }
    }
}
