import Foundation

/// A model that learns from its user, on the device: what the user did is remembered, what was learned from it is kept only where
/// the guard finds it better, and all of it can be looked at, forgotten and erased. Nothing is sent but by
/// `takePart`.
///
///     FOLDER/state/         the personal state, as `PersonalStateStore` keeps it
///     FOLDER/examples       the user's examples, encrypted, unless the app keeps them elsewhere
///     FOLDER/examples.key   their key, unless the app keeps it elsewhere
///     FOLDER/last.json      the last training, for a status screen
///     FOLDER/under-way      which examples a training of which there is a checkpoint began with
///     FOLDER/erasing        there while everything is erased, so that the next opening ends what a killed process began
///     FOLDER/paused         there while the user paused learning
///     FOLDER/rounds/        the device of a federation, as `DeviceFolder` keeps it, from the first round on
///     FOLDER/unpacked/      the bundle
///
/// What blocks is done on threads of its own, none of which tasks need. A suggestion waits for one step of training at most.
/// Forgetting, reverting and erasing stop a training under way, within one step.
public actor PersonalModel {
    nonisolated let room: ModelRoom

    /// Held by whatever changes the personal state.
    private let changing = AsyncMutex()
    private var isTraining = false

    private init(_ room: ModelRoom) {
        self.room = room
    }

    /// Name, version and fingerprint of the bundle.
    public nonisolated var model: ModelId { room.id }

    /// The folder where everything personal lies.
    public nonisolated var folder: URL { URL(fileURLWithPath: room.home) }

    /// As it was opened.
    public nonisolated var options: ModelOptions { room.options }

    /// ISO 15924 codes of scripts in which the model is of no use (Thai has words without spaces, for instance), as the bundle
    /// says it, so that an app can tell its users; empty where it does not say.
    public nonisolated var scriptsNotServed: Set<String> {
        if case .text(let entry) = room.bundle.manifest.encoder { Set(entry.scriptsNotServed) } else { [] }
    }

    /// Whether the bundle takes texts; else it takes arrays.
    public nonisolated var takesText: Bool { room.encoder != nil }

    // ---- what the user did

    /// Keeps a text to learn from.
    ///
    /// - Throws: `.config`: the bundle takes arrays; `.state`: the examples cannot be used, or the model is closed
    @discardableResult
    public func remember(_ text: String) async throws -> RememberResult {
        guard let encoder = room.encoder else { throw noText("a text") }
        return try await doing { room, _ in
            let pieces = try encoder.tokenizer.words(text)
            let words = encoder.tokenizer.rules.cut(text)
            if room.isPaused { return .refused(.paused) }
            if pieces.isEmpty { return .refused(.empty) }
            return try room.keeping { _ in
                words.contains(where: room.isBlocked) ? .refused(.blocked) : try room.keep(.text(text))
            }
        }
    }

    /// Keeps one example to learn from.
    ///
    /// - Parameter arrays: as the inputs of the program `gradients` name them, without the first axis, or with one of 1; `weight`
    ///   may be missing and is 1 then
    /// - Throws: `.config`: the bundle takes texts; `.tensorMismatch`: the arrays are not those of the bundle; `.data`: a weight
    ///   is negative, a number is not finite, or a label is none of the model's classes; `.state`: the examples cannot be used, or the model is closed
    @discardableResult
    public func remember(_ arrays: TensorSet) async throws -> RememberResult {
        if takesText { throw noArrays("give a text") }
        return try await doing { room, _ in
            let row = try room.row("gradients", arrays)
            try checkRows(row, "example")
            try room.checkLabels(row)
            if room.isPaused { return .refused(.paused) }
            if weights(row).values.allSatisfy({ $0 == 0 }) { return .refused(.empty) }
            return try room.keep(.arrays(row))
        }
    }

    /// The same for a classifier of `features` in one array.
    ///
    /// - Parameter label: from 0 to the number of classes less 1
    @discardableResult
    public func remember(_ features: [Float], label: Int) async throws -> RememberResult {
        let (name, value) = try room.row("gradients", features)
        return try await remember([name: value, "labels": .long(LongTensor([Int64(label)], [1]))])
    }

    // ---- what the model says

    /// At most `count` likely next words, the likeliest first; none that is blocked or that the user wants forgotten.
    ///
    /// - Parameter text: what was typed, up to the end of a word
    /// - Throws: `.config`: the bundle takes arrays; `.engine`: the engine cannot run the bundle; `.state`: the model is closed;
    ///   `CancellationError`
    public func suggest(_ text: String, count: Int = 3) async throws -> [Suggestion] {
        if !takesText { throw noText("a text") }
        return try await doing { room, interrupt in
            let now = room.serving
            guard let encoder = now.encoder else { return [] }
            let found = try room.engine.use { session in
                try PFLMobile.suggest(encoder, after: text, count: count) { typed in
                    try interrupt.check()  // who typed on asks for something else
                    let context: TensorSet = ["tokens": .long(typed.tokens), "position": .long(typed.position)]
                    return try Predicted(try session.run("predict", now.tensors.merging(context) { $1 }))
                }
            }
            return found.filter { !room.isBlocked($0.word) }
        }
    }

    /// At most `count` words that begin with `prefix` and are longer: the likely ones first, then the user's own, then those of
    /// the vocabulary, the most used first; none that is blocked or that the user wants forgotten.
    ///
    /// - Parameters:
    ///   - text: what stands before the word that was begun
    ///   - prefix: what was typed of it
    /// - Throws: as `suggest`
    public func complete(_ text: String, prefix: String, count: Int = 3) async throws -> [String] {
        // Over subwords each further word costs calls of the program.
        let overWords = room.encoder?.tokenizer is WordTokenizer
        let likely = try await suggest(text, count: overWords ? .max : PersonalModel.mostWhole).map(\.word)
        return try await doing { room, _ in
            PFLMobile.complete(
                likely, own: room.serving.words,
                vocabulary: try room.vocabulary(startingWith: prefix).filter { !room.isBlocked($0) }, prefix: prefix,
                count: count)
        }
    }

    /// What the model says of one example.
    ///
    /// - Parameter arrays: as the inputs of the program `predict` name them, without the first axis, or with one of 1
    /// - Throws: `.config`: the bundle takes texts; `.tensorMismatch`: the arrays are not those of the bundle; `.engine`: the
    ///   engine cannot run the bundle; `.state`: the model is closed
    public func predict(_ arrays: TensorSet) async throws -> Prediction {
        if takesText { throw noArrays("call suggest") }
        return try await doing { room, _ in
            let row = try room.row("predict", arrays)
            let tensors = room.serving.tensors.merging(row) { $1 }
            return Prediction(outputs: try room.engine.use { try $0.run("predict", tensors) })
        }
    }

    /// The same of `features` in one array.
    public func predict(_ features: [Float]) async throws -> Prediction {
        let (name, value) = try room.row("predict", features)
        return try await predict([name: value])
    }

    // ---- learning

    /// Learns from the examples by the bundle's plan, as `pfl personalize` does: the newest measure what it brought, and the guard
    /// adopts it only if it is better. It runs until it is done; the task may be cancelled, which is honoured within one step.
    /// Cancelled or killed, the next call goes on from the last checkpoint, with the examples that it began with, and ends in the
    /// same bits.
    ///
    /// - Parameter onProgress: called after each step, on another thread
    /// - Throws: `CancellationError`: the task was cancelled; `.state`: the model is closed
    @discardableResult
    public func personalize(
        _ onProgress: @escaping @Sendable (TrainingProgress) -> Void = { _ in }
    ) async throws -> PersonalizeResult {
        if isTraining {
            return .failed(PFLError(.state, "training is under way already", mend: "wait until it has ended"))
        }
        isTraining = true
        defer { isTraining = false }
        let room = room
        return try await changing.withLock {
            try await offload(patient: true) { try room.train($0, onProgress) }
        }
    }

    // ---- rounds with other devices

    /// Takes part in a federation: asks for a task once, learns by it from the kept examples, and sends what the policy lets go. It
    /// learns on the personal state of this model, by the guard as ever; examples, words and state stay here. One training runs at
    /// a time. The engine is loaded and checked only once there is a task.
    ///
    /// Cancelled, killed or without a network, nothing is lost: a finished update waits, and the next call sends it first of all.
    /// Pause, forget, revert and erase stop it, within one step; what was made of something that is forgotten is sent no more.
    /// After `revert` an update that waits is still sent, as it was made of examples that are still there.
    ///
    /// - Parameters:
    ///   - federation: where; a device that is enrolled at another server leaves it, and what waited for it is sent no more
    ///   - facts: told to the aggregator, so that it asks only a phone that can
    ///   - rounds: go on until so many updates were accepted, or the federation trains no more; nil asks once
    ///   - onEvent: told what happens, on another thread
    /// - Throws: `CancellationError`: the task was cancelled; `.state`: the model is closed
    @discardableResult
    public func takePart(
        _ federation: Federation, facts: DeviceFacts = DeviceFacts(), rounds: Int? = nil,
        onEvent: @escaping @Sendable (Event) -> Void = { _ in }
    ) async throws -> RoundsResult {
        if room.isClosed { throw closedModel() }
        if room.isPaused { return .paused }
        if isTraining {
            return .failed(PFLError(.state, "training is under way already", mend: "wait until it has ended"))
        }
        isTraining = true
        defer { isTraining = false }
        let room = room
        do {
            return try await changing.withLock {
                let work = Task { try await RoundsWorker().takePart(room, federation, facts, rounds, onEvent) }
                room.take(work)
                defer { room.take(nil) }
                return try await withTaskCancellationHandler {
                    try await work.value
                } onCancel: {
                    work.cancel()
                }
            }
        } catch is CancellationError where !Task.isCancelled {
            return .cancelled
        }
    }

    /// Ends the membership, at whichever server it is: what waits is sent no more, and the aggregator forgets the device. What was
    /// learned stays; what was sent cannot be taken back. Without a network the device has left all the same, and the aggregator
    /// is told by the next call of this or of `takePart`; nothing else waits for that.
    ///
    /// - Parameter federation: how aggregators are reached, as in `takePart`
    /// - Throws: `CancellationError`; `.state`: the model is closed
    @discardableResult
    public func leave(_ federation: Federation) async throws -> LeaveResult {
        do {
            guard try await change({ try $0.rounds.end() }) else { return .notThere }
            return try await RoundsWorker().tell(room, federation)
        } catch let error as PFLError
            where error.isA(.deviceFolder) || error.isA(.unwritable) || error.isA(.storageFull)
        {
            return .failed(error)
        }
    }

    // ---- what the user controls

    /// What a status screen shows.
    public func status() async throws -> ModelStatus {
        let training = isTraining
        return try await doing { room, _ in
            let now = room.serving
            return ModelStatus(
                model: room.id, version: now.version, examples: try room.examples.count(), words: now.words.count,
                paused: room.isPaused, training: training, engineOpen: room.engine.isOpen, last: room.notes.last,
                warnings: now.warnings, rounds: try room.rounds.status())
        }
    }

    /// The kept examples, oldest first; with `newest` only so many of the newest.
    public func examples(newest: Int? = nil) async throws -> [Example] {
        try await doing { room, _ in try room.examples.examples(newest: newest) }
    }

    /// The user's own words that have a slot.
    public func learnedWords() async throws -> [String] { try await doing { room, _ in room.serving.words } }

    /// The saved versions of the personal state, oldest first.
    public func versions() async throws -> [VersionInfo] { try await doing { room, _ in try room.store.versions() } }

    /// Erases an example; false if there was none with this id. What was learned from it stays until the model learns anew:
    /// `revert` or `eraseEverything` take that back. Updates that wait to be sent are thrown away.
    @discardableResult
    public func forgetExample(_ id: Int) async throws -> Bool {
        try await change { try $0.forgetExample(id) }
    }

    /// Forgets a word: in every saved state, in the examples that hold it, in what waits to be sent, and for
    /// the future.
    ///
    /// - Throws: `.config`: it is no word, or several; or the bundle takes arrays; `.state`: the state cannot be used;
    ///   `.storageFull`: the disk is full, so call again once there is space
    @discardableResult
    public func forgetWord(_ word: String) async throws -> Forgotten {
        if !takesText { throw noText("a word") }
        return try await change { try $0.forgetWord(word) }
    }

    /// Makes an earlier version of the personal state serve; returns its number.
    ///
    /// - Parameter version: which; 0 for the shipped model; nil for the one before the current
    /// - Throws: `.state`: there is no such version, or it is damaged; nothing changes
    @discardableResult
    public func revert(_ version: Int? = nil) async throws -> Int {
        try await change { try $0.rounds.revert(version) }
    }

    /// Erases every example, all that was learned and everything that tells of it; the shipped model serves again. The
    /// device of a federation loses its credential and what waits to be sent, but not the count of what was sent: see `leave`
    /// for telling the aggregator too. Killed or failed on the way, it is ended when the model is next opened.
    public func eraseEverything() async throws { try await change { try $0.eraseAll() } }

    /// Stops remembering and learning until `resume`; training under way ends within one step. It outlives the process.
    public func pause() async throws { try await doing { room, _ in try room.pause() } }

    /// Ends `pause`.
    public func resume() async throws { try await doing { room, _ in try room.resume() } }

    /// Frees everything, once each `open` of this model was closed. A training under way ends within one step, with a checkpoint.
    ///
    /// A process that serves suggestions need not call it: an idle engine is freed by itself.
    ///
    /// - Throws: `.state`: the examples cannot be closed; all else is
    public func close() async throws {
        guard try await PersonalModel.leave(self) else { return }
        room.beginClose()
        let room = room
        try await changing.withLock(cancellable: false) {
            try await offload { _ in try room.close() }
        }
    }

    // ---- parts

    /// Over subwords, words that are put together for one completion.
    private static let mostWhole = 12

    private func doing<Result: Sendable>(
        _ step: @escaping @Sendable (ModelRoom, Interrupt) throws -> Result
    ) async throws -> Result {
        let room = room
        return try await offload { interrupt in
            if room.isClosed { throw closedModel() }
            return try step(room, interrupt)
        }
    }

    /// Does a step for which training under way has to end.
    private func change<Result: Sendable>(_ step: @escaping @Sendable (ModelRoom) throws -> Result) async throws
        -> Result
    {
        room.beginStop()
        defer { room.endStop() }
        return try await changing.withLock {
            try await doing { room, _ in
                let result = Swift.Result { try step(room) }
                try room.load()
                return try result.get()
            }
        }
    }

    private func noArrays(_ mend: String) -> PFLError {
        PFLError(.config, "the bundle takes texts, not arrays", mend: mend)
    }
}

// ---- opening

extension PersonalModel {
    private struct Opened {
        let model: PersonalModel
        let source: String
        var users: Int
    }

    private static let opening = AsyncMutex()
    private static let opened = Locked<[String: Opened]>([:])
    private static let lockSeconds = 0.2
    /// Where the app's copy of its bundle may lie before the first opening.
    private static let shipped: Set<String> = ["bundle"]

    /// Opens the model of a bundle with what was learned before. A second opening of the same folder in this process gives the
    /// same model; it is closed when each was closed.
    ///
    /// - Parameters:
    ///   - bundle: its folder or `.pflb` file. What lies in the app itself is trusted; for a bundle from elsewhere pin the key that
    ///     signed it
    ///   - folder: where everything personal is kept, and nothing else; made when missing, for its owner alone. One folder for each
    ///     bundle name; by default one in the app's support folder, named as the bundle's file
    ///   - options: must be those of the first opening; by default the engines that are linked into the app, and the rest as
    ///     `ModelOptions` has it
    ///   - examples: opens where the user's examples are kept; by default a `FileExampleStore` whose key lies beside it
    ///   - clock: seconds since 1970
    /// - Throws: `.bundle`: the bundle cannot be used; `.state`: another process has the folder open, or what lies there was
    ///   learned with a bundle that does not fit this one; `.config`: this process has it open with other options, the bundle does
    ///   not fit itself or the options, or the folder holds something else; `.storageFull`: no room to unpack the bundle;
    ///   `CancellationError`
    public static func open(
        bundle: URL, folder: URL? = nil, options: ModelOptions? = nil,
        examples: (@Sendable (URL) throws -> any ExampleStore)? = nil,
        clock: @escaping @Sendable () -> Double = { Date().timeIntervalSince1970 }
    ) async throws -> PersonalModel {
        try await open(bundle, folder, options ?? ModelOptions(), clock, RealDisk(), examples)
    }

    /// The same with these engines and no other options.
    ///
    /// - Parameter trusted: you know who made the bundle, for instance because it came with the app
    public static func open(
        bundle: URL, folder: URL? = nil, engines: [any Engine], trusted: Bool = false
    ) async throws -> PersonalModel {
        try await open(bundle: bundle, folder: folder, options: try ModelOptions(trusted: trusted, engines: engines))
    }

    static func open(
        _ bundle: URL, _ folder: URL?, _ options: ModelOptions, _ clock: @escaping @Sendable () -> Double,
        _ disk: any Disk, _ examples: (@Sendable (URL) throws -> any ExampleStore)?
    ) async throws -> PersonalModel {
        let folder = try folder ?? self.folder(for: bundle)
        let source = bundle.standardizedFileURL.path
        let model = try await opening.withLock {
            try await offload { _ in
                try ofItsOwn(folder.path)
                try privateFolder(folder.path) { ModelRoom.names.contains($0) }
                let home = try realPath(folder.path)
                return try opened { opened in
                    guard let there = opened[home] else {
                        let room = try openFirst(bundle, home, options, clock, disk, examples)
                        let model = PersonalModel(room)
                        opened[home] = Opened(model: model, source: source, users: 1)
                        return model
                    }
                    if there.model.options != options || there.source != source {
                        throw PFLError(
                            .config, "\(home) is open already with other options, or of another bundle",
                            mend: "give the same, or a folder of its own for each bundle")
                    }
                    opened[home]?.users += 1
                    return there.model
                }
            }
        }
        if Task.isCancelled {
            // Nobody gets it, so nobody would close it.
            try await model.close()
            throw CancellationError()
        }
        return model
    }

    private static func openFirst(
        _ source: URL, _ home: String, _ options: ModelOptions, _ clock: @escaping @Sendable () -> Double,
        _ disk: any Disk, _ examples: (@Sendable (URL) throws -> any ExampleStore)?
    ) throws -> ModelRoom {
        let lock = try alone(home)
        let cache = URL(fileURLWithPath: "\(home)/\(ModelRoom.unpacked)")
        try privateFolder(cache.path) { _ in true }
        for left in try diskErrors(cache.path, { try namesIn(cache.path) }) {
            try? FileManager.default.removeItem(at: cache.appendingPathComponent(left))
        }
        let bundle = try ModelBundle.open(source, publicKey: options.key, cacheFolder: cache)
        let kept =
            try examples?(URL(fileURLWithPath: home))
            ?? FileExampleStore(
                URL(fileURLWithPath: "\(home)/\(ModelRoom.examples)"), retention: options.retention,
                key: FileKey(URL(fileURLWithPath: "\(home)/\(ModelRoom.key)")))
        do {
            return try ModelRoom(home, bundle, options, kept, lock, comesWithTheApp(source), clock, disk)
        } catch {
            try? kept.close()
            throw error
        }
    }

    /// Whether a file lies in the app, of which an extension is a part. Who can change it there can change the program too.
    private static func comesWithTheApp(_ file: URL) -> Bool {
        var app = Bundle.main.bundleURL
        if app.pathExtension == "appex" { app = app.deletingLastPathComponent().deletingLastPathComponent() }
        #if canImport(Darwin)
            // A program without a bundle of its own lies among files of others.
            if app.pathExtension != "app" { return false }
        #endif
        guard let app = try? realPath(app.path), app != "/", let found = try? realPath(file.path) else { return false }
        return found.hasPrefix(app + "/")
    }

    /// Whether this process has the model of a folder open.
    public static func isOpen(folder: URL) async throws -> Bool {
        try await opening.withLock {
            guard try diskErrors(folder.path, { try PFLMobile.status(folder.path) }) != nil else { return false }
            let home = try realPath(folder.path)
            return opened { $0[home] != nil }
        }
    }

    /// Removes a folder with everything that was kept in it, also where it is too damaged to be opened. How much was sent to
    /// federations is forgotten too.
    ///
    /// - Throws: `.state`: this process or another has it open, or no model was ever opened there, and nothing is removed;
    ///   `.unwritable`: something cannot be removed
    public static func erase(folder: URL) async throws {
        try await opening.withLock {
            try await offload { _ in
                guard try diskErrors(folder.path, { try PFLMobile.status(folder.path) }) != nil else { return }
                let home = try realPath(folder.path)
                if opened({ $0[home] != nil }) {
                    throw PFLError(
                        .state, "the personal model in \(home) is open",
                        mend: "call eraseEverything(), or close it first")
                }
                let there = try diskErrors(home) { try namesIn(home) }
                if !there.isEmpty && !isHome(there) {
                    throw PFLError(
                        .state, "\(home) is no folder of a personal model", mend: "give the one that it was opened with"
                    )
                }
                let lock = try alone(home)
                defer { withExtendedLifetime(lock) {} }
                try ModelRoom.mark(home, AtomicFiles())
                func remove(_ name: String) -> Bool {
                    (try? FileManager.default.removeItem(atPath: "\(home)/\(name)")) != nil
                }
                // Last what says that a model was opened there.
                let last = [ModelRoom.erasing, FolderLock.name]
                var removed = true
                for name in there where !last.contains(name) { removed = remove(name) && removed }
                guard removed, (try? FileManager.default.removeItem(atPath: home)) != nil else {
                    throw PFLError(
                        .unwritable, "\(home) cannot be removed", mend: "restart the device, and try again")
                }
            }
        }
    }

    /// Whether the last user of a model left.
    private static func leave(_ model: PersonalModel) async throws -> Bool {
        try await opening.withLock(cancellable: false) {
            opened { opened in
                let home = model.room.home
                guard let there = opened[home], there.model === model else { return false }
                if there.users > 1 {
                    opened[home]?.users -= 1
                    return false
                }
                opened[home] = nil
                return true
            }
        }
    }

    /// Erasing removes all that lies there, so it must not be somebody else's.
    private static func ofItsOwn(_ folder: String) throws {
        guard try diskErrors(folder, { try PFLMobile.status(folder) })?.isFolder == true else { return }
        let there = try diskErrors(folder) { try namesIn(folder) }
        if isHome(there) { return }
        if let alien = there.first(where: { !ModelRoom.names.contains($0) && !shipped.contains($0) }) {
            throw PFLError(
                .config, "\(folder) holds something else: \(alien)",
                mend: "give a folder of its own, which may be missing")
        }
    }

    /// Whether these are names in a folder where a model was opened; early versions of this package made no file for the lock.
    private static func isHome(_ names: [String]) -> Bool {
        names.contains(FolderLock.name) || names.contains("state") && names.contains(ModelRoom.unpacked)
    }

    private static func alone(_ home: String) throws -> FolderLock {
        if let lock = try diskErrors(home, { try FolderLock.take(home, seconds: lockSeconds) }) { return lock }
        throw PFLError(
            .state, "the personal model in \(home) is open in another process",
            mend: "open it in one process of the app only")
    }

    private static func realPath(_ folder: String) throws -> String {
        try diskErrors(folder) {
            guard let found = realpath(folder, nil) else { throw SystemError.last(folder) }
            defer { free(found) }
            return String(cString: found)
        }
    }

    /// The folder of a bundle that is given none.
    private static func folder(for bundle: URL) throws -> URL {
        let name =
            bundle.lastPathComponent.hasSuffix(".pflb")
            ? String(bundle.lastPathComponent.dropLast(5)) : bundle.lastPathComponent
        let base = String(
            name.unicodeScalars.map { scalar in
                scalar.isASCII && (scalar.properties.isAlphabetic || "0123456789._-".unicodeScalars.contains(scalar))
                    ? Character(scalar) : "_"
            })
        if base.isEmpty || base.allSatisfy({ $0 == "." }) {
            throw PFLError(.data, "'\(name)' is no name of a bundle", mend: "give one like keyboard.pflb")
        }
        let support = FileManager.default.urls(for: .applicationSupportDirectory, in: .userDomainMask).first
        guard let support else {
            throw PFLError(.unwritable, "this system has no folder for an app's files", mend: "give a folder")
        }
        return support.appendingPathComponent("pfl").appendingPathComponent(base)
    }
}
