/// What may happen to a tensor: merged for all devices, within a group of them, or never sent.
public enum Role: String, Sendable, CaseIterable {
    /// Merged for all devices.
    case shared
    /// Merged within a group of devices.
    case group
    /// Never sent.
    case personal
}

/// Who writes a tensor on the device: the update rule, a memorize phase, or the host when it gives vocabulary slots to words.
public enum TensorUpdate: String, Sendable, CaseIterable {
    /// The update rule.
    case gradient
    /// A memorize phase.
    case memorize
    /// The host, when it gives slots to words.
    case assign
}

/// What the model predicts.
public enum TaskKind: String, Sendable, CaseIterable {
    /// The next token.
    case tokens
    /// A class.
    case classification
    /// Numbers.
    case regression
    /// What the bundle's author programmed.
    case custom
}

/// A tensor that a program takes or gives; the shape is fixed at export.
public struct TensorSpec: Sendable, Equatable {
    /// Its name.
    public let name: String
    /// Lengths of the axes.
    public let shape: [Int]
    /// What an element is.
    public let dtype: DType

    /// `float32[2, 3]`, as messages name it.
    public var signature: String { "\(dtype.rawValue)\(shape)" }
}

/// A pure function with named inputs and outputs, the same on every engine.
public struct ProgramSpec: Sendable, Equatable {
    /// Its name.
    public let name: String
    /// What it takes, in order.
    public let inputs: [TensorSpec]
    /// What it gives, in order.
    public let outputs: [TensorSpec]
}

/// A tensor that changes on the device.
public struct DeviceTensor: Sendable, Equatable {
    /// Its name.
    public let name: String
    /// What may happen to it.
    public let role: Role
    /// Group of a tensor of the role `.group`; nil for others.
    public let group: String?
    /// Lengths of the axes.
    public let shape: [Int]
    /// What an element is.
    public let dtype: DType
    /// Who writes it.
    public let update: TensorUpdate
    /// The module it belongs to; nil for a tensor of the backbone itself.
    public let module: String?

    /// `float32[2, 3]`, as messages name it.
    public var signature: String { "\(dtype.rawValue)\(shape)" }
}

/// A module put into the backbone, with the configuration it was made from.
public struct ModuleEntry: Sendable, Equatable {
    /// Its name.
    public let name: String
    /// What kind of module it is.
    public let kind: String
    let config: JSONObject
}

/// What one engine loads.
public struct EngineEntry: Sendable, Equatable {
    /// Paths in the bundle by purpose (`model`, `weights`).
    public let files: [String: String]
    /// What was measured at the export.
    public let measured: [String: Int]
    /// Which versions of the runtime load the files; nil where that is not known.
    public let runtime: RuntimeEntry?
    /// In what precision the programs compute; nil for float32.
    public let precision: PrecisionEntry?
}

/// What programs are that compute in mixed precision: some products in 16 bits, all else in 32.
public struct PrecisionEntry: Sendable, Equatable {
    /// Of the loss inside `gradients`; what comes out is not scaled.
    public let lossScale: Double
    /// How many products compute in 16 bits.
    public let products: Int
    /// Of how many.
    public let ofProducts: Int
    /// The largest error, relative to the largest entry of an output, with which a device may train.
    public let tolerance: Double
    /// Of a comparison with training in 32 bits.
    public let steps: Int
    /// How far the tensors were from those of 32 bits after it, relative to their way.
    public let trainedRelErr: Double
}

/// How frozen weights are stored that have fewer than 32 bits; the programs compute in float32 with them.
public struct WeightsEntry: Sendable, Equatable {
    /// `int8` or `int4`.
    public let kind: String
    /// How many numbers of `int4` share a scale; nil for `int8`.
    public let group: Int?
    /// The weights that are stored so, and how far each is from the model's own, relative to its length.
    public let tensors: [String: Double]
    /// On the example batch.
    public let loss: Double
    /// On it with the model's own weights.
    public let lossFloat32: Double
    /// How far the output on it is from that of the model's own weights, relative to its length; nil where a model gives
    /// no single tensor.
    public let outputRelErr: Double?
}

/// Versions of an engine's runtime.
public struct RuntimeEntry: Sendable, Equatable {
    /// The oldest that loads the programs.
    public let atLeast: String
    /// The one that they were compared with PyTorch on.
    public let verified: String
}

/// Length in bytes, and digest in hex, of a file.
public struct FileEntry: Sendable, Equatable {
    /// SHA-256 in hex.
    public let sha256: String
    /// Its length.
    public let bytes: Int
}

/// What the model predicts.
public struct TaskEntry: Sendable, Equatable {
    /// Of which kind it is.
    public let kind: TaskKind
    /// What the evaluate program measures beside the loss.
    public let metrics: [String]
    /// Counts all token ids, slots included.
    public let vocabulary: Int?
}

/// Ids of the special tokens of a tokenizer of subwords; `unk` is nil where it has none.
public struct Subwords: Sendable, Equatable {
    /// Fills rows up.
    public let pad: Int
    /// Begins a text.
    public let bos: Int
    /// Ends a text.
    public let eos: Int
    /// Stands for what the tokenizer does not know.
    public let unk: Int?
}

/// How examples become rows.
public enum EncoderEntry: Sendable, Equatable {
    /// Text becomes rows of tokens.
    case text(TextEntry)
    /// Examples are arrays already; so many rows go into a program at once.
    case arrays(batch: Int)

    /// Text to `batch` rows of `length` tokens, of `vocabulary` base words and `slots` own words.
    public struct TextEntry: Sendable, Equatable {
        /// Tokens of a row.
        public let length: Int
        /// Rows that go into a program at once.
        public let batch: Int
        /// Base words.
        public let vocabulary: Int
        /// Own words.
        public var slots = 0
        /// Version of the piece rules that the tokenizer's words were cut by.
        public var rules = 1
        /// Special tokens of a tokenizer of subwords, whose file says alone how a text is cut; nil for words.
        public var subwords: Subwords?
        /// ISO 15924 codes of scripts in which the model is of no use; empty where the bundle does not say.
        public var scriptsNotServed: [String] = []
    }

    /// Rows that go into a program at once.
    public var batch: Int {
        switch self {
        case .text(let entry): entry.batch
        case .arrays(let batch): batch
        }
    }
}

/// What a device must not exceed; nil means that the bundle sets no limit.
public struct BundleLimits: Sendable, Equatable {
    /// Of more examples the newest are taken.
    public var maxExamples: Int?
    /// A plan that makes more optimizer steps on the examples is not begun.
    public var maxSteps: Int?
    /// Training that takes longer in one go is stopped.
    public var maxSeconds: Int?
}

/// Sizes in bytes: of all files listed, of the memory that the programs plan, and of the frozen tensors as float32.
public struct BundleSizes: Sendable, Equatable {
    /// Of all files listed.
    public let totalBytes: Int
    /// Of the memory that the programs plan.
    public let plannedMemoryBytes: Int?
    /// Of the frozen tensors as float32.
    public let frozenBytes: Int?
}

/// Everything a phone must know of a bundle before it opens another file.
public struct Manifest: Sendable, Equatable {
    /// Name of the bundle.
    public let name: String
    /// Version of the bundle.
    public let version: String
    /// The functions that every engine has.
    public let programs: [ProgramSpec]
    /// What each engine loads, by its name.
    public let engines: [String: EngineEntry]
    /// The tensors that change on the device.
    public let tensors: [DeviceTensor]
    /// Digest of the frozen weights.
    public let frozenSha256: String?
    /// The modules put into the backbone.
    public let modules: [ModuleEntry]
    /// What the model predicts.
    public let task: TaskEntry
    /// How examples become rows.
    public let encoder: EncoderEntry?
    /// File of the tokenizer.
    public let tokenizer: String?
    /// File of the plan.
    public let plan: String
    // Which `pfl serve` runs in rounds with the bundle; a device only keeps it.
    let strategy: JSONObject?
    /// File of the initial values.
    public let values: String
    /// File of the golden calls.
    public let golden: String
    /// What a device must not exceed.
    public let limits: BundleLimits
    /// How frozen weights are stored; nil for float32.
    public let weights: WeightsEntry?
    /// Sizes in bytes.
    public let measured: BundleSizes
    /// Length and digest of every other file.
    public let files: [String: FileEntry]
    // In the order of the manifest, which is that of reading.
    let filePaths: [String]

    /// The program of a name.
    ///
    /// - Throws: `.unknownName`: there is none
    public func program(_ name: String) throws -> ProgramSpec {
        guard let found = programs.first(where: { $0.name == name }) else {
            throw PFLError(
                .unknownName, "bundle '\(self.name)' has no program '\(name)'", mend: near(name, programs.map(\.name)))
        }
        return found
    }

    /// The files of an engine.
    ///
    /// - Throws: `.engineUnavailable`: the bundle has none for it
    public func engine(_ name: String) throws -> EngineEntry {
        guard let found = engines[name] else {
            throw PFLError(
                .engineUnavailable, "bundle '\(self.name)' has no programs for engine '\(name)'",
                mend: "\(near(name, engines.keys)) Or export the model for that engine too")
        }
        return found
    }

    /// The inputs of a program that come from data, not from device tensors.
    ///
    /// - Throws: `.unknownName`: there is no such program
    public func batchInputs(_ program: String) throws -> [TensorSpec] {
        let state = Set(tensors.map(\.name))
        return try self.program(program).inputs.filter { !state.contains($0.name) }
    }
}
