import Foundation

/// Tensors and a head of JSON in one safetensors file, with a digest of both: states and checkpoints.
enum Sealed {
    private static let again = "restore it from a copy"

    /// The bytes of a file.
    ///
    /// - Parameters:
    ///   - head: JSON of an object; with a name of the format also `schema_version`
    ///   - form: name of the format; nil where there is none
    ///   - finite: refuse NaN and infinity
    /// - Throws: as `Safetensors.write`
    static func seal(_ tensors: TensorSet, head: String, form: String?, finite: Bool = false) throws -> [UInt8] {
        var notes = ["head": head, "sha256": digest(tensors, head)]
        notes["format"] = form
        return try Safetensors.write(tensors, metadata: notes, finite: finite)
    }

    /// Tensors and head of a file.
    ///
    /// - Parameters:
    ///   - form: name of the format
    ///   - schemaVersion: the newest that is understood
    ///   - what: names the file in errors
    /// - Throws: `.newerFile`: the file is of a newer schema; `.tensorFile`: it is damaged, or of another format
    static func unseal(_ data: Data, form: String?, schemaVersion: Int, what: String) throws -> (TensorSet, JSONObject)
    {
        let file = try Safetensors.read(data, what)
        let text = file.metadata["head"] ?? ""
        guard file.metadata["format"] == form, file.metadata["sha256"] == digest(file.tensors, text) else {
            throw PFLError(.tensorFile, "\(what) does not match its digest", mend: again)
        }
        let (head, version) = try damagedHead(what) {
            guard let head = try parseJSON(text, finite: false).object else { throw Malformed("it is no object") }
            let version = head["schema_version"] ?? .integer(0)
            switch version {
            case .integer, .big: return (head, version)
            default: throw Malformed("its schema_version is no number")
            }
        }
        if version.integer.map({ $0 > schemaVersion }) ?? true {
            throw PFLError(
                .newerFile, "\(what) has schema \(pythonJSON(version)), newer than \(schemaVersion)",
                mend: "update the app")
        }
        return (file.tensors, head)
    }

    /// Turns what goes wrong where the parts of a head are taken into `.tensorFile`: a digest says that a file is whole
    /// only.
    static func damagedHead<Result>(_ what: String, _ take: () throws -> Result) throws -> Result {
        do {
            return try take()
        } catch let error as Malformed {
            throw PFLError(.tensorFile, "the head of \(what) is damaged: \(error)", mend: again, cause: error)
        }
    }

    /// sha256 over a text, then name, dtype, shape and little-endian bytes of each tensor in order of name, in hex. Each
    /// part is preceded by its length in bytes as 8 little-endian bytes.
    static func digest(_ tensors: TensorSet, _ text: String = "") -> String {
        var sha = Sha256()
        func part(_ bytes: UnsafeRawBufferPointer) {
            withUnsafeBytes(of: UInt64(bytes.count).littleEndian) { sha.add($0) }
            sha.add(bytes)
        }
        Array(text.utf8).withUnsafeBytes(part)
        for (name, tensor) in tensors.sorted(by: { nameOrder($0.key, $1.key) }) {
            Array(name.utf8).withUnsafeBytes(part)
            Array("\(tensor.dtype.rawValue) \(tensor.shape)".utf8).withUnsafeBytes(part)
            tensor.withBytes(part)
        }
        return hex(sha.bytes)
    }
}
