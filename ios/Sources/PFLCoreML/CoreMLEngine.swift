#if canImport(CoreML)
    import CoreML
    import Foundation
    import PFLMobile

    /// Core ML: the ML Programs that `pfl-export --target ios` writes, run by the system.
    ///
    /// A package of iOS 18 holds all programs as functions; before iOS 18 each program is a package of its own (`--target ios17`).
    /// A program is compiled for this phone when it is first run, and the compiled form is kept. Opening and running block: call them
    /// from a task of your own, never on the main thread.
    ///
    /// In mixed precision the loss is scaled inside the program, and what comes out is not: there is nothing to undo here.
    public struct CoreMLEngine: RuntimeEngine {
        /// Which processors Core ML may use.
        public enum ComputeUnits: String, Sendable, CaseIterable {
            /// The processor. It computes in the program's own precision, and may be used in the background.
            case cpuOnly
            /// Graphics too, which apps in the background may not use.
            case cpuAndGPU
            /// The neural engine too, which computes in 16 bits: for bundles in mixed precision.
            case cpuAndNeuralEngine
            /// Whatever the system likes.
            case all
        }

        /// Which processors Core ML may use.
        public let computeUnits: ComputeUnits
        private let cache: URL?

        /// The engine.
        ///
        /// - Parameters:
        ///   - computeUnits: which processors Core ML may use; the golden check says whether the others are exact enough
        ///   - cache: where compiled programs are kept; the app's folder of caches unless it is given
        public init(computeUnits: ComputeUnits = .cpuOnly, cache: URL? = nil) {
            self.computeUnits = computeUnits
            self.cache = cache
        }

        /// As bundles write it.
        public let name = "coreml"

        /// Prepares to load programs when they are first run. Core ML chooses its threads.
        ///
        /// - Throws: `.engineUnavailable`: the programs are functions of one package, which this system does not know
        public func open(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any EngineSession {
            try session(files: files, programs: programs, threads: threads)
        }

        package func runtime(
            files: [String: String], programs: [ProgramSpec], threads: Int
        ) throws -> any ProgramRuntime {
            let together = files["package"] != nil
            if together { try requireFunctions() }
            return CoreMLPrograms(
                files: files, together: together, units: computeUnits,
                compiled: CompiledModels(cache ?? CompiledModels.usual))
        }
    }

    private func requireFunctions() throws {
        if #available(iOS 18.0, macOS 15.0, tvOS 18.0, watchOS 11.0, visionOS 2.0, *) { return }
        throw PFLError(
            .engineUnavailable,
            "the bundle's programs are functions of one package, which Core ML knows from iOS 18 on",
            mend: "export the model with --target ios17 for older systems, or for another engine too")
    }

    /// Programs are loaded when first used.
    final class CoreMLPrograms: ProgramRuntime {
        let name = "coreml"
        let mend = "run `pfl verify --engine coreml` on a Mac; if it fails too, export the bundle again"
        private let files: [String: String]
        private let together: Bool
        private let units: CoreMLEngine.ComputeUnits
        private let compiled: CompiledModels
        private var loaded: [String: MLModel] = [:]
        private let rooms = Rooms(Room.init)

        init(
            files: [String: String], together: Bool, units: CoreMLEngine.ComputeUnits, compiled: CompiledModels
        ) {
            self.files = files
            self.together = together
            self.units = units
            self.compiled = compiled
        }

        /// A value that Core ML reads where it is.
        struct Value {
            fileprivate let room: Room
            fileprivate var taken: TakenRoom<Room>?

            fileprivate init(_ taken: TakenRoom<Room>) {
                room = taken.room
                self.taken = taken
            }

            fileprivate init(_ room: Room) { self.room = room }
        }

        func mapped(_ spec: TensorSpec, _ bytes: UnsafeRawBufferPointer) throws -> Value {
            // Core ML has no whole numbers of 64 bits, and a tensor without elements has a place too.
            guard spec.dtype != .int64, let start = bytes.baseAddress else {
                return try given(spec, Tensor(spec.dtype, spec.shape, copying: bytes))
            }
            // It reads its inputs only.
            return Value(try Room(spec, over: UnsafeMutableRawPointer(mutating: start)))
        }

        func given(_ spec: TensorSpec, _ tensor: Tensor) throws -> Value {
            let taken = try rooms.take(spec)
            try taken.room.fill(tensor)
            return Value(taken)
        }

        /// Core ML numbers what goes in and out.
        func run(_ program: ProgramSpec, _ inputs: [Value]) throws -> [Value] {
            let model = try load(program)
            let given = try MLDictionaryFeatureProvider(
                dictionary: Dictionary(
                    uniqueKeysWithValues: inputs.enumerated().map {
                        ("in_\($0)", MLFeatureValue(multiArray: $1.room.array))
                    }))
            let outputs = try program.outputs.map { try rooms.take($0) }
            let options = MLPredictionOptions()
            options.outputBackings = Dictionary(
                uniqueKeysWithValues: outputs.enumerated().map { ("out_\($0)", $1.room.array as Any) })
            return try pooled {
                let got = try model.prediction(from: given, options: options)
                return try zip(0..., outputs).map { number, taken in
                    guard let array = got.featureValue(for: "out_\(number)")?.multiArrayValue else {
                        throw taken.room.spoiled("Core ML gives no 'out_\(number)'")
                    }
                    try taken.room.take(array)
                    return Value(taken)
                }
            }
        }

        func signature(_ value: Value) -> String { value.room.signature }

        func taken(_ value: Value) -> Tensor { value.room.copied() }

        private func load(_ spec: ProgramSpec) throws -> MLModel {
            if let found = loaded[spec.name] { return found }
            let manifest = try engineFile(files, together ? "package" : "package.\(spec.name)")
            let package = URL(fileURLWithPath: manifest).deletingLastPathComponent()
            let configuration = MLModelConfiguration()
            configuration.computeUnits = units.coreML
            if together, #available(iOS 18.0, macOS 15.0, tvOS 18.0, watchOS 11.0, visionOS 2.0, *) {
                configuration.functionName = spec.name
            }
            do {
                let model = try compiled.load(package) { try MLModel(contentsOf: $0, configuration: configuration) }
                loaded[spec.name] = model
                return model
            } catch let error as PFLError {
                throw error
            } catch {
                throw PFLError(
                    .engine, "Core ML cannot load program '\(spec.name)' of \(package.lastPathComponent): \(error)",
                    mend: "export the bundle again", cause: error)
            }
        }
    }

    extension CoreMLEngine.ComputeUnits {
        fileprivate var coreML: MLComputeUnits {
            switch self {
            case .cpuOnly: .cpuOnly
            case .cpuAndGPU: .cpuAndGPU
            case .cpuAndNeuralEngine: .cpuAndNeuralEngine
            case .all: .all
            }
        }
    }

    /// What `step` gives, without what Core ML leaves behind on the way: training is thousands of calls in one task.
    private func pooled<Result>(_ step: () throws -> Result) rethrows -> Result {
        #if canImport(ObjectiveC)
            try autoreleasepool(invoking: step)
        #else
            try step()
        #endif
    }

    /// Room for an input or an output: contiguous, and the same in each call.
    private final class Room {
        let array: MLMultiArray
        var signature: String { spec.signature }
        private let spec: TensorSpec
        private let type: MLMultiArrayDataType
        private let bytes: UnsafeMutableRawBufferPointer

        /// Room for values.
        convenience init(_ spec: TensorSpec) throws {
            _ = try dataType(spec)
            let count = max(Room.bytes(spec), 1)
            let start = UnsafeMutableRawPointer.allocate(byteCount: count, alignment: 64)
            start.initializeMemory(as: UInt8.self, repeating: 0, count: count)
            // Where it is refused, nobody says whether the memory was given back; so it is not given back twice.
            try self.init(spec, over: start) { $0.deallocate() }
        }

        /// Room over memory that outlives it, unless it is given back.
        init(
            _ spec: TensorSpec, over start: UnsafeMutableRawPointer,
            _ deallocator: ((UnsafeMutableRawPointer) -> Void)? = nil
        ) throws {
            type = try dataType(spec)
            self.spec = spec
            bytes = UnsafeMutableRawBufferPointer(start: start, count: Room.bytes(spec))
            array = try MLMultiArray(
                dataPointer: start, shape: spec.shape.map { NSNumber(value: $0) }, dataType: type,
                strides: contiguous(spec.shape).map { NSNumber(value: $0) }, deallocator: deallocator)
        }

        private static func bytes(_ spec: TensorSpec) -> Int {
            spec.shape.reduce(spec.dtype == .int64 ? 4 : spec.dtype.bytes, *)
        }

        /// Puts a value in. Core ML has no whole numbers of 64 bits.
        func fill(_ value: Tensor) throws {
            guard case .long(let tensor) = value else {
                value.withBytes { UnsafeMutableRawBufferPointer(rebasing: bytes[..<$0.count]).copyMemory(from: $0) }
                return
            }
            for (at, number) in tensor.values.enumerated() {
                guard let small = Int32(exactly: number) else {
                    throw PFLError(
                        .engine,
                        "input '\(spec.name)' has the number \(number), beyond 32 bits, which Core ML does not have",
                        mend: "use smaller ids")
                }
                bytes.storeBytes(of: small, toByteOffset: 4 * at, as: Int32.self)
            }
        }

        /// Takes over what Core ML gave: this room, or an array of its own, with gaps perhaps.
        func take(_ given: MLMultiArray) throws {
            let shape = given.shape.map(\.intValue)
            guard given.dataType == type else {
                throw spoiled(
                    "Core ML gives '\(spec.name)' as type \(given.dataType.rawValue), the manifest says \(spec.dtype.rawValue)"
                )
            }
            if shape != spec.shape {
                throw spoiled("Core ML gives '\(spec.name)' of shape \(shape), the manifest says \(spec.signature)")
            }
            if given === array { return }
            let width = spec.dtype == .int64 ? 4 : spec.dtype.bytes
            let strides = given.strides.map(\.intValue)
            given.withUnsafeBytes { source in
                if strides == contiguous(shape) {
                    bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: source.prefix(bytes.count)))
                } else {
                    gathered(source, shape, strides, width).withUnsafeBytes(bytes.copyMemory)
                }
            }
        }

        /// A tensor of what is in it.
        func copied() -> Tensor {
            let raw = UnsafeRawBufferPointer(bytes)
            guard spec.dtype == .int64 else { return Tensor(spec.dtype, spec.shape, copying: raw) }
            return .long(LongTensor(raw.bindMemory(to: Int32.self).map(Int64.init), spec.shape))
        }

        func spoiled(_ what: String) -> PFLError {
            PFLError(.tensorMismatch, what, mend: "export the bundle again")
        }
    }

    private func dataType(_ spec: TensorSpec) throws -> MLMultiArrayDataType {
        guard let type = dataTypes[spec.dtype], !spec.shape.isEmpty else {
            throw PFLError(
                .engine, "'\(spec.name)' is \(spec.dtype.rawValue)\(spec.shape), which Core ML does not take",
                mend:
                    "let the model take and give float32 or int64 of shape [1] or more, or export it for another engine"
            )
        }
        return type
    }

    private let dataTypes: [DType: MLMultiArrayDataType] = [
        .float32: .float32, .int64: .int32, .int32: .int32, .float16: .float16, .float64: .double,
    ]

    /// Elements from one to the next along each axis, without gaps.
    private func contiguous(_ shape: [Int]) -> [Int] {
        var strides = [Int](repeating: 1, count: shape.count)
        for axis in shape.indices.dropLast().reversed() { strides[axis] = strides[axis + 1] * shape[axis + 1] }
        return strides
    }

    /// The elements one after the other.
    private func gathered(_ source: UnsafeRawBufferPointer, _ shape: [Int], _ strides: [Int], _ width: Int) -> [UInt8] {
        var found: [UInt8] = []
        found.reserveCapacity(shape.reduce(width, *))
        var at = [Int](repeating: 0, count: shape.count)
        for _ in 0..<shape.reduce(1, *) {
            let begin = width * zip(at, strides).reduce(0) { $0 + $1.0 * $1.1 }
            found.append(contentsOf: source[begin..<begin + width])
            for axis in shape.indices.reversed() {
                at[axis] += 1
                if at[axis] < shape[axis] { break }
                at[axis] = 0
            }
        }
        return found
    }
#endif
