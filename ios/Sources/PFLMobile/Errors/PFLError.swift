/// What pfl-mobile throws on purpose: it names the thing that is wrong and the mend.
public struct PFLError: Error, Equatable, Sendable, CustomStringConvertible {
    /// Which kind of error it is; the same in every language.
    public let code: Code
    /// What is wrong.
    public let message: String
    /// What the app, its developer or its user can do about it.
    public let mend: String
    /// The error under it, in words.
    public let cause: String?
    /// Of the answer, where an aggregator answered with a problem (RFC 9457), whose code this is; nil for all other errors.
    public let status: Int?
    /// Seconds after which what answered asks to try again; nil where nothing did, or it does not say.
    public let retryAfterS: Double?
    /// Whether a file of a device's folder is not what was written, rather than in use or unreadable for now.
    public internal(set) var damaged = false

    /// An error of a kind.
    public init(
        _ code: Code, _ message: String, mend: String, cause: (any Error)? = nil, status: Int? = nil,
        retryAfterS: Double? = nil
    ) {
        self.code = code
        self.message = message
        self.mend = mend
        self.cause = cause.map { "\($0)" }
        self.status = status
        self.retryAfterS = retryAfterS
    }

    /// Message and mend.
    public var description: String { "\(code.rawValue): \(message)\n  mend: \(mend)" }

    /// Whether it is of a kind, or of one below it: an `.unknownName` is a `.config` too, and a problem that an aggregator
    /// answered with is a `.serverProblem`, whatever its own code.
    public func isA(_ code: Code) -> Bool {
        if status != nil { return code == self.code || code == .serverProblem || code == .device }
        var found: Code? = self.code
        while let now = found {
            if now == code { return true }
            found = now.parent
        }
        return false
    }
}

extension PFLError {
    /// Statuses of problems after which the same request may work later.
    static let passing: Set<Int> = [408, 425, 429, 500, 502, 503, 504]

    /// Whether the same request may work later.
    public var passing: Bool { isA(.unreachable) || status.map(PFLError.passing.contains) ?? false }
}

extension PFLError {
    /// A stable identifier, for instance `TamperedBundleError`. The set is open: an aggregator has codes of its own.
    public struct Code: RawRepresentable, Hashable, Sendable {
        /// The identifier as every language writes it.
        public let rawValue: String

        /// A code by its identifier.
        public init(rawValue: String) {
            self.rawValue = rawValue
        }

        /// A setting, plan or argument is invalid.
        public static let config = Code(rawValue: "ConfigError")
        /// A name (layer pattern, recipe, engine, module kind, user) matches nothing.
        public static let unknownName = Code(rawValue: "UnknownNameError")
        /// A signing or verification key is missing or not an Ed25519 key.
        public static let keyFile = Code(rawValue: "KeyFileError")
        /// A dataset or example is missing, damaged, or not what it claims to be.
        public static let data = Code(rawValue: "DataError")
        /// A token id lies outside the model's vocabulary.
        public static let outOfVocabulary = Code(rawValue: "OutOfVocabularyError")
        /// A bundle cannot be used.
        public static let bundle = Code(rawValue: "BundleError")
        /// A file that the manifest names is not there.
        public static let missingFile = Code(rawValue: "MissingFileError")
        /// A file is shorter or longer than the manifest says.
        public static let truncatedFile = Code(rawValue: "TruncatedFileError")
        /// A file's bytes are not those the manifest lists, or a file is there that it does not list.
        public static let tamperedBundle = Code(rawValue: "TamperedBundleError")
        /// The path is neither the folder nor the zip of a bundle.
        public static let notABundle = Code(rawValue: "NotABundleError")
        /// A bundle, or a file in it, is larger than the reader accepts.
        public static let bundleTooLarge = Code(rawValue: "BundleTooLargeError")
        /// The system refuses to read a file of the bundle.
        public static let unreadableFile = Code(rawValue: "UnreadableFileError")
        /// The manifest has a newer schema than this version reads.
        public static let schemaVersion = Code(rawValue: "SchemaVersionError")
        /// The manifest is not valid JSON or breaks its schema.
        public static let invalidManifest = Code(rawValue: "InvalidManifestError")
        /// The signature is missing, by another key, or does not match.
        public static let signature = Code(rawValue: "SignatureError")
        /// A path in a bundle or archive would leave its folder.
        public static let unsafePath = Code(rawValue: "UnsafePathError")
        /// Bytes are not a valid safetensors file, or tensors cannot be stored in one.
        public static let tensorFile = Code(rawValue: "TensorFileError")
        /// A file of a newer version of pfl-mobile.
        public static let newerFile = Code(rawValue: "NewerFileError")
        /// Bytes are not a canonical update file.
        public static let updateFile = Code(rawValue: "UpdateFileError")
        /// An update file holds other tensors than the task asks for.
        public static let updateTensors = Code(rawValue: "UpdateTensorsError")
        /// A place on the disk cannot be written.
        public static let unwritable = Code(rawValue: "UnwritableError")
        /// An engine failed to load or run a program.
        public static let engine = Code(rawValue: "EngineError")
        /// The engine's runtime is not installed, or the bundle has no programs for it.
        public static let engineUnavailable = Code(rawValue: "EngineUnavailableError")
        /// The golden batch gives other numbers here than in PyTorch.
        public static let engineMismatch = Code(rawValue: "EngineMismatchError")
        /// A tensor has the wrong name, shape or dtype.
        public static let tensorMismatch = Code(rawValue: "TensorMismatchError")
        /// Local training could not go on; the state before it is kept.
        public static let training = Code(rawValue: "TrainingError")
        /// A loss, gradient or tensor is NaN or infinite.
        public static let nonFinite = Code(rawValue: "NonFiniteError")
        /// A plan makes more steps on these examples than the bundle allows on a device.
        public static let tooManySteps = Code(rawValue: "TooManyStepsError")
        /// Training took longer than the bundle allows on a device.
        public static let tooSlow = Code(rawValue: "TooSlowError")
        /// There is nothing to train on or to evaluate with.
        public static let noExamples = Code(rawValue: "NoExamplesError")
        /// A saved personal state is damaged or belongs to another model.
        public static let state = Code(rawValue: "StateError")
        /// The disk is full; the last good state is kept.
        public static let storageFull = Code(rawValue: "StorageFullError")
        /// Something would read more of single updates than the private merge lets out.
        public static let privacy = Code(rawValue: "PrivacyError")
        /// One more round would spend more privacy than the budget allows; training ends here.
        public static let privacyBudget = Code(rawValue: "PrivacyBudgetError")

        /// A device cannot take part in a federation, or no longer.
        public static let device = Code(rawValue: "DeviceError")
        /// A device's folder is in use, damaged, or belongs to another federation or model.
        public static let deviceFolder = Code(rawValue: "DeviceFolderError")
        /// The aggregator could not be reached, or the connection broke; trying again may help.
        public static let unreachable = Code(rawValue: "UnreachableError")
        /// A problem that the aggregator answered with. Errors have the problem's own code in its place, for instance
        /// `round-closed`, and a `status`; `isA` knows them.
        public static let serverProblem = Code(rawValue: "ServerProblem")
        /// What answers at the address is not the aggregator: waiting does not mend that, another network may.
        public static let notTheAggregator = Code(rawValue: "NotTheAggregatorError")
        /// The certificate of what answers does not show that it is the aggregator.
        public static let certificate = Code(rawValue: "CertificateError")
        /// No connection that TLS protects could be agreed on, or one side speaks TLS and the other does not.
        public static let tls = Code(rawValue: "TlsError")
        /// The address sends its visitors to another one; a device follows nowhere.
        public static let redirected = Code(rawValue: "RedirectedError")
        /// Something between the device and the aggregator refuses bodies of this size.
        public static let tooLargeOnTheWay = Code(rawValue: "TooLargeOnTheWayError")
        /// The aggregator's answer is not one of the protocol.
        public static let `protocol` = Code(rawValue: "ProtocolError")
        /// The aggregator speaks another version of the protocol.
        public static let otherProtocol = Code(rawValue: "OtherProtocolError")

        /// The wider kind that it belongs to.
        public var parent: Code? { Code.parents[self] }

        private static let parents: [Code: Code] = [
            .unknownName: .config, .keyFile: .config,
            .outOfVocabulary: .data,
            .missingFile: .bundle, .truncatedFile: .bundle, .tamperedBundle: .bundle, .notABundle: .bundle,
            .bundleTooLarge: .bundle, .unreadableFile: .bundle, .schemaVersion: .bundle, .invalidManifest: .bundle,
            .signature: .bundle, .unsafePath: .bundle,
            .newerFile: .tensorFile, .updateFile: .tensorFile, .updateTensors: .updateFile,
            .engineUnavailable: .engine, .engineMismatch: .engine, .tensorMismatch: .engine,
            .nonFinite: .training, .tooManySteps: .training, .tooSlow: .training, .noExamples: .training,
            .storageFull: .state,
            .deviceFolder: .device, .unreachable: .device, .serverProblem: .device, .notTheAggregator: .device,
            .certificate: .notTheAggregator, .tls: .notTheAggregator, .redirected: .notTheAggregator,
            .tooLargeOnTheWay: .device, .protocol: .device, .otherProtocol: .protocol,
        ]
    }
}

/// Bytes or text that are not what they should be. It never leaves the package: whoever reads a file says which file.
struct Malformed: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) {
        self.description = description
    }
}
