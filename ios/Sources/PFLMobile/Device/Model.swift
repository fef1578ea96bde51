/// The model that a device trains: a bundle whose programs were checked on this device; see `open`.
public struct Model: Sendable {
    /// Which model it is.
    public let id: ModelId
    let session: any EngineSession
    let tensors: [DeviceTensor]
    let initial: TensorSet
    var encoder: (any ExampleEncoder)?
    var most: Int?
    var work = Most()

    /// Name of the engine.
    var engine: String { session.name }

    /// As the protocol names it.
    var bundle: BundleId { BundleId(id) }

    /// No set of values that belongs to this model has more bytes.
    var mostSetBytes: Int { 4 * initial.values.reduce(0) { $0 + $1.size * $1.dtype.bytes + 1024 } + 1 << 20 }

    init(
        id: ModelId, session: any EngineSession, tensors: [DeviceTensor], initial: TensorSet,
        encoder: (any ExampleEncoder)? = nil, most: Int? = nil, work: Most = Most()
    ) {
        self.id = id
        self.session = session
        self.tensors = tensors
        self.initial = initial
        self.encoder = encoder
        self.most = most
        self.work = work
    }

    /// Refuses values that do not belong to the model.
    ///
    /// - Throws: `.protocol`: a tensor that the model does not have, or of another shape or type. One value may stand for a
    ///   whole tensor, except in `global`; `.nonFinite`: a value is NaN or infinite
    func checkSet(_ name: String, _ values: TensorSet) throws {
        let shapes = Dictionary(tensors.filter { $0.update == .gradient }.map { ($0.name, $0.shape) }) { one, _ in one }
        for (tensor, value) in values.sorted(by: { nameOrder($0.key, $1.key) }) {
            let shape = shapes[tensor]
            let fits = shape != nil && (value.shape == shape || value.size == 1 && name != "global")
            if !fits || value.float == nil {
                throw PFLError(
                    .protocol,
                    "the set '\(name)' has a tensor '\(tensor)', \(value.signature), that this model has not",
                    mend: "update the bundle, or the aggregator's")
            }
            if value.countNotFinite > 0 {
                throw PFLError(
                    .nonFinite, "'\(tensor)' in the set '\(name)' is not finite", mend: "ask the operator")
            }
        }
    }

    /// Checks that this engine trains as PyTorch did at the export.
    ///
    /// - Parameters:
    ///   - bundle: an open bundle, which must be held as long as the session
    ///   - session: its programs on an engine
    /// - Throws: `.engine`: there is no program `gradients`, or no golden call of it; `.engineMismatch`: other numbers than
    ///   PyTorch's. Such a device must not train; `.data`, `.config`: the bundle's tokenizer cannot be read
    public static func open(_ bundle: ModelBundle, _ session: any EngineSession) throws -> Model {
        let model = try unchecked(bundle, session)
        try goldenCheck(bundle, session).require()
        return model
    }

    /// The same before the golden check, for a session that does it when it is first used.
    static func unchecked(_ bundle: ModelBundle, _ session: any EngineSession) throws -> Model {
        let manifest = bundle.manifest
        if try bundle.golden()["gradients"] == nil {
            throw PFLError(
                .engine,
                "bundle '\(manifest.name)' has no golden call of the program 'gradients', so nobody knows whether this engine "
                    + "trains it right",
                mend: "export it again")
        }
        _ = try Programs(session, tensors: manifest.tensors.map(\.name))
        return Model(
            id: ModelId(manifest), session: session, tensors: manifest.tensors, initial: try bundle.values(),
            encoder: try textEncoder(bundle).map { TrainingEncoder($0) }, most: manifest.limits.maxExamples,
            work: Most(steps: manifest.limits.maxSteps, seconds: manifest.limits.maxSeconds.map { Double($0) }))
    }
}
