/// The two programs of a session, with batches cut to their inputs.
struct Programs {
    private static let sumSuffix = "_sum"

    private let session: any EngineSession
    private let inputs: [String: [TensorSpec]]
    /// What a batch is made of, by name.
    private let batch: [String: TensorSpec]
    /// Rows of a batch.
    let batchSize: Int

    /// - Parameter tensors: names of all device tensors
    /// - Throws: `.engine`: the bundle lacks a program
    init(_ session: any EngineSession, tensors: some Sequence<String>) throws {
        self.session = session
        var inputs: [String: [TensorSpec]] = [:]
        for name in ["gradients", "evaluate"] {
            guard let program = session.programs[name] else {
                throw PFLError(.engine, "the bundle has no program '\(name)'", mend: "export it again")
            }
            inputs[name] = program.inputs
        }
        let state = Set(tensors)
        let specs = inputs.values.flatMap { $0 }.filter { !state.contains($0.name) }
        batch = Dictionary(specs.map { ($0.name, $0) }) { first, _ in first }
        guard let size = batch["weight"]?.shape.first else {
            throw PFLError(.engine, "the bundle's programs take no 'weight'", mend: "export it again")
        }
        self.inputs = inputs
        batchSize = size
    }

    /// Refuses rows that do not fit the programs.
    ///
    /// - Throws: `.tensorMismatch`: an input is missing or has another shape or dtype
    func check(_ rows: Rows) throws {
        for (name, input) in batch {
            guard let value = rows[name] else {
                throw PFLError(.tensorMismatch, "the rows have no '\(name)'", mend: "give \(batch.keys.sorted())")
            }
            if value.dtype != input.dtype {
                throw PFLError(
                    .tensorMismatch,
                    "rows of '\(name)' are \(value.dtype.rawValue), the program takes \(input.dtype.rawValue)",
                    mend: "convert them")
            }
            if value.shape.dropFirst() != input.shape.dropFirst() {
                throw PFLError(
                    .tensorMismatch,
                    "rows of '\(name)' have shape \(Array(value.shape.dropFirst())), the program takes "
                        + "\(Array(input.shape.dropFirst()))",
                    mend: "encode the examples for this bundle")
            }
        }
    }

    /// Outputs of `gradients` at a point, other tensors being those given.
    func gradients(_ batch: Rows, at point: TensorSet, _ tensors: TensorSet) throws -> TensorSet {
        try run("gradients", batch, point, tensors)
    }

    /// Metrics over all rows: `loss` and every `<metric>_sum` output, each divided by the weight.
    ///
    /// - Throws: `.noExamples`: the rows have no weight
    func evaluate(_ rows: Rows, _ tensors: TensorSet) throws -> [String: Double] {
        try sums(rows, tensors).means
    }

    /// What `evaluate` divides. Sums are added in float64 in batch order.
    ///
    /// - Throws: `.noExamples`: the rows have no weight
    func sums(_ rows: Rows, _ tensors: TensorSet) throws -> MetricSums {
        var totals: [String: Double] = [:]
        for batch in paddedBatches(rows, batchSize) {
            for (name, value) in try run("evaluate", batch, [:], tensors) where name.hasSuffix(Programs.sumSuffix) {
                totals[String(name.dropLast(Programs.sumSuffix.count)), default: 0] += try first(value)
            }
        }
        guard let weight = totals.removeValue(forKey: "weight"), weight > 0 else {
            throw PFLError(.noExamples, "the held-out examples have no weight", mend: "hold out more examples")
        }
        return MetricSums(totals: totals, weight: weight)
    }

    private func run(_ program: String, _ rows: Rows, _ point: TensorSet, _ tensors: TensorSet) throws -> TensorSet {
        var arguments: TensorSet = [:]
        for input in inputs[program] ?? [] {
            let value = batch[input.name] != nil ? rows[input.name] : point[input.name] ?? tensors[input.name]
            arguments[input.name] = value
        }
        return try session.run(program, arguments)
    }
}

/// Sums of metrics over labels that count, and the weight of these.
struct MetricSums: Sendable {
    let totals: [String: Double]
    let weight: Double

    var means: [String: Double] { totals.mapValues { $0 / weight } }
}

/// One number of a program's outputs.
///
/// - Throws: `.nonFinite`: it is NaN or infinite
func scalar(_ outputs: TensorSet, _ name: String) throws -> Double {
    guard let output = outputs[name] else {
        throw PFLError(.engine, "the program gives no '\(name)'", mend: "export the bundle again")
    }
    let value = try first(output)
    if !value.isFinite {
        throw PFLError(
            .nonFinite, "\(name) is \(value)",
            mend: "lower the learning rate or set clip; the state before training is kept")
    }
    return value
}

private func first(_ tensor: Tensor) throws -> Double {
    switch tensor {
    case .float(let tensor): if let value = tensor.values.first { return Double(value) }
    case .long(let tensor): if let value = tensor.values.first { return Double(value) }
    case .raw: break
    }
    throw PFLError(
        .engine, "a program gives \(tensor.signature) where a number is expected", mend: "export the bundle again")
}
