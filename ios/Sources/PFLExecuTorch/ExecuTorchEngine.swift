#if canImport(ExecuTorch)
    import ExecuTorch
    import Foundation
    import PFLMobile

    /// ExecuTorch: one `.pte` with a method for each program, run by ExecuTorch's own Swift package, which the app brings: `executorch`
    /// with `backend_xnnpack` and `kernels_optimized`. It computes with threads of its own.
    ///
    /// Opening and running block: call them from a task of your own, never on the main thread.
    public struct ExecuTorchEngine: Engine {
        /// The engine.
        public init() {}

        /// As bundles write it.
        public let name = "executorch"

        /// Opens the file; a method is loaded when it is first run, so `predict` alone does not pay for `gradients`.
        ///
        /// - Throws: `.engine`: ExecuTorch refuses the file, or it has no method for a program
        public func open(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any EngineSession {
            try ExecuTorchSession(engineFile(files, "model"), programs)
        }
    }

    private let exportAgain =
        "export the bundle again, or put the version of ExecuTorch into the app that it was exported with"

    /// A lock keeps calls apart, so it may be shared.
    private final class ExecuTorchSession: EngineSession, @unchecked Sendable {
        let name = "executorch"
        let programs: [String: ProgramSpec]
        private let module: ExecuTorch.Module
        private let lock = NSLock()
        private var rooms: [String: [Room]] = [:]

        init(_ path: String, _ programs: [ProgramSpec]) throws {
            self.programs = Dictionary(programs.map { ($0.name, $0) }) { first, _ in first }
            let file = URL(fileURLWithPath: path).lastPathComponent
            module = ExecuTorch.Module(filePath: path, loadMode: .mmap)
            let have: Set<String>
            do {
                try module.load()
                have = try module.methodNames()
            } catch {
                throw PFLError(.engine, "ExecuTorch cannot load \(file): \(error)", mend: exportAgain, cause: error)
            }
            if let missing = Set(self.programs.keys).subtracting(have).min() {
                throw PFLError(
                    .engine, "\(file) has no method '\(missing)'; it has \(have.sorted())", mend: exportAgain)
            }
        }

        func run(_ program: String, _ inputs: TensorSet) throws -> TensorSet {
            try lock.withLock {
                try runChecked(programs, program, inputs) { spec, values in
                    let rooms = try rooms[program] ?? spec.inputs.map(Room.init)
                    self.rooms[program] = rooms
                    for (room, value) in zip(rooms, values) { room.fill(value) }
                    do {
                        // What comes out is memory of the method until it is run again.
                        return try module.execute(program, rooms.map(\.tensor)).map(copied)
                    } catch let error as PFLError {
                        throw error
                    } catch {
                        throw PFLError(
                            .engine, "engine '\(name)' failed in program '\(program)': \(error)",
                            mend: "run `pfl verify` on the bundle; if it fails too, export it again", cause: error)
                    }
                }
            }
        }

        private func copied(_ value: ExecuTorch.Value) throws -> PFLMobile.Tensor {
            guard let tensor = value.anyTensor else {
                throw PFLError(.tensorMismatch, "ExecuTorch gives something that is no tensor", mend: exportAgain)
            }
            guard let dtype = dataTypes.first(where: { $0.value == tensor.dataType })?.key else {
                throw PFLError(
                    .tensorMismatch, "ExecuTorch gives a tensor of type \(tensor.dataType.rawValue)", mend: exportAgain)
            }
            let shape = tensor.shape
            var bytes: [UInt8] = []
            tensor.bytes { pointer, count, _ in
                bytes = Array(UnsafeRawBufferPointer(start: pointer, count: count * dtype.bytes))
            }
            return bytes.withUnsafeBytes { raw in
                switch dtype {
                case .float32: .float(FloatTensor(Array(raw.bindMemory(to: Float.self)), shape))
                case .int64: .long(LongTensor(Array(raw.bindMemory(to: Int64.self)), shape))
                default: .raw(RawTensor(dtype, bytes, shape))
                }
            }
        }
    }

    /// Room for an input, which ExecuTorch reads where it lies; the same in each call.
    private final class Room {
        let tensor: AnyTensor
        private let bytes: UnsafeMutableRawBufferPointer

        init(_ spec: TensorSpec) throws {
            guard let type = dataTypes[spec.dtype] else {
                throw PFLError(
                    .engine, "input '\(spec.name)' is \(spec.dtype.rawValue), which ExecuTorch cannot be given",
                    mend: "let the model take float32 or int64")
            }
            let count = max(spec.shape.reduce(spec.dtype.bytes, *), 1)
            let start = UnsafeMutableRawPointer.allocate(byteCount: count, alignment: 64)
            bytes = UnsafeMutableRawBufferPointer(start: start, count: count)
            tensor = AnyTensor(bytesNoCopy: start, shape: spec.shape, dataType: type, shapeDynamism: .static)
        }

        // The tensor, which has no bytes of its own, is released after this; it does not look at them.
        deinit { bytes.deallocate() }

        func fill(_ value: PFLMobile.Tensor) {
            switch value {
            case .float(let tensor): tensor.values.withUnsafeBytes(bytes.copyMemory)
            case .long(let tensor): tensor.values.withUnsafeBytes(bytes.copyMemory)
            case .raw(let tensor): tensor.bytes.withUnsafeBytes(bytes.copyMemory)
            }
        }
    }

    private let dataTypes: [DType: DataType] = [
        .float32: .float, .int64: .long, .int32: .int, .int16: .short, .int8: .char, .uint8: .byte, .float16: .half,
        .float64: .double, .bool: .bool,
    ]
#endif
