import Foundation

/// What serves now.
struct Serving: Sendable {
    let version: Int
    let state: PersonalState?
    let tensors: TensorSet
    let encoder: TextEncoder?
    let blocked: BlockList
    let warnings: [StateWarning]

    /// The user's own words that have a slot.
    var words: [String] { state?.words ?? [] }
}

/// All that a personal model consists of; its calls block. Whatever changes the state of `store` is kept apart by the model.
final class ModelRoom: @unchecked Sendable {
    let home: String
    let bundle: ModelBundle
    let options: ModelOptions
    let examples: any ExampleStore
    let clock: @Sendable () -> Double
    let id: ModelId
    let initial: TensorSet
    let plan: Plan
    let encoder: TextEncoder?
    let store: PersonalStateStore
    let notes: TrainingNotes
    let rounds: Rounds
    let engine: EngineRoom
    let files: AtomicFiles
    private let blockedWords: [String]
    /// The home's; let go when the model is closed.
    private let lock: Locked<FolderLock?>

    /// Held while a text is kept, so that none slips in that has a word which is being forgotten.
    let keeping = Locked(())
    private let now: Locked<Serving>
    private let vocabulary = Locked<PrefixIndex?>(nil)

    private struct Flags: Sendable {
        var paused = false
        var closed = false
        /// What training has to end for.
        var stops = 0
    }

    private let flags = Locked(Flags())
    /// Rounds under way, which may wait for a network.
    private let taking = Locked<Task<RoundsResult, any Error>?>(nil)

    static let paused = "paused"
    static let unpacked = "unpacked"
    static let erasing = "erasing"
    static let examples = "examples"
    static let key = "examples.key"
    static let rounds = "rounds"
    static let names: Set<String> = ["state", unpacked, paused, erasing, examples, key, rounds, FolderLock.name]
    private static let versions = 5
    private static let stateSeconds = 2.0

    init(
        _ home: String, _ bundle: ModelBundle, _ options: ModelOptions, _ examples: any ExampleStore,
        _ lock: FolderLock, _ comesWithTheApp: Bool,
        _ clock: @escaping @Sendable () -> Double, _ disk: any Disk
    ) throws {
        self.home = home
        self.bundle = bundle
        self.options = options
        self.examples = examples
        self.lock = Locked(lock)
        self.clock = clock
        let id = ModelId(bundle.manifest)
        self.id = id
        files = AtomicFiles(disk)
        let initial = try bundle.values()
        self.initial = initial
        let plan = try Plan(json: bundle.planJSON())
        self.plan = plan
        let encoder = try textEncoder(bundle)
        self.encoder = encoder
        let store = try PersonalStateStore(
            "\(home)/state", model: id, keep: ModelRoom.versions, clock: clock, disk: disk,
            waitSeconds: ModelRoom.stateSeconds)
        self.store = store
        let notes = TrainingNotes(home, files)
        self.notes = notes
        let rounds = Rounds("\(home)/\(ModelRoom.rounds)", id, store, clock)
        self.rounds = rounds
        if options.blockedWords.isEmpty {
            blockedWords = []
        } else {
            guard let rules = encoder?.tokenizer.rules else { throw noText("blocked words") }
            blockedWords = try wordsToForget(options.blockedWords.sorted(), rules: rules)
        }
        engine = EngineRoom(idleMs: options.engineIdleMs) {
            try openSession(
                bundle, engines: options.engines, trusted: options.trusted || comesWithTheApp, threads: options.threads)
        }
        if try diskErrors(home, { try status("\(home)/\(ModelRoom.erasing)") }) != nil {
            try ModelRoom.eraseAll(home, files, rounds, store, examples, notes)
        }
        let sameWeights = bundle.manifest.frozenSha256 != nil
        // The last training was of what is gone.
        if try store.carryOver(sameWeights: sameWeights, discard: options.discardOtherState) { try notes.erase() }
        try rounds.keepServes()
        now = Locked(try ModelRoom.load(store, rounds, plan, initial, encoder))
        let isPaused = try diskErrors(home, { try status("\(home)/\(ModelRoom.paused)") }) != nil
        flags { $0.paused = isPaused }
    }

    // ---- what serves

    var serving: Serving { now.now }

    /// Takes what the store has.
    func load() throws {
        now.now = try ModelRoom.load(store, rounds, plan, initial, encoder)
    }

    private static func load(
        _ store: PersonalStateStore, _ rounds: Rounds, _ plan: Plan, _ initial: TensorSet, _ encoder: TextEncoder?
    ) throws -> Serving {
        let loaded = try store.load()
        let blocked = try store.blocked()
        let words = loaded.state?.words ?? []
        let sets = ["initial": initial, "global": initial]
        return Serving(
            version: loaded.version, state: loaded.state,
            tensors: try served(
                rounds.serves(loaded.version) ?? plan.serve, Work(loaded.state, initial: initial), sets),
            encoder: try encoder.map { try (blocked.size == 0 ? $0 : try $0.withBlocked(blocked)).withWords(words) },
            blocked: blocked, warnings: loaded.warnings)
    }

    func isBlocked(_ word: String) -> Bool {
        !blockedWords.isEmpty && isForgotten(word, blockedWords) || serving.blocked.hides(word)
    }

    /// Words of the vocabulary that begin with a prefix; none over subwords, which are no words.
    func vocabulary(startingWith prefix: String) throws -> [String] {
        guard let encoder, let tokenizer = encoder.tokenizer as? WordTokenizer else { return [] }
        let index = try vocabulary { kept in
            let found = try kept ?? PrefixIndex(tokenizer)
            kept = found
            return found
        }
        return try index.startingWith(prefix).map(encoder.word)
    }

    // ---- what stops what

    var isPaused: Bool { flags.now.paused }
    var isClosed: Bool { flags.now.closed }

    /// Whether training has to end.
    var isStopping: Bool { flags { $0.paused || $0.closed || $0.stops > 0 } }

    func beginStop() {
        flags { $0.stops += 1 }
        taking.now?.cancel()
    }

    /// Rounds that are to be stopped as training is; nil for none.
    func take(_ rounds: Task<RoundsResult, any Error>?) {
        taking.now = rounds
        if isStopping { rounds?.cancel() }
    }

    func endStop() { flags { $0.stops -= 1 } }

    func pause() throws {
        flags { $0.paused = true }
        taking.now?.cancel()
        try files.write("\(home)/\(ModelRoom.paused)", [])
    }

    func resume() throws {
        try files.delete("\(home)/\(ModelRoom.paused)")
        flags { $0.paused = false }
    }

    func beginClose() {
        flags { $0.closed = true }
        taking.now?.cancel()
    }

    /// One after the other, whatever fails.
    func close() throws {
        defer { lock.now = nil }
        engine.close()
        rounds.close()
        try examples.close()
    }

    // ---- examples

    func keep(_ payload: Payload) throws -> RememberResult {
        do {
            return try examples.add(payload).map { .kept(id: $0) } ?? .refused(.storageFull)
        } catch let error as PFLError where error.code == .storageFull {
            return .refused(.storageFull)
        }
    }

    /// Those that a training under way began with, where they are all there still; else all.
    private func givenExamples() throws -> Examples {
        let all = try usable()
        let began = try diskErrors(home, { try status(store.checkpoint) }) == nil ? nil : notes.began
        var given = all
        var same = false
        if let began {
            let those = all.filter { $0.id <= began.last }
            same = those.count == began.count && those.first?.id == began.first
            if same { given = those }
        }
        if !same, let first = given.first, let last = given.last {
            try notes.begin(Began(first: first.id, last: last.id, count: given.count))
        }
        return asExamples(given)
    }

    func usable() throws -> [Example] { try examples.examples(newest: nil).filter(isUsable) }

    func asExamples(_ given: [Example]) -> Examples {
        if encoder != nil {
            return .texts(
                given.compactMap { if case .text(let text) = $0.payload { text } else { nil } })
        }
        let rows: [Rows] = given.compactMap { if case .arrays(let rows) = $0.payload { rows } else { nil } }
        return .arrays(stackRows(rows))
    }

    /// What this bundle can learn from; others were kept for another one.
    private func isUsable(_ example: Example) throws -> Bool {
        switch example.payload {
        case .text(let text):
            guard let encoder else { return false }
            return !encoder.tokenizer.rules.cut(text).contains(where: isBlocked)
        case .arrays(let arrays):
            if encoder != nil { return false }
            return try bundle.manifest.batchInputs("gradients").allSatisfy { input in
                arrays[input.name].map { $0.dtype == input.dtype && $0.shape == one(input) } ?? false
            }
        }
    }

    /// The example of one array of features.
    func row(_ program: String, _ features: [Float]) throws -> (name: String, value: Tensor) {
        let inputs = try bundle.manifest.batchInputs(program).filter { $0.name != "weight" && $0.name != "labels" }
        guard encoder == nil, inputs.count == 1, let input = inputs.first, input.dtype == .float32 else {
            throw PFLError(
                .config, "the bundle does not take one array of float32",
                mend: "give arrays by name: \(inputs.map(\.name).joined(separator: ", "))")
        }
        let shape = one(input)
        if length(shape) != features.count {
            throw PFLError(
                .tensorMismatch, "there are \(features.count) features, not \(Array(shape.dropFirst()))",
                mend: "give all of them, in order")
        }
        return (input.name, .float(FloatTensor(features, shape)))
    }

    /// One example as a row of a batch of one.
    func row(_ program: String, _ arrays: TensorSet) throws -> Rows {
        let inputs = try bundle.manifest.batchInputs(program)
        let names = inputs.map(\.name).joined(separator: ", ")
        if let other = arrays.keys.sorted().first(where: { name in !inputs.contains { $0.name == name } }) {
            throw PFLError(.tensorMismatch, "'\(other)' is no input of '\(program)'", mend: "give \(names)")
        }
        var row: Rows = [:]
        for input in inputs {
            let wanted = one(input)
            let value: Tensor
            if let given = arrays[input.name] {
                value = given
            } else if input.name == "weight" {
                value = .float(FloatTensor([Float](repeating: 1, count: length(wanted)), wanted))
            } else {
                throw PFLError(.tensorMismatch, "'\(input.name)' is missing", mend: "give \(names)")
            }
            if value.dtype != input.dtype || value.shape != wanted && value.shape != Array(wanted.dropFirst()) {
                throw PFLError(
                    .tensorMismatch, "'\(input.name)' is \(value.signature), not \(input.dtype.rawValue)\(wanted)",
                    mend: "convert it")
            }
            if value.countNotFinite > 0 {
                throw PFLError(
                    .data, "'\(input.name)' has a number that is not finite", mend: "leave the example out")
            }
            row[input.name] = reshaped(value, wanted)
        }
        return row
    }

    /// A label that is no class would spoil every batch that it is in.
    func checkLabels(_ row: Rows) throws {
        guard let classes = bundle.manifest.task.vocabulary, case .long(let labels)? = row["labels"],
            let wrong = labels.values.first(where: { $0 < 0 || $0 >= classes })
        else { return }
        throw PFLError(
            .data, "the label \(wrong) is not in 0..\(classes - 1)",
            mend: wrong < 0
                ? "a label that must not count gets the weight 0 and any class, 0 for instance"
                : "number the classes from 0, or export the model with as many outputs as there are classes")
    }

    // ---- learning

    /// Training was stopped; whoever did so knows.
    private struct Stopped: Error {}

    /// Learns; the task is stopped by `interrupt`.
    ///
    /// - Throws: `CancellationError`: it was
    func train(_ interrupt: Interrupt, _ onProgress: @escaping @Sendable (TrainingProgress) -> Void) throws
        -> PersonalizeResult
    {
        if isClosed { throw closedModel() }
        if isPaused { return .paused }
        var have = 0
        var result: PersonalizeResult
        do {
            try interrupt.check()
            let given = try givenExamples()
            have = given.size
            result = try engine.use { try finished(try train($0, given, interrupt, onProgress)) }
        } catch is Stopped {
            result = .cancelled
        } catch is CancellationError {
            result = .cancelled
        } catch let error as PFLError where error.code == .noExamples {
            try notes.done()
            result = .notEnoughExamples(have: have)
        } catch let error as PFLError {
            result = .failed(error)
        }
        do {
            try load()
        } catch let error as PFLError {
            result = .failed(error)
        }
        if case .cancelled = result { try interrupt.check() }
        return result
    }

    private func train(
        _ session: any EngineSession, _ given: Examples, _ interrupt: Interrupt,
        _ onProgress: (TrainingProgress) throws -> Void
    ) throws -> UserResult {
        let began = try store.current
        // Between steps the trainer looks itself, and keeps a checkpoint; where it measures, each batch may be the last. What is
        // adopted is measured to the end, so that the report is of what serves.
        let watched = Watched(session) { [self] program in
            if program == "evaluate", interrupt.isSet || isStopping, try store.current == began {
                throw Stopped()
            }
        }
        let checkpoints = try Checkpoints(store.checkpoint, model: id, every: options.checkpointEvery)
        return try Evaluator(bundle, watched).beginning(with: rounds.serves(began)).personalize(
            given, test: options.test, store: store, checkpoints: checkpoints, onProgress: onProgress
        ) { interrupt.isSet || isStopping }
    }

    private func finished(_ result: UserResult) throws -> PersonalizeResult {
        let report = result.report
        if report.status == .cancelled { return .cancelled }
        let count = result.train + result.holdout + result.test
        try notes.done()
        if report.status == .skipped, report.guardReport?.reason == .tooFewExamples {
            return .notEnoughExamples(have: count)
        }
        let adopted = report.status == .adopted
        try notes.write(
            LastTraining(
                at: clock(), adopted: adopted, version: try store.current, before: result.before, after: result.after,
                steps: report.steps, examples: count))
        return adopted ? .adopted(result) : .kept(result)
    }

    // ---- what the user controls

    func forgetWord(_ word: String) throws -> Forgotten {
        guard let encoder else { throw noText("a word") }
        try rounds.discard()
        let forgotten = try forget(
            store, [word], encoder: encoder, table: bundle.manifest.tensors, initial: initial)
        // A text that comes now is refused, and one that came before is among those below.
        try keeping { _ in try load() }
        let with = try examples.examples(newest: nil).filter { example in
            guard case .text(let text) = example.payload else { return false }
            return encoder.tokenizer.rules.cut(text).contains { isForgotten($0, forgotten.words) }
        }
        _ = try examples.erase(with.map(\.id))
        return forgotten
    }

    func forgetExample(_ id: Int) throws -> Bool {
        try rounds.discard()
        return try examples.erase([id]) == 1
    }

    func eraseAll() throws { try ModelRoom.eraseAll(home, files, rounds, store, examples, notes) }

    private static func eraseAll(
        _ home: String, _ files: AtomicFiles, _ rounds: Rounds, _ store: PersonalStateStore,
        _ examples: any ExampleStore, _ notes: TrainingNotes
    ) throws {
        try mark(home, files)
        // Each of them, whatever goes wrong with another.
        let faults: [any Error] = [
            { try rounds.erase() }, { try store.erase() }, { _ = try examples.eraseAll() }, { try notes.erase() },
        ].compactMap { (step: () throws -> Void) in
            do {
                try step()
                return nil
            } catch {
                return error
            }
        }
        if let fault = faults.first { throw fault }
        try files.delete("\(home)/\(erasing)")
    }

    /// What is killed while it erases is ended by the next opening; a full disk keeps nobody from erasing.
    static func mark(_ home: String, _ files: AtomicFiles) throws {
        do {
            try files.write("\(home)/\(erasing)", [])
        } catch let error as PFLError where error.code == .storageFull || error.code == .unwritable {
            return
        }
    }
}

/// A session of which somebody looks at each call before it is made.
final class Watched: EngineSession {
    private let session: any EngineSession
    private let before: @Sendable (String) throws -> Void

    init(_ session: any EngineSession, before: @escaping @Sendable (String) throws -> Void) {
        self.session = session
        self.before = before
    }

    var name: String { session.name }
    var programs: [String: ProgramSpec] { session.programs }

    func run(_ program: String, _ inputs: TensorSet) throws -> TensorSet {
        try before(program)
        return try session.run(program, inputs)
    }
}

func noText(_ what: String) -> PFLError {
    PFLError(.config, "the bundle takes arrays; \(what) makes no sense for it", mend: "give arrays")
}

/// The shape of a batch of one.
private func one(_ input: TensorSpec) -> [Int] { [1] + input.shape.dropFirst() }

private func reshaped(_ value: Tensor, _ shape: [Int]) -> Tensor {
    switch value {
    case .float(let tensor): .float(FloatTensor(tensor.values, shape))
    case .long(let tensor): .long(LongTensor(tensor.values, shape))
    case .raw(let tensor): .raw(RawTensor(tensor.dtype, tensor.bytes, shape))
    }
}
