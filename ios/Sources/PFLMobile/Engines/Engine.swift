/// A runtime of programs.
public protocol Engine: Sendable {
    /// As bundles write it.
    var name: String { get }

    /// Version of the runtime that the app brings; nil where the runtime does not tell.
    var version: String? { get }

    /// Loads programs, at the latest when they are first run. What a schedule makes of them (`openSession`) is not its concern.
    ///
    /// - Parameters:
    ///   - files: by purpose, as `ModelBundle.engineFiles` gives them
    ///   - programs: their signatures
    ///   - threads: threads of the runtime, where it can be told
    /// - Throws: `.engineUnavailable`: the runtime is not in the app; `.engine`: the runtime refuses a program
    func open(files: [String: String], programs: [ProgramSpec], threads: Int) throws -> any EngineSession
}

extension Engine {
    /// The runtime does not tell.
    public var version: String? { nil }
}

/// A loaded set of programs: tensors by name in, tensors by name out. A call blocks until its program is done, and is not
/// interrupted: whoever cancels waits for one call. Calls from several threads are done one after the other.
public protocol EngineSession: AnyObject, Sendable {
    /// The engine's name.
    var name: String { get }

    /// Signatures of the programs by name.
    var programs: [String: ProgramSpec] { get }

    /// Runs a program.
    ///
    /// - Parameters:
    ///   - program: its name
    ///   - inputs: by name; what the program does not take is left out
    /// - Returns: outputs by name
    /// - Throws: `.unknownName`: there is no such program; `.tensorMismatch`: inputs or outputs are not as the signature says;
    ///   `.engine`: the runtime failed
    func run(_ program: String, _ inputs: TensorSet) throws -> TensorSet
}

/// Loads the programs of a bundle into the first of some engines that it has programs for and that the app brings, new enough.
///
/// A runtime trusts the programs it loads, and a damaged one can end the process. So someone must vouch for them: the bundle
/// was opened with a pinned key, or the caller knows where it came from.
///
/// - Parameters:
///   - bundle: must be held as long as the session, since the session reads its files
///   - trusted: you know who made the bundle, for instance because it came with the app
///   - threads: threads of the runtime, where it can be told
/// - Throws: `.engineUnavailable`: the bundle has programs for none of them, or the runtime is not in the app or older than the
///   programs need; `.signature`: nobody vouches for the programs; `.invalidManifest`: their schedule is damaged, or not of
///   this bundle; `.engine`: the runtime refuses a program
public func openSession(
    _ bundle: ModelBundle, engines: [any Engine], trusted: Bool = false, threads: Int = 1
) throws -> any EngineSession {
    let manifest = bundle.manifest
    let ours = engines.filter { manifest.engines[$0.name] != nil }
    if ours.isEmpty {
        let theirs = manifest.engines.keys.sorted().joined(separator: ", ")
        throw PFLError(
            .engineUnavailable,
            "bundle '\(manifest.name)' has programs for \(theirs) only, the app for "
                + engines.map(\.name).joined(separator: ", "),
            mend: "export the model for one of the app's engines too, or put the engine into the app")
    }
    if !bundle.pinned && !trusted {
        throw PFLError(
            .signature,
            "nobody vouches for the programs of bundle '\(manifest.name)', and a damaged program can end the app",
            mend: "pin the key it was signed with, or say trusted if it came with the app")
    }
    var why: PFLError?
    for engine in ours {
        do {
            return try open(bundle, engine, threads)
        } catch let error as PFLError where error.isA(.engineUnavailable) {
            why = why ?? error
        }
    }
    throw why ?? PFLError(.engineUnavailable, "there is no engine", mend: "give at least one")
}

private func open(_ bundle: ModelBundle, _ engine: any Engine, _ threads: Int) throws -> any EngineSession {
    let manifest = bundle.manifest
    let runtime = manifest.engines[engine.name]?.runtime
    let version = engine.version
    if let needs = runtime, let version, Versions.isOlder(version, than: needs.atLeast) {
        throw PFLError(
            .engineUnavailable,
            "bundle '\(manifest.name)' needs \(engine.name) \(needs.atLeast) or later (it was verified with "
                + "\(needs.verified)), the app has \(version)",
            mend: wayOut(engine, needs))
    }
    do {
        return try openScheduled(engine, try bundle.engineFiles(engine.name), manifest.programs, threads)
    } catch let error as PFLError where error.code == .engine && version == nil {
        // A runtime that does not tell its version may be too old.
        guard let needs = runtime else { throw error }
        throw PFLError(
            .engine, "\(error.message) (it needs \(engine.name) \(needs.atLeast) or later)",
            mend: wayOut(engine, needs),
            cause: error)
    }
}

private func wayOut(_ engine: any Engine, _ needs: RuntimeEntry) -> String {
    "put \(engine.name) \(needs.verified) into the app, or export the model with the version that the app has"
}

private let exportBundleAgain = "export the bundle again"

/// What every session does: looks the program up, checks its inputs, has it run, and checks its outputs.
///
/// - Parameter execute: runs a program on checked inputs in its order, and gives its outputs in its order
/// - Throws: as `EngineSession.run`
public func runChecked(
    _ programs: [String: ProgramSpec], _ program: String, _ inputs: TensorSet,
    _ execute: (ProgramSpec, [Tensor]) throws -> [Tensor]
) throws -> TensorSet {
    guard let spec = programs[program] else {
        throw PFLError(.unknownName, "there is no program '\(program)'", mend: near(program, programs.keys))
    }
    let values = try execute(spec, try checkInputs(spec, inputs))
    return try checkOutputs(spec, values)
}

/// The inputs in the order of the signature. Tensors that the program does not take are left out.
private func checkInputs(_ spec: ProgramSpec, _ inputs: TensorSet) throws -> [Tensor] {
    try spec.inputs.map { want in
        guard let given = inputs[want.name] else {
            throw PFLError(
                .tensorMismatch, "program '\(spec.name)' needs the input '\(want.name)'",
                mend: near(want.name, inputs.keys))
        }
        if given.dtype != want.dtype || given.shape != want.shape {
            throw PFLError(
                .tensorMismatch,
                "input '\(want.name)' of '\(spec.name)' is \(given.signature), the program takes \(want.signature)",
                mend: "pad or split the batch to the shape that the bundle was exported with")
        }
        return given
    }
}

private func checkOutputs(_ spec: ProgramSpec, _ values: [Tensor]) throws -> TensorSet {
    if values.count != spec.outputs.count {
        throw PFLError(
            .tensorMismatch,
            "program '\(spec.name)' gave \(values.count) outputs, the manifest lists \(spec.outputs.count)",
            mend: exportBundleAgain)
    }
    var found: TensorSet = [:]
    for (want, value) in zip(spec.outputs, values) {
        if value.dtype != want.dtype || value.shape != want.shape {
            throw PFLError(
                .tensorMismatch,
                "output '\(want.name)' of '\(spec.name)' is \(value.signature), the manifest says \(want.signature)",
                mend: exportBundleAgain)
        }
        found[want.name] = value
    }
    return found
}

/// The file that an engine loads for a purpose.
///
/// - Throws: `.engine`: the bundle has none
public func engineFile(_ files: [String: String], _ purpose: String) throws -> String {
    guard let file = files[purpose] else {
        throw PFLError(
            .engine, "the bundle has no file for '\(purpose)' of this engine; it has one for \(files.keys.sorted())",
            mend: exportBundleAgain)
    }
    return file
}
