/// One call of a program: complete inputs, and the outputs that PyTorch gave for them.
public struct GoldenCase: Sendable {
    /// Everything that the program takes.
    public let inputs: TensorSet
    /// What PyTorch gave.
    public let outputs: TensorSet
}

/// What the tensor files of a bundle must hold: the manifest says which tensors, these functions check it.
enum Content {
    private static let exportAgain = "export the bundle again"

    /// Checks that values are exactly the device tensors of a manifest.
    ///
    /// - Throws: `.tensorMismatch`: one is missing, unknown, or of another shape or dtype
    static func checkValues(_ manifest: Manifest, _ values: TensorSet) throws {
        try sameNames(manifest.values, manifest.tensors.map(\.name), values)
        for tensor in manifest.tensors {
            try sameForm(manifest.values, tensor.name, tensor.shape, tensor.dtype, values[tensor.name])
        }
    }

    /// The calls in a golden file, by program.
    ///
    /// - Parameters:
    ///   - golden: tensors named `in.<program>.<input>` and `out.<program>.<output>`
    ///   - values: initial values, for the device tensors that a call takes but the file does not hold
    /// - Throws: `.tensorMismatch`: a tensor is missing, unknown, or of another shape or dtype than the program's; or there is
    ///   no call at all
    static func goldenCases(_ manifest: Manifest, _ golden: TensorSet, _ values: TensorSet) throws -> [String:
        GoldenCase]
    {
        var cases: [String: GoldenCase] = [:]
        var taken: Set<String> = []
        for program in manifest.programs {
            let given = withPrefix(golden, "in.\(program.name).")
            let outputs = withPrefix(golden, "out.\(program.name).")
            if given.isEmpty && outputs.isEmpty { continue }
            let found = try goldenCase(manifest, program, given, outputs, values)
            cases[program.name] = found
            taken.formUnion(found.inputs.keys.map { "in.\(program.name).\($0)" })
            taken.formUnion(found.outputs.keys.map { "out.\(program.name).\($0)" })
        }
        let unknown = golden.keys.filter { !taken.contains($0) }.min(by: nameOrder)
        if unknown != nil || cases.isEmpty {
            let what = unknown.map { "tensor '\($0)', which belongs to no program" } ?? "no call of any program"
            throw PFLError(.tensorMismatch, "\(manifest.golden) has \(what)", mend: exportAgain)
        }
        return cases
    }

    private static func goldenCase(
        _ manifest: Manifest, _ program: ProgramSpec, _ given: TensorSet, _ outputs: TensorSet, _ values: TensorSet
    ) throws -> GoldenCase {
        let place = "program '\(program.name)' in \(manifest.golden)"
        var inputs = given
        for spec in program.inputs where inputs[spec.name] == nil { inputs[spec.name] = values[spec.name] }
        try sameNames("the inputs of \(place)", program.inputs.map(\.name), inputs)
        try sameNames("the outputs of \(place)", program.outputs.map(\.name), outputs)
        for spec in program.inputs {
            try sameForm("input of \(place)", spec.name, spec.shape, spec.dtype, inputs[spec.name])
        }
        for spec in program.outputs {
            try sameForm("output of \(place)", spec.name, spec.shape, spec.dtype, outputs[spec.name])
        }
        return GoldenCase(inputs: inputs, outputs: outputs)
    }

    private static func withPrefix(_ tensors: TensorSet, _ prefix: String) -> TensorSet {
        var found: TensorSet = [:]
        for (name, value) in tensors where name.hasPrefix(prefix) {
            found[String(name.dropFirst(prefix.count))] = value
        }
        return found
    }

    private static func sameNames(_ place: String, _ expected: [String], _ found: TensorSet) throws {
        if let missing = expected.first(where: { found[$0] == nil }) {
            throw PFLError(.tensorMismatch, "\(place): tensor '\(missing)' is missing", mend: exportAgain)
        }
        if let unknown = Set(found.keys).subtracting(expected).min(by: nameOrder) {
            throw PFLError(.tensorMismatch, "\(place): unknown tensor '\(unknown)'", mend: near(unknown, expected))
        }
    }

    private static func sameForm(
        _ place: String, _ name: String, _ shape: [Int], _ dtype: DType, _ tensor: Tensor?
    ) throws {
        if tensor?.shape != shape || tensor?.dtype != dtype {
            throw PFLError(
                .tensorMismatch,
                "\(place): '\(name)' is \(tensor?.signature ?? "missing"), but the manifest says \(dtype.rawValue)\(shape)",
                mend: exportAgain)
        }
    }
}
