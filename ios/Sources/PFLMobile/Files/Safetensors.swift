import Foundation

/// What a safetensors file holds: named tensors, and short notes in its header.
struct TensorFile: Sendable {
    let tensors: TensorSet
    let metadata: [String: String]
}

/// Named tensors as safetensors bytes: initial values, golden batches, updates, personal states.
///
/// The bytes are a function of the tensors and the metadata alone, and those that Python gives for the same.
enum Safetensors {
    private static let metadataKey = "__metadata__"
    private static let mostHeader = 100_000_000
    private static let again = "write the file again from its source, or go back to an earlier copy"

    /// The bytes of a file.
    ///
    /// - Parameter finite: refuse NaN and infinity
    /// - Throws: `.nonFinite`: `finite`, and a value is not; `.tensorFile`: a name that the format cannot hold
    static func write(_ tensors: TensorSet, metadata: [String: String] = [:], finite: Bool = false) throws -> [UInt8] {
        if finite { try checkFinite(tensors) }
        if tensors.keys.contains(metadataKey) || metadata.keys.contains(metadataKey) {
            throw PFLError(
                .tensorFile, "a name or note among the tensors cannot be stored",
                mend: "use names other than \(metadataKey)")
        }
        // As the library orders them, so that every tensor begins at a multiple of its width.
        let order = tensors.sorted { one, other in
            one.value.dtype == other.value.dtype
                ? nameOrder(one.key, other.key) : one.value.dtype.rank > other.value.dtype.rank
        }
        var entries: [String] = []
        if !metadata.isEmpty {
            let notes = metadata.sorted { nameOrder($0.key, $1.key) }.map { "\(quoted($0.key)):\(quoted($0.value))" }
            entries.append("\"\(metadataKey)\":{\(notes.joined(separator: ","))}")
        }
        var end = 0
        for (name, tensor) in order {
            let start = end
            end += tensor.size * tensor.dtype.bytes
            let shape = tensor.shape.map(String.init).joined(separator: ",")
            entries.append(
                "\(quoted(name)):{\"dtype\":\"\(tensor.dtype.safetensorsName)\",\"shape\":[\(shape)],"
                    + "\"data_offsets\":[\(start),\(end)]}")
        }
        let header = Array("{\(entries.joined(separator: ","))}".utf8)
        let padding = -header.count & 7
        var out: [UInt8] = []
        out.reserveCapacity(8 + header.count + padding + end)
        withUnsafeBytes(of: UInt64(header.count + padding).littleEndian) { out += $0 }
        out += header
        out += repeatElement(UInt8(ascii: " "), count: padding)
        for (_, tensor) in order { tensor.withBytes { out += $0 } }
        return out
    }

    /// The tensors and notes in a file; each tensor has values of its own.
    ///
    /// - Parameter what: the name that errors give the data
    /// - Throws: `.tensorFile`: not a safetensors file, a damaged one, or one with a dtype that is not supported
    static func read(_ data: Data, _ what: String) throws -> TensorFile {
        do {
            return try data.withUnsafeBytes(parse)
        } catch let error as Malformed {
            throw PFLError(.tensorFile, "\(what) is not a valid safetensors file: \(error)", mend: again, cause: error)
        }
    }

    /// The same of an array.
    static func read(_ data: [UInt8], _ what: String) throws -> TensorFile {
        try read(Data(data), what)
    }

    /// Refuses NaN and infinity.
    ///
    /// - Throws: `.nonFinite`, naming the tensor and how many of its values are not finite
    static func checkFinite(_ tensors: TensorSet) throws {
        for (name, tensor) in tensors.sorted(by: { nameOrder($0.key, $1.key) }) {
            let bad = tensor.countNotFinite
            if bad > 0 {
                throw PFLError(
                    .nonFinite, "tensor '\(name)' has \(bad) of \(tensor.size) values NaN or infinite",
                    mend: "lower the learning rate or clip the gradients, and start from the last good values")
            }
        }
    }

    private struct Place {
        let name: String
        let dtype: DType
        let shape: [Int]
        let start: Int
        let end: Int
    }

    private static func parse(_ data: UnsafeRawBufferPointer) throws -> TensorFile {
        guard data.count >= 8 else { throw Malformed("it is too short for a header") }
        let length = UInt64(littleEndian: data.loadUnaligned(as: UInt64.self))
        guard length <= UInt64(min(data.count - 8, mostHeader)) else {
            throw Malformed("its header is longer than the file")
        }
        let head = data[8..<8 + Int(length)]
        let text = try utf8(head)
        let body = UnsafeRawBufferPointer(rebasing: data[(8 + Int(length))...])
        guard let header = try parseJSON(text).object else { throw Malformed("its header is no object") }
        let places = try header.filter { $0.key != metadataKey }.map(place)
        var end = 0
        // Every byte belongs to one tensor: nothing can hide between them.
        for place in places.sorted(by: { ($0.start, $0.end) < ($1.start, $1.end) }) {
            guard place.start == end, place.end >= end else {
                throw Malformed("invalid offset for tensor '\(place.name)'")
            }
            end = place.end
        }
        guard end == body.count else { throw Malformed("its tensors have \(end) bytes, but \(body.count) are there") }
        var tensors: TensorSet = [:]
        for place in places {
            let part = UnsafeRawBufferPointer(rebasing: body[place.start..<place.end])
            // Other languages tell names apart that Swift takes for equal; no model has two of them.
            guard tensors.updateValue(Tensor(place.dtype, place.shape, copying: part), forKey: place.name) == nil else {
                throw Malformed("tensor '\(place.name)' stands twice but for how its accents are written")
            }
        }
        return TensorFile(tensors: tensors, metadata: try notes(header))
    }

    private static func place(_ name: String, _ entry: JSON) throws -> Place {
        guard let fields = entry.object else { throw Malformed("tensor '\(name)' is no object") }
        guard let dtype = fields["dtype"]?.string, let shape = counts(fields["shape"]),
            let offsets = counts(fields["data_offsets"]), offsets.count == 2
        else { throw Malformed("tensor '\(name)' lacks dtype, shape or data_offsets") }
        guard let type = DType.ofSafetensors(dtype) else {
            throw Malformed("tensor '\(name)' has the unknown dtype \(dtype)")
        }
        var size = type.bytes
        for dimension in shape {
            let (product, overflow) = size.multipliedReportingOverflow(by: dimension)
            guard dimension <= Int(Int32.max), !overflow else { throw Malformed("tensor '\(name)' is too large") }
            size = product
        }
        guard offsets[1] >= offsets[0], offsets[1] - offsets[0] == size else {
            throw Malformed("tensor '\(name)' of shape \(shape) does not fill its place")
        }
        return Place(name: name, dtype: type, shape: shape, start: offsets[0], end: offsets[1])
    }

    /// Whole numbers of 0 or more; nil when there are others.
    private static func counts(_ element: JSON?) -> [Int]? {
        guard let items = element?.array else { return nil }
        let found = items.compactMap(\.integer).filter { $0 >= 0 }
        return found.count == items.count ? found : nil
    }

    private static func notes(_ header: JSONObject) throws -> [String: String] {
        guard let notes = header[metadataKey] else { return [:] }
        guard let fields = notes.object else { throw Malformed("its metadata is no object") }
        var found: [String: String] = [:]
        for (key, value) in fields {
            guard let text = value.string else { throw Malformed("the note '\(key)' is no text") }
            found[key] = text
        }
        return found
    }

    private static func quoted(_ text: String) -> String { jsonString(text, ascii: false) }
}
