#if canImport(PFLOnnxRuntime)
    import CoreML
    import Foundation
    import PFLOnnxRuntime
    import Testing

    @testable import PFLCoreML
    @testable import PFLMobile

    extension CoreMLTests {
        /// A stand-in of Core ML behind which ONNX Runtime computes: what goes through our side of Core ML comes out as it was computed.
        @Suite struct TrainingTests {
            @Test("the golden calls pass through Core ML's names and types")
            func golden() throws {
                let conformance = URL(fileURLWithPath: "\(repository)/conformance")
                let bundle = try ModelBundle.open(conformance.appendingPathComponent("bundles/arrays"))
                let report = try goldenCheck(bundle, try session(bundle))
                try report.require()
                #expect(report.engine == "coreml")
                #expect(report.worstRelErr < 1e-5, "\(report)")
            }

            @Test("training through Core ML ends where training beside it ends, to the bit", .enabled(if: isThere))
            func training() throws {
                let bundle = try ModelBundle.open(URL(fileURLWithPath: "\(bundles)/tiny.pflb"))
                let direct = try openSession(bundle, engines: [OnnxRuntimeEngine()], trusted: true)
                let one = try trained(bundle, direct)
                let other = try trained(bundle, try session(bundle))
                #expect(!one.isEmpty && one.keys == other.keys)
                for (name, tensor) in one { #expect(other[name]?.sameBits(tensor) == true, "\(name)") }
            }

            private func trained(_ bundle: ModelBundle, _ session: any EngineSession) throws -> TensorSet {
                let lists = try #require(try parseJSON(bytes: try readBytes("\(bundles)/tiny-examples.json")).object)
                func texts(_ part: String) throws -> Examples {
                    .texts(try #require(lists[part]?.array).compactMap(\.string))
                }
                let trainer = try LocalTrainer(
                    session, plan: Plan(json: bundle.planJSON()), tensors: bundle.manifest.tensors,
                    initial: bundle.values(),
                    encoder: textEncoder(bundle).map { TrainingEncoder($0) })
                let report = try trainer.personalize(try texts("train"), holdout: try texts("holdout"))
                return try #require(report.state).tensors
            }

            /// Core ML whose functions are the bundle's programs of ONNX Runtime.
            private func session(_ bundle: ModelBundle) throws -> any EngineSession {
                let beneath = try openSession(bundle, engines: [OnnxRuntimeEngine()], trusted: true)
                let specs = Dictionary(uniqueKeysWithValues: bundle.manifest.programs.map { ($0.name, $0) })
                StubCoreML.shared.loads { _, configuration in
                    let spec = try #require(specs[configuration.functionName ?? "none"])
                    return { input, options in try beneath.stub(spec, input, options) }
                }
                let folder = FileManager.default.temporaryDirectory.appendingPathComponent(
                    "pfl-coreml-\(UUID().uuidString)")
                defer { try? FileManager.default.removeItem(at: folder) }
                let files = try writePackage(folder.appendingPathComponent("model.mlpackage"))
                let session = try CoreMLEngine(cache: folder.appendingPathComponent("cache"))
                    .open(files: files, programs: bundle.manifest.programs, threads: 1)
                // All are loaded while the package is there.
                for (program, call) in try bundle.golden() { _ = try session.run(program, call.inputs) }
                return session
            }
        }
    }

    extension EngineSession {
        fileprivate func stub(_ spec: ProgramSpec, _ input: any MLFeatureProvider, _ options: MLPredictionOptions)
            throws
            -> any MLFeatureProvider
        {
            var given: TensorSet = [:]
            for (number, want) in spec.inputs.enumerated() {
                given[want.name] =
                    want.dtype == .int64
                    ? .long(LongTensor(try int32(input, "in_\(number)").map(Int64.init), want.shape))
                    : .float(FloatTensor(try floats(input, "in_\(number)"), want.shape))
            }
            let got = try run(spec.name, given)
            var found: [String: Any] = [:]
            for (number, want) in spec.outputs.enumerated() {
                let array = try #require(options.outputBackings["out_\(number)"] as? MLMultiArray)
                switch try #require(got[want.name]) {
                case .float(let tensor): write(tensor.values, array)
                case .long(let tensor): write(tensor.values.map { Int32($0) }, array)
                case .raw: Issue.record("\(want.name) is neither float32 nor int64")
                }
                found["out_\(number)"] = MLFeatureValue(multiArray: array)
            }
            return try MLDictionaryFeatureProvider(dictionary: found)
        }
    }

    private let isThere = FileManager.default.fileExists(atPath: "\(bundles)/tiny-examples.json")
#endif
