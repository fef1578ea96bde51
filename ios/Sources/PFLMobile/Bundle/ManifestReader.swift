/// Reads the bytes of a `manifest.json`; `pfl_mobile/bundle/manifest.schema.json` is its schema.
enum ManifestReader {
    /// The newest manifest schema that this version reads.
    static let schemaVersion = 1

    // A manifest with a thousand tensors and three programs has 40,000.
    private static let mostValues = 300_000

    // The newest version of the piece rules that this version cuts text by.
    private static let pieceRules = 2
    private static let again = "obtain the bundle again, or export it again"

    /// Parses and checks a manifest.
    ///
    /// - Throws: `.schemaVersion`: it is of a newer schema, and nothing else of it is looked at; `.unsafePath`: it names a file
    ///   outside the bundle; `.invalidManifest`: it is not JSON, or breaks the schema, and the first fault is named
    static func parse(_ data: [UInt8]) throws -> Manifest {
        let raw: JSON
        do {
            raw = try parseJSON(bytes: data, values: mostValues)
        } catch let error as Malformed {
            throw PFLError(.invalidManifest, "\(Paths.manifest) is not valid JSON: \(error)", mend: again, cause: error)
        }
        let version = raw.object?["schema_version"]
        var isNumber = false
        switch version {
        case .integer(let number):
            isNumber = true
            if number > schemaVersion { throw newer("\(number)") }
        case .big(let digits):
            isNumber = true
            if !digits.hasPrefix("-") { throw newer(digits) }
        default: break
        }
        guard isNumber, let fields = raw.object, fields["kind"]?.string == "pfl-bundle" else {
            throw PFLError(
                .invalidManifest,
                "\(Paths.manifest) is not of a bundle: it needs an integer schema_version and kind 'pfl-bundle'",
                mend: again)
        }
        do {
            if let first = data.first, first != UInt8(ascii: "{"), ![0x20, 0x09, 0x0d, 0x0a].contains(first) {
                throw Malformed("it is not plain UTF-8")
            }
            if !whole(raw) { throw Malformed("it has a half of a surrogate pair") }
            // Before other faults: whoever leads out of a bundle is told so.
            for path in paths(fields) { try Paths.check(path) }
            let found = try manifest(raw)
            try Rules.check(found)
            return found
        } catch let error as Malformed {
            throw PFLError(.invalidManifest, "\(Paths.manifest) is not valid:\n  \(error)", mend: again, cause: error)
        }
    }

    private static func newer(_ number: String) -> PFLError {
        PFLError(
            .schemaVersion, "\(Paths.manifest) has schema version \(number); this version reads up to \(schemaVersion)",
            mend: "update the app, or export the bundle with the version in use here")
    }

    private static func manifest(_ raw: JSON) throws -> Manifest {
        var fields = try Fields(raw)
        if try fields.required("schema_version", Fields.whole) != 1 { throw Malformed("schema_version: it is not 1") }
        _ = try fields.required("kind", Fields.text)
        let files = Fields.named(file)
        let found = (
            name: try fields.required("name", name), version: try fields.required("version", name),
            programs: try filled("programs", try fields.required("programs", Fields.list(program))),
            engines: try fields.required("engines", filledMap(engine)),
            tensors: try fields.required("tensors", Fields.list(deviceTensor)),
            frozen: try fields.maybe("frozen_sha256", digest),
            modules: try fields.field("modules", Fields.list(module), default: []),
            task: try fields.required("task", task), encoder: try fields.maybe("encoder", encoder),
            tokenizer: try fields.maybe("tokenizer", Fields.text),
            plan: try fields.field("plan", Fields.text, default: "plan.json"),
            strategy: try fields.maybe("strategy", strategy),
            values: try fields.field("values", Fields.text, default: "tensors.safetensors"),
            golden: try fields.field("golden", Fields.text, default: "golden.safetensors"),
            limits: try fields.field("limits", limits, default: BundleLimits()),
            weights: try fields.maybe("weights", weights),
            measured: try fields.required("measured", measured), files: try fields.required("files", files)
        )
        try fields.done()
        return Manifest(
            name: found.name, version: found.version, programs: found.programs, engines: found.engines,
            tensors: found.tensors, frozenSha256: found.frozen, modules: found.modules, task: found.task,
            encoder: found.encoder, tokenizer: found.tokenizer, plan: found.plan, strategy: found.strategy,
            values: found.values, golden: found.golden, limits: found.limits, weights: found.weights,
            measured: found.measured,
            files: Dictionary(found.files.map { ($0.name, $0.value) }) { first, _ in first },
            filePaths: found.files.map(\.name))
    }

    private static func program(_ json: JSON, _ path: String) throws -> ProgramSpec {
        var fields = try Fields(json, path)
        let name = try fields.required("name", Fields.text)
        let letters = Array(name.utf8)
        guard let first = letters.first, isLower(first), letters.count <= 64,
            letters.allSatisfy({ isLower($0) || isDigit($0) || $0 == UInt8(ascii: "_") })
        else { throw Malformed("\(path): it has no name of a program") }
        let inputs = try fields.required("inputs", Fields.list(tensor))
        let outputs = try filled("\(path).outputs", try fields.required("outputs", Fields.list(tensor)))
        try fields.done()
        try Rules.unique("input of program '\(name)'", inputs.map(\.name))
        try Rules.unique("output of program '\(name)'", outputs.map(\.name))
        return ProgramSpec(name: name, inputs: inputs, outputs: outputs)
    }

    private static func isLower(_ byte: UInt8) -> Bool { byte >= UInt8(ascii: "a") && byte <= UInt8(ascii: "z") }

    private static func isDigit(_ byte: UInt8) -> Bool { byte >= UInt8(ascii: "0") && byte <= UInt8(ascii: "9") }

    private static func tensor(_ json: JSON, _ path: String) throws -> TensorSpec {
        var fields = try Fields(json, path)
        let spec = TensorSpec(
            name: try fields.required("name", name), shape: try fields.required("shape", shape),
            dtype: try fields.required("dtype", Fields.word(DType.self)))
        try fields.done()
        return spec
    }

    private static func deviceTensor(_ json: JSON, _ path: String) throws -> DeviceTensor {
        var fields = try Fields(json, path)
        let found = DeviceTensor(
            name: try fields.required("name", name), role: try fields.required("role", Fields.word(Role.self)),
            group: try fields.maybe("group", name), shape: try fields.required("shape", shape),
            dtype: try fields.required("dtype", Fields.word(DType.self)),
            update: try fields.required("update", Fields.word(TensorUpdate.self)),
            module: try fields.maybe("module", name))
        try fields.done()
        if (found.role == .group) != (found.group != nil) {
            throw Malformed("\(path): a group is named when, and only when, the role is 'group'")
        }
        return found
    }

    private static func module(_ json: JSON, _ path: String) throws -> ModuleEntry {
        var fields = try Fields(json, path)
        let found = ModuleEntry(
            name: try fields.required("name", name), kind: try fields.required("kind", name),
            config: try fields.field("config", object, default: JSONObject()))
        try fields.done()
        return found
    }

    private static func engine(_ json: JSON, _ path: String) throws -> EngineEntry {
        var fields = try Fields(json, path)
        let found = EngineEntry(
            files: try fields.required("files", filledMap(Fields.text)),
            measured: try fields.field("measured", map(count), default: [:]),
            runtime: try fields.maybe("runtime", runtime), precision: try fields.maybe("precision", precision))
        try fields.done()
        return found
    }

    private static func precision(_ json: JSON, _ path: String) throws -> PrecisionEntry {
        var fields = try Fields(json, path)
        if try fields.required("kind", Fields.text) != "mixed" { throw Malformed("\(path).kind: it is no precision") }
        let found = PrecisionEntry(
            lossScale: try fields.required("loss_scale", Fields.finite),
            products: try fields.required("products", count),
            ofProducts: try fields.required("of_products", count),
            tolerance: try fields.required("tolerance", Fields.finite), steps: try fields.required("steps", positive),
            trainedRelErr: try fields.required("trained_rel_err", Fields.finite))
        try fields.done()
        try Check.positive("\(path).loss_scale", found.lossScale)
        try Check.positive("\(path).tolerance", found.tolerance)
        try Check.notNegative("\(path).trained_rel_err", found.trainedRelErr)
        if found.tolerance > 0.1 { throw Malformed("\(path).tolerance: it is above 0.1") }
        return found
    }

    private static func weights(_ json: JSON, _ path: String) throws -> WeightsEntry {
        var fields = try Fields(json, path)
        let found = WeightsEntry(
            kind: try fields.required("kind", Fields.text), group: try fields.maybe("group", positive),
            tensors: try fields.required("tensors", filledMap(Fields.finite)),
            loss: try fields.required("loss", Fields.finite),
            lossFloat32: try fields.required("loss_float32", Fields.finite),
            outputRelErr: try fields.maybe("output_rel_err", Fields.finite))
        try fields.done()
        if found.kind != "int8" && found.kind != "int4" {
            throw Malformed("\(path).kind: it is no format of weights")
        }
        if (found.kind == "int4") != (found.group != nil) { throw Malformed("\(path): a group goes with 'int4'") }
        for (name, error) in found.tensors { try Check.notNegative("\(path).tensors.\(name)", error) }
        if let error = found.outputRelErr { try Check.notNegative("\(path).output_rel_err", error) }
        return found
    }

    private static func runtime(_ json: JSON, _ path: String) throws -> RuntimeEntry {
        var fields = try Fields(json, path)
        let found = RuntimeEntry(
            atLeast: try fields.required("at_least", version), verified: try fields.required("verified", version))
        try fields.done()
        return found
    }

    private static func version(_ json: JSON, _ path: String) throws -> String {
        let text = try Fields.text(json, path)
        if !Versions.isPlain(text) { throw Malformed("\(path): it is no version") }
        return text
    }

    private static func file(_ json: JSON, _ path: String) throws -> FileEntry {
        var fields = try Fields(json, path)
        let found = FileEntry(sha256: try fields.required("sha256", digest), bytes: try fields.required("bytes", count))
        try fields.done()
        return found
    }

    private static func task(_ json: JSON, _ path: String) throws -> TaskEntry {
        var fields = try Fields(json, path)
        let found = TaskEntry(
            kind: try fields.required("kind", Fields.word(TaskKind.self)),
            metrics: try fields.field("metrics", Fields.list(name), default: []),
            vocabulary: try fields.maybe("vocabulary", positive))
        try fields.done()
        return found
    }

    private static func encoder(_ json: JSON, _ path: String) throws -> EncoderEntry {
        var fields = try Fields(json, path)
        let found: EncoderEntry
        switch try fields.required("kind", Fields.text) {
        case "text":
            found = .text(
                EncoderEntry.TextEntry(
                    length: try fields.required("length", positive), batch: try fields.required("batch", positive),
                    vocabulary: try fields.required("vocabulary", positive),
                    slots: try fields.field("slots", count, default: 0),
                    rules: try fields.field("rules", rules, default: 1),
                    subwords: try fields.maybe("subwords", subwords),
                    scriptsNotServed: try fields.field("scripts_not_served", Fields.list(script), default: [])))
        case "arrays":
            found = .arrays(batch: try fields.required("batch", positive))
        default:
            throw Malformed("\(path): its kind is neither 'text' nor 'arrays'")
        }
        try fields.done()
        return found
    }

    private static func rules(_ json: JSON, _ path: String) throws -> Int {
        let version = try positive(json, path)
        if version > pieceRules {
            throw PFLError(
                .schemaVersion,
                "\(Paths.manifest) says version \(version) of the piece rules; this version knows up to \(pieceRules)",
                mend: "update the app, or export the bundle with the version in use here")
        }
        return version
    }

    /// An ISO 15924 code.
    private static func script(_ json: JSON, _ path: String) throws -> String {
        let text = try Fields.text(json, path)
        let letters = Array(text.utf8)
        guard letters.count == 4, (0x41...0x5a).contains(letters[0]), letters.dropFirst().allSatisfy(isLower) else {
            throw Malformed("\(path): it is no code of a script")
        }
        return text
    }

    private static func subwords(_ json: JSON, _ path: String) throws -> Subwords {
        var fields = try Fields(json, path)
        let found = Subwords(
            pad: try fields.required("pad", count), bos: try fields.required("bos", count),
            eos: try fields.required("eos", count), unk: try fields.maybe("unk", count))
        try fields.done()
        return found
    }

    private static func limits(_ json: JSON, _ path: String) throws -> BundleLimits {
        var fields = try Fields(json, path)
        let found = BundleLimits(
            maxExamples: try fields.maybe("max_examples", positive), maxSteps: try fields.maybe("max_steps", positive),
            maxSeconds: try fields.maybe("max_seconds", positive))
        try fields.done()
        return found
    }

    private static func measured(_ json: JSON, _ path: String) throws -> BundleSizes {
        var fields = try Fields(json, path)
        let found = BundleSizes(
            totalBytes: try fields.required("total_bytes", count),
            plannedMemoryBytes: try fields.maybe("planned_memory_bytes", count),
            frozenBytes: try fields.maybe("frozen_bytes", count))
        try fields.done()
        return found
    }

    private static func strategy(_ json: JSON, _ path: String) throws -> JSONObject {
        var fields = try Fields(json, path)
        let settings: Fields.Reader<[String: JSON]> = map { json, _ in json }
        _ = try fields.required("name", name)
        _ = try fields.field("parameters", settings, default: [:])
        _ = try fields.maybe("fairness", name)
        _ = try fields.field("fairness_parameters", settings, default: [:])
        _ = try fields.maybe("epochs", positive)
        _ = try fields.maybe("steps", positive)
        _ = try fields.maybe("optimizer", Optimizer.read)
        try Check.positive("\(path).clip", try fields.maybe("clip", Fields.finite))
        try fields.done()
        return try object(json, path)
    }

    /// A name: 1 to 200 characters (code points), no control characters.
    private static func name(_ json: JSON, _ path: String) throws -> String {
        let text = try Fields.text(json, path)
        try checkName(text, path)
        return text
    }

    private static func checkName(_ name: String, _ path: String) throws {
        if !(1...200).contains(name.unicodeScalars.count) { throw Malformed("\(path): it has not 1 to 200 characters") }
        if name.utf8.contains(where: { $0 < 0x20 || $0 == 0x7f }) {
            throw Malformed("\(path): it has a control character")
        }
    }

    /// A whole number to 2^53, which every language holds exactly.
    private static func whole(_ json: JSON, _ path: String, least: Int) throws -> Int {
        guard let value = json.integer, value >= least, value <= 1 << 53 else {
            throw Malformed("\(path): it is no whole number from \(least) to 2^53")
        }
        return value
    }

    private static func count(_ json: JSON, _ path: String) throws -> Int { try whole(json, path, least: 0) }

    private static func positive(_ json: JSON, _ path: String) throws -> Int { try whole(json, path, least: 1) }

    private static func digest(_ json: JSON, _ path: String) throws -> String {
        let text = try Fields.text(json, path)
        let digits = Array(text.utf8)
        if digits.count != 64 || !digits.allSatisfy({ isDigit($0) || $0 >= 0x61 && $0 <= 0x66 }) {
            throw Malformed("\(path): it is no sha256 in hex")
        }
        return text
    }

    private static func shape(_ json: JSON, _ path: String) throws -> [Int] {
        let lengths = try Fields.list(count)(json, path)
        if lengths.contains(where: { $0 > Int(Int32.max) }) {
            throw Malformed("\(path): no array of a device is as long")
        }
        return lengths
    }

    private static func object(_ json: JSON, _ path: String) throws -> JSONObject {
        guard let fields = json.object else { throw Malformed("\(path): it is no object") }
        return fields
    }

    private static func map<Value>(_ read: @escaping Fields.Reader<Value>) -> Fields.Reader<[String: Value]> {
        { json, path in
            var found: [String: Value] = [:]
            for (name, value) in try Fields.named(read)(json, path) {
                try checkName(name, path)
                found[name] = value
            }
            return found
        }
    }

    private static func filledMap<Value>(_ read: @escaping Fields.Reader<Value>) -> Fields.Reader<[String: Value]> {
        { json, path in
            let found = try map(read)(json, path)
            if found.isEmpty { throw Malformed("\(path): it is empty") }
            return found
        }
    }

    private static func filled<Value>(_ path: String, _ items: [Value]) throws -> [Value] {
        if items.isEmpty { throw Malformed("\(path): it is empty") }
        return items
    }

    /// All texts that stand where a path should.
    private static func paths(_ raw: JSONObject) -> [String] {
        var found: [String] = []
        for (_, engine) in raw["engines"]?.object ?? JSONObject() {
            found += (engine.object?["files"]?.object ?? JSONObject()).compactMap(\.value.string)
        }
        found += ["tokenizer", "plan", "values", "golden"].compactMap { raw[$0]?.string }
        return found + (raw["files"]?.object?.keys ?? [])
    }

    /// Whether all its text can be written in UTF-8.
    private static func whole(_ json: JSON) -> Bool {
        switch json {
        case .points: false
        case .array(let items): items.allSatisfy(whole)
        case .object(let fields): fields.allSatisfy { whole($0.value) }
        default: true
        }
    }
}
