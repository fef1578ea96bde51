import CoreML
import Foundation
import Testing

@testable import PFLCoreML
@testable import PFLMobile

/// One after the other: the stand-in of Core ML is one for the process.
@Suite(.serialized) enum CoreMLTests {}

extension CoreMLTests {
    /// Our side of Core ML, against a stand-in of Core ML that computes what the test says: names, shapes, types, room, errors and what is
    /// kept on the disk. What Core ML itself computes is not looked at here.
    @Suite final class CoreMLEngineTests {
        private let folder: URL
        private let files: [String: String]

        init() throws {
            folder = FileManager.default.temporaryDirectory.appendingPathComponent("pfl-coreml-\(UUID().uuidString)")
            files = try writePackage(folder.appendingPathComponent("model.mlpackage"))
        }

        deinit {
            try? FileManager.default.removeItem(at: folder)
        }

        private let spec = ProgramSpec(
            name: "gradients",
            inputs: [
                TensorSpec(name: "tokens", shape: [2, 3], dtype: .int64),
                TensorSpec(name: "weight", shape: [2], dtype: .float32),
            ],
            outputs: [
                TensorSpec(name: "loss_sum", shape: [1], dtype: .float32),
                TensorSpec(name: "top_ids", shape: [2, 3], dtype: .int64),
            ])

        private let inputs: TensorSet = [
            "tokens": .long(LongTensor([1, 2, 3, 4, 5, 6], [2, 3])),
            "weight": .float(FloatTensor([0.5, 2], [2])),
        ]

        private var cache: URL { folder.appendingPathComponent("cache") }

        private func engine(_ units: CoreMLEngine.ComputeUnits = .cpuOnly) -> CoreMLEngine {
            CoreMLEngine(computeUnits: units, cache: cache)
        }

        private func session(_ spec: ProgramSpec? = nil, files: [String: String]? = nil) throws -> any EngineSession {
            try engine().open(files: files ?? self.files, programs: [spec ?? self.spec], threads: 1)
        }

        /// The sum of the weights, and the tokens doubled.
        private static func program(_ input: any MLFeatureProvider, _ options: MLPredictionOptions) throws
            -> any MLFeatureProvider
        {
            let tokens = try int32(input, "in_0")
            let weights = try floats(input, "in_1")
            let loss = try #require(options.outputBackings["out_0"] as? MLMultiArray)
            let ids = try #require(options.outputBackings["out_1"] as? MLMultiArray)
            write([weights.reduce(0, +)], loss)
            write(tokens.map { $0 * 2 }, ids)
            return try MLDictionaryFeatureProvider(
                dictionary: ["out_0": MLFeatureValue(multiArray: loss), "out_1": MLFeatureValue(multiArray: ids)])
        }

        private func expectError(
            _ code: PFLError.Code, _ words: String? = nil, _ location: SourceLocation = #_sourceLocation,
            _ body: () throws -> Void
        ) {
            do {
                try body()
                Issue.record("nothing was refused", sourceLocation: location)
            } catch let error as PFLError {
                #expect(
                    error.code == code && words.map { error.message.contains($0) } != false, "\(error)",
                    sourceLocation: location)
            } catch {
                Issue.record("\(error)", sourceLocation: location)
            }
        }

        @Test("inputs and outputs go by their number, whole numbers in 32 bits")
        func calls() throws {
            StubCoreML.shared.loads { _, _ in Self.program }
            let session = try session()
            let got = try session.run("gradients", inputs)
            #expect(got["loss_sum"]?.float?.values == [2.5])
            #expect(got["top_ids"]?.long?.values == [2, 4, 6, 8, 10, 12])
            #expect(got["top_ids"]?.shape == [2, 3])
        }

        @Test("the same room serves each call, and a result outlives the next one")
        func room() throws {
            nonisolated(unsafe) var seen: [ObjectIdentifier] = []
            StubCoreML.shared.loads { _, _ in
                { input, options in
                    let arrays = [input.featureValue(for: "in_0"), input.featureValue(for: "in_1")].compactMap {
                        $0?.multiArrayValue
                    }
                    seen += arrays.map { ObjectIdentifier($0) }
                    seen += try ["out_0", "out_1"].map {
                        ObjectIdentifier(try #require(options.outputBackings[$0] as? MLMultiArray))
                    }
                    return try Self.program(input, options)
                }
            }
            let session = try session()
            let first = try session.run("gradients", inputs)
            var others = inputs
            others["weight"] = .float(FloatTensor([1, 1], [2]))
            #expect(try session.run("gradients", others)["loss_sum"]?.float?.values == [2])
            #expect(first["loss_sum"]?.float?.values == [2.5])
            #expect(seen.count == 8)
            #expect(Set(seen.prefix(4)) == Set(seen.suffix(4)) && Set(seen).count == 4)
        }

        @Test("a schedule's constants are given in 32 bits, and values go from call to call")
        func scheduled() throws {
            StubCoreML.shared.loads { _, configuration in
                #expect(configuration.functionName == "add")
                return { input, options in
                    let sum = try zip(int32(input, "in_0"), int32(input, "in_1")).map { $0 + $1 }
                    let room = try #require(options.outputBackings["out_0"] as? MLMultiArray)
                    write(sum, room)
                    return try MLDictionaryFeatureProvider(dictionary: ["out_0": MLFeatureValue(multiArray: room)])
                }
            }
            func spec(_ name: String) -> String { #"{"name":"\#(name)","shape":[2],"dtype":"int64"}"# }
            let schedule = """
                {"schema_version":1,"kind":"pfl-schedule",
                "parts":[{"name":"add","inputs":[\(spec("a")),\(spec("b"))],"outputs":[\(spec("y"))]}],
                "constants":{"c":{"shape":[2],"dtype":"int64","offset":0}},
                "programs":{"predict":{"calls":[{"part":"add","inputs":["input:x","constant:c"],"outputs":[0]},
                {"part":"add","inputs":["value:0","input:x"],"outputs":[1]}],"outputs":["value:1"]}}}
                """
            let (place, constants) = (folder.appendingPathComponent("s.json"), folder.appendingPathComponent("c.bin"))
            try Data(schedule.utf8).write(to: place)
            try [Int64(10), -20].withUnsafeBytes { Data($0) }.write(to: constants)
            let all = files.merging(["schedule": place.path, "constants": constants.path]) { $1 }
            func two(_ name: String) -> TensorSpec { TensorSpec(name: name, shape: [2], dtype: .int64) }
            let program = ProgramSpec(name: "predict", inputs: [two("x")], outputs: [two("y")])
            let session = try openScheduled(engine(), all, [program], 1)
            for _ in 0..<2 {
                let found = try session.run("predict", ["x": .long(LongTensor([1, 2], [2]))])
                #expect(found["y"]?.long?.values == [12, -16])
            }
        }

        @Test("an array of Core ML's own, with gaps between its rows, is read by its strides")
        func gaps() throws {
            StubCoreML.shared.loads { _, _ in
                { _, options in
                    let rows = UnsafeMutablePointer<Int32>.allocate(capacity: 16)
                    rows.initialize(repeating: -1, count: 16)
                    for row in 0..<2 { for column in 0..<3 { rows[row * 8 + column * 2] = Int32(10 * row + column) } }
                    let ids = try MLMultiArray(
                        dataPointer: rows, shape: [2, 3], dataType: .int32, strides: [8, 2],
                        deallocator: { $0.deallocate() })
                    let loss = try #require(options.outputBackings["out_0"] as? MLMultiArray)
                    return try MLDictionaryFeatureProvider(
                        dictionary: [
                            "out_0": MLFeatureValue(multiArray: loss), "out_1": MLFeatureValue(multiArray: ids),
                        ])
                }
            }
            #expect(try session().run("gradients", inputs)["top_ids"]?.long?.values == [0, 1, 2, 10, 11, 12])
        }

        @Test("a package of functions is asked for each by its name, and the app chooses the processors")
        func configuration() throws {
            nonisolated(unsafe) var asked: [(String?, MLComputeUnits)] = []
            StubCoreML.shared.loads { _, configuration in
                asked.append((configuration.functionName, configuration.computeUnits))
                return Self.program
            }
            for units in CoreMLEngine.ComputeUnits.allCases {
                let session = try engine(units).open(files: files, programs: [spec], threads: 1)
                for _ in 0..<2 { _ = try session.run("gradients", inputs) }
            }
            #expect(asked.map(\.0) == Array(repeating: "gradients", count: 4))
            #expect(asked.map(\.1) == [.cpuOnly, .cpuAndGPU, .cpuAndNeuralEngine, .all])
        }

        @Test("before iOS 18 each program is a package of its own, without a function's name")
        func apart() throws {
            nonisolated(unsafe) var asked: [String?] = []
            StubCoreML.shared.loads { _, configuration in
                asked.append(configuration.functionName)
                return Self.program
            }
            let other = try writePackage(folder.appendingPathComponent("gradients.mlpackage"))
            let session = try session(files: ["package.gradients": try #require(other["package"])])
            _ = try session.run("gradients", inputs)
            #expect(asked == [nil])
            expectError(.engine, "no file for 'package.gradients'") {
                _ = try self.session(files: [:]).run("gradients", self.inputs)
            }
        }

        @Test("a package is compiled once, also for the next start of the app; another one is compiled anew")
        func compiledOnce() throws {
            StubCoreML.shared.loads { _, _ in Self.program }
            for _ in 0..<3 { _ = try session().run("gradients", inputs) }
            #expect(StubCoreML.shared.compiled == 1)
            let weights = try #require(files["weights"])
            try Data([9, 9, 9]).write(to: URL(fileURLWithPath: weights))
            _ = try session().run("gradients", inputs)
            #expect(StubCoreML.shared.compiled == 2)
            #expect(try FileManager.default.contentsOfDirectory(atPath: cache.path).count == 2)
        }

        @Test("a compiled program that the system took half of is compiled again")
        func damagedCache() throws {
            StubCoreML.shared.loads { url, _ in
                guard FileManager.default.fileExists(atPath: url.appendingPathComponent("Manifest.json").path) else {
                    throw StubError("it is not whole")
                }
                return Self.program
            }
            _ = try session().run("gradients", inputs)
            let kept = try #require(try FileManager.default.contentsOfDirectory(atPath: cache.path).first)
            try FileManager.default.removeItem(at: cache.appendingPathComponent("\(kept)/Manifest.json"))
            _ = try session().run("gradients", inputs)
            #expect(StubCoreML.shared.compiled == 2)
        }

        @Test("what nobody used for a month is removed")
        func unused() throws {
            StubCoreML.shared.loads { _, _ in Self.program }
            let old = cache.appendingPathComponent("old.mlmodelc")
            try FileManager.default.createDirectory(at: old, withIntermediateDirectories: true)
            try FileManager.default.setAttributes(
                [.modificationDate: Date(timeIntervalSinceNow: -40 * 24 * 3600)], ofItemAtPath: old.path)
            _ = try session().run("gradients", inputs)
            let kept = try FileManager.default.contentsOfDirectory(atPath: cache.path)
            #expect(kept.count == 1 && kept != ["old.mlmodelc"])
        }

        @Test("what Core ML refuses is an error of the engine, in its words")
        func refusals() throws {
            StubCoreML.shared.loads { _, _ in throw StubError("no such function") }
            expectError(.engine, "no such function") { _ = try self.session().run("gradients", self.inputs) }
            StubCoreML.shared.loads { _, _ in { _, _ in throw StubError("the neural engine is gone") } }
            expectError(.engine, "the neural engine is gone") { _ = try self.session().run("gradients", self.inputs) }
            expectError(.engine, "cannot load") {
                let missing = ["package": self.folder.appendingPathComponent("none.mlpackage/Manifest.json").path]
                _ = try self.session(files: missing).run("gradients", self.inputs)
            }
        }

        @Test("outputs that are missing, or of another type or shape, are named")
        func wrongOutputs() throws {
            func gives(_ make: @escaping (MLPredictionOptions) throws -> [String: MLMultiArray]) {
                StubCoreML.shared.loads { _, _ in
                    { _, options in
                        try MLDictionaryFeatureProvider(
                            dictionary: try make(options).mapValues { MLFeatureValue(multiArray: $0) })
                    }
                }
            }
            func backing(_ options: MLPredictionOptions, _ name: String) throws -> MLMultiArray {
                try #require(options.outputBackings[name] as? MLMultiArray)
            }
            gives { ["out_0": try backing($0, "out_0")] }
            expectError(.tensorMismatch, "out_1") { _ = try self.session().run("gradients", self.inputs) }
            gives { ["out_0": try backing($0, "out_0"), "out_1": try array(.float32, [2, 3])] }
            expectError(.tensorMismatch, "top_ids") { _ = try self.session().run("gradients", self.inputs) }
            gives { ["out_0": try backing($0, "out_0"), "out_1": try array(.int32, [3, 2])] }
            expectError(.tensorMismatch, "top_ids") { _ = try self.session().run("gradients", self.inputs) }
        }

        @Test("inputs are checked before Core ML sees them")
        func wrongInputs() throws {
            StubCoreML.shared.loads { _, _ in Self.program }
            let session = try session()
            expectError(.unknownName) { _ = try session.run("gradient", self.inputs) }
            var wrong = inputs
            wrong["weight"] = .float(FloatTensor([1], [1]))
            expectError(.tensorMismatch, "weight") { _ = try session.run("gradients", wrong) }
            wrong = inputs
            wrong["tokens"] = .long(LongTensor([1, 2, 3, 4, 5, 1 << 31], [2, 3]))
            expectError(.engine, "2147483648") { _ = try session.run("gradients", wrong) }
            _ = try session.run("gradients", inputs)
            let flags = ProgramSpec(
                name: "flags", inputs: [TensorSpec(name: "on", shape: [1], dtype: .bool)], outputs: [])
            expectError(.engine, "'on' is bool") {
                _ = try self.session(flags).run("flags", ["on": .raw(RawTensor(.bool, [1], [1]))])
            }
        }
    }
}

/// A package with files in it, as the exporter names them; nothing in it is a program.
func writePackage(_ package: URL) throws -> [String: String] {
    let inside = [
        "package": "Manifest.json", "model": "Data/com.apple.CoreML/model.mlmodel",
        "weights": "Data/com.apple.CoreML/weights/weight.bin",
    ]
    return try inside.mapValues { path in
        let file = package.appendingPathComponent(path)
        try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
        try Data(path.utf8).write(to: file)
        return file.path
    }
}

private func array(_ type: MLMultiArrayDataType, _ shape: [Int]) throws -> MLMultiArray {
    let bytes = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 8)
    return try MLMultiArray(
        dataPointer: bytes, shape: shape.map { NSNumber(value: $0) }, dataType: type,
        strides: [NSNumber(value: shape[1]), 1], deallocator: { $0.deallocate() })
}

func int32(_ input: any MLFeatureProvider, _ name: String) throws -> [Int32] {
    let array = try #require(input.featureValue(for: name)?.multiArrayValue)
    try #require(array.dataType == .int32)
    return array.withUnsafeBytes { Array($0.bindMemory(to: Int32.self)) }
}

func floats(_ input: any MLFeatureProvider, _ name: String) throws -> [Float] {
    let array = try #require(input.featureValue(for: name)?.multiArrayValue)
    try #require(array.dataType == .float32)
    return array.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
}

func write<Element>(_ values: [Element], _ array: MLMultiArray) {
    array.withUnsafeMutableBytes { room, _ in
        values.withUnsafeBytes { room.copyMemory(from: $0) }
    }
}
