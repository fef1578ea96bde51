/// How names of the outputs of `gradients` that are gradients begin.
let gradientPrefix = "grad."

/// The rules between the fields of a manifest, which its JSON Schema cannot say. All throw `Malformed`, naming what does not
/// agree; two paths that are one file on some system are `.unsafePath`.
enum Rules {
    // NumPy has no more.
    private static let mostDimensions = 32
    private static let mostTensorBytes = 4 << 30

    static func check(_ manifest: Manifest) throws {
        for program in manifest.programs {
            for spec in program.inputs + program.outputs {
                try checkSize("program '\(program.name)'", spec.name, spec.shape, spec.dtype)
            }
        }
        for tensor in manifest.tensors { try checkSize("the bundle", tensor.name, tensor.shape, tensor.dtype) }
        try unique("program", manifest.programs.map(\.name))
        try unique("tensor", manifest.tensors.map(\.name))
        try unique("module", manifest.modules.map(\.name))
        try checkModules(manifest)
        try checkPrograms(manifest)
        try checkFiles(manifest)
        try checkEncoder(manifest)
    }

    // Names that are equal but for how accents are written would be one name in Swift, so they are no two here.
    static func unique(_ what: String, _ names: [String]) throws {
        var seen: Set<String> = []
        for name in names where !seen.insert(name).inserted {
            throw Malformed("\(what) '\(name)' is listed more than once")
        }
    }

    /// No tensor is larger than any bundle: said before room is made for one.
    static func checkSize(_ place: String, _ name: String, _ shape: [Int], _ dtype: DType) throws {
        if shape.count > mostDimensions { throw Malformed("\(place) has '\(name)' of \(shape.count) dimensions") }
        if !shape.contains(0), shape.reduce(dtype.bytes, saturatedProduct) > mostTensorBytes {
            throw Malformed("\(place) has '\(name)' of \(dtype.rawValue)\(shape), which no device can hold")
        }
    }

    private static func checkModules(_ manifest: Manifest) throws {
        let known = Set(manifest.modules.map(\.name))
        for tensor in manifest.tensors {
            if let module = tensor.module, !known.contains(module) {
                throw Malformed(
                    "tensor '\(tensor.name)' belongs to module '\(module)', which is not listed; \(near(module, known))"
                )
            }
        }
    }

    private static func checkPrograms(_ manifest: Manifest) throws {
        let tensors = Dictionary(manifest.tensors.map { ($0.name, $0) }) { first, _ in first }
        for program in manifest.programs {
            for spec in program.inputs {
                if let tensor = tensors[spec.name], tensor.signature != spec.signature {
                    throw Malformed(
                        "program '\(program.name)' takes '\(spec.name)' as \(spec.signature), "
                            + "but the device tensor is \(tensor.signature)")
                }
            }
            for spec in program.outputs where spec.name.hasPrefix(gradientPrefix) {
                guard let tensor = tensors[String(spec.name.dropFirst(gradientPrefix.count))],
                    tensor.update == .gradient
                else { throw Malformed("output '\(spec.name)' is not the gradient of a tensor trained by gradients") }
                if tensor.shape != spec.shape {
                    throw Malformed("output '\(spec.name)' is \(spec.signature), but the tensor is \(tensor.signature)")
                }
            }
        }
    }

    private static func checkFiles(_ manifest: Manifest) throws {
        // The manifest is not to be among its files.
        try Paths.checkDistinct(manifest.filePaths + [Paths.manifest, Paths.signature])
        var named = [("plan", manifest.plan), ("values", manifest.values), ("golden", manifest.golden)]
        if let tokenizer = manifest.tokenizer { named.append(("tokenizer", tokenizer)) }
        for (engine, entry) in manifest.engines {
            named += entry.files.map { ("engine '\(engine)' as '\($0.key)'", $0.value) }
        }
        for (use, path) in named where manifest.files[path] == nil {
            throw Malformed("file '\(path)' (for \(use)) is not in files; \(near(path, manifest.filePaths))")
        }
        let total = manifest.files.values.reduce(0) { saturatedSum($0, $1.bytes) }
        if total != manifest.measured.totalBytes {
            throw Malformed("total_bytes is \(manifest.measured.totalBytes), but the files have \(total) together")
        }
    }

    private static func checkEncoder(_ manifest: Manifest) throws {
        guard case .text(let encoder) = manifest.encoder else { return }
        if manifest.tokenizer == nil { throw Malformed("the encoder is for text, but no tokenizer is named") }
        if encoder.subwords != nil && encoder.slots > 0 {
            throw Malformed("the encoder has vocabulary slots over subwords")
        }
        let total = encoder.vocabulary + encoder.slots
        if let vocabulary = manifest.task.vocabulary, vocabulary != total {
            throw Malformed("task.vocabulary is \(vocabulary), but words and slots are \(total)")
        }
        for program in manifest.programs where program.name == "gradients" || program.name == "evaluate" {
            for spec in program.inputs where spec.name == "tokens" && spec.shape != [encoder.batch, encoder.length] {
                throw Malformed(
                    "program '\(program.name)' takes tokens of shape \(spec.shape), "
                        + "but the encoder gives \([encoder.batch, encoder.length])")
            }
        }
    }
}
