/// How a personal model is opened.
public struct ModelOptions: Sendable, Equatable {
    /// The pinned key: only a bundle signed by it is opened.
    public let key: VerificationKey?
    /// You know who made a bundle that is opened without a key. What lies in the app itself is trusted without it.
    public let trusted: Bool
    /// In order of preference; the first that the bundle has programs for and that the app brings, new enough, is used.
    public let engines: [any Engine]
    /// Threads of the engine.
    public let threads: Int
    /// Which examples are kept.
    public let retention: Retention
    /// A text with one of them is not kept, and none of them is suggested; as a user writes them, one by one.
    public let blockedWords: Set<String>
    /// Share of the examples, the newest, that only the report's numbers are measured on.
    public let test: Double
    /// Steps of training between checkpoints.
    public let checkpointEvery: Int
    /// Milliseconds without a call after which the engine's memory is freed; the next call loads it again.
    public let engineIdleMs: Int
    /// What was learned with a bundle that does not fit this one is removed rather than refused; the examples stay, so that it
    /// can be learned anew.
    public let discardOtherState: Bool

    /// Options.
    ///
    /// - Parameter engines: nil for those that are linked into the app, see `linkedEngines`
    /// - Throws: `.config`: a value makes no sense
    public init(
        key: VerificationKey? = nil, trusted: Bool = false, engines: [any Engine]? = nil, threads: Int = 1,
        retention: Retention = .standard, blockedWords: Set<String> = [], test: Double = 0.2, checkpointEvery: Int = 10,
        engineIdleMs: Int = 60_000, discardOtherState: Bool = false
    ) throws {
        func refuse(_ when: Bool, _ message: String, _ mend: String) throws {
            if when { throw PFLError(.config, message, mend: mend) }
        }
        let engines = engines ?? linkedEngines()
        try refuse(
            engines.isEmpty, "there is no engine",
            "link PFLCoreML, PFLExecuTorch or PFLOnnxRuntime into the app, or give at least one")
        try refuse(threads < 1, "\(threads) threads", "give 1 or more")
        try refuse(
            !(test > 0 && test < 1), "the test part is \(test)", "give a share between 0 and 1, for instance 0.2")
        try refuse(checkpointEvery < 1, "a checkpoint every \(checkpointEvery) steps", "give 1 or more")
        try refuse(engineIdleMs < 0, "the engine is idle after \(engineIdleMs) ms", "give 0 or more")
        self.key = key
        self.trusted = trusted
        self.engines = engines
        self.threads = threads
        self.retention = retention
        self.blockedWords = blockedWords
        self.test = test
        self.checkpointEvery = checkpointEvery
        self.engineIdleMs = engineIdleMs
        self.discardOtherState = discardOtherState
    }

    /// Engines are the same where their names are.
    public static func == (one: ModelOptions, other: ModelOptions) -> Bool {
        one.key == other.key && one.trusted == other.trusted && one.engines.map(\.name) == other.engines.map(\.name)
            && one.threads == other.threads && one.retention == other.retention
            && one.blockedWords == other.blockedWords && one.test == other.test
            && one.checkpointEvery == other.checkpointEvery && one.engineIdleMs == other.engineIdleMs
            && one.discardOtherState == other.discardOtherState
    }
}
