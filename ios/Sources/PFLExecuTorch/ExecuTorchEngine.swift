#if canImport(ExecuTorch)
    import ExecuTorch
    import Foundation
    import PFLMobile

    /// ExecuTorch: one `.pte` with a method for each program, run by ExecuTorch's own Swift package, which the app brings: `executorch`
    /// with `backend_xnnpack` and `kernels_optimized`. It computes with threads of its own.
    ///
    /// Opening and running block: call them from a task of your own, never on the main thread.
    public struct ExecuTorchEngine: RuntimeEngine {
        /// The engine.
        public init() {}

        /// As bundles write it.
        public let name = "executorch"

        /// Opens the file; a method is loaded when it is first run, so `predict` alone does not pay for `gradients`.
        ///
        /// - Throws: `.engine`: ExecuTorch refuses the file, or it has no method for a program
        public func open(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any EngineSession {
            try session(files: files, programs: programs, threads: threads)
        }

        package func runtime(
            files: [String: String], programs: [ProgramSpec], threads: Int
        ) throws -> any ProgramRuntime {
            try ExecuTorchPrograms(engineFile(files, "model"), programs)
        }
    }

    private let exportAgain =
        "export the bundle again, or put the version of ExecuTorch into the app that it was exported with"

    private final class ExecuTorchPrograms: ProgramRuntime {
        let name = "executorch"
        private let module: ExecuTorch.Module
        private let rooms = Rooms(Room.init)

        init(_ path: String, _ programs: [ProgramSpec]) throws {
            let file = URL(fileURLWithPath: path).lastPathComponent
            module = ExecuTorch.Module(filePath: path, loadMode: .mmap)
            let have: Set<String>
            do {
                try module.load()
                have = try module.methodNames()
            } catch {
                throw PFLError(.engine, "ExecuTorch cannot load \(file): \(error)", mend: exportAgain, cause: error)
            }
            if let missing = Set(programs.map(\.name)).subtracting(have).min() {
                throw PFLError(
                    .engine, "\(file) has no method '\(missing)'; it has \(have.sorted())", mend: exportAgain)
            }
        }

        /// A constant, an input, or an output: that is memory of the method until it is run again, so it is copied.
        final class Value {
            let signature: String
            /// Where ExecuTorch reads it; nil before an output is read.
            var read: AnyTensor?
            /// The room that this is in, if it is used again.
            var room: TakenRoom<Room>?
            /// An output.
            let tensor: PFLMobile.Tensor?

            init(_ signature: String, _ tensor: PFLMobile.Tensor?) {
                self.signature = signature
                self.tensor = tensor
            }

            func fill(_ taken: TakenRoom<Room>, _ tensor: PFLMobile.Tensor) {
                taken.room.fill(tensor)
                room = taken
                read = taken.room.tensor
            }
        }

        func mapped(_ spec: TensorSpec, _ bytes: UnsafeRawBufferPointer) throws -> Value {
            let type = try dataType(spec)
            let value = Value(spec.signature, nil)
            guard let start = bytes.baseAddress else {
                value.fill(try rooms.take(spec), PFLMobile.Tensor(spec.dtype, spec.shape, copying: bytes))
                return value
            }
            // It reads its inputs only.
            value.read = AnyTensor(
                bytesNoCopy: UnsafeMutableRawPointer(mutating: start), shape: spec.shape, dataType: type,
                shapeDynamism: .static)
            return value
        }

        func given(_ spec: TensorSpec, _ tensor: PFLMobile.Tensor) throws -> Value {
            let value = Value(spec.signature, nil)
            value.fill(try rooms.take(spec), tensor)
            return value
        }

        func run(_ program: ProgramSpec, _ inputs: [Value]) throws -> [Value] {
            let given = try zip(program.inputs, inputs).map { spec, value in
                if let tensor = value.tensor, value.read == nil { value.fill(try rooms.take(spec), tensor) }
                guard let read = value.read else { throw missing(spec) }
                return read
            }
            // What comes out is memory of the method until it is run again.
            return try module.execute(program.name, given).map { found in
                let tensor = try copied(found)
                return Value(tensor.signature, tensor)
            }
        }

        func signature(_ value: Value) -> String { value.signature }

        func taken(_ value: Value) throws -> PFLMobile.Tensor {
            guard let tensor = value.tensor else {
                throw PFLError(.engine, "what was given is no output", mend: exportAgain)
            }
            return tensor
        }

        private func missing(_ spec: TensorSpec) -> PFLError {
            PFLError(.engine, "input '\(spec.name)' is not there", mend: exportAgain)
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
            let type = try dataType(spec)
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

    private func dataType(_ spec: TensorSpec) throws -> DataType {
        guard let type = dataTypes[spec.dtype] else {
            throw PFLError(
                .engine, "input '\(spec.name)' is \(spec.dtype.rawValue), which ExecuTorch cannot be given",
                mend: "let the model take float32 or int64")
        }
        return type
    }

    private let dataTypes: [DType: DataType] = [
        .float32: .float, .int64: .long, .int32: .int, .int16: .short, .int8: .char, .uint8: .byte, .float16: .half,
        .float64: .double, .bool: .bool,
    ]
#endif
