import Foundation
import Testing

@testable import PFLMobile

/// The files of `conformance/`, which Python writes; its README says how numbers are written.
enum Vectors {
    static let folder = "\(repository)/conformance"

    static func read(_ file: String) throws -> JSON {
        try parseJSON(bytes: try readBytes("\(folder)/\(file)"))
    }

    static func float(_ hex: some StringProtocol) throws -> Float {
        Float(bitPattern: try #require(UInt32(hex, radix: 16)))
    }
}

extension JSON {
    /// A field that must be there.
    subscript(field: String) -> JSON {
        get throws {
            let fields = try fields
            return try #require(fields[field], "no field \(field)")
        }
    }

    /// A field that may be missing.
    func maybe(_ field: String) -> JSON? { object?[field] }

    var items: [JSON] {
        get throws { try #require(array) }
    }

    var fields: JSONObject {
        get throws { try #require(object) }
    }

    var text: String {
        get throws { try #require(string) }
    }

    var texts: [String] {
        get throws { try items.map { try $0.text } }
    }

    var int: Int {
        get throws { try #require(integer) }
    }

    var double: Double {
        get throws { try #require(number) }
    }

    var truth: Bool {
        get throws {
            guard let bool else { throw Malformed("no truth") }
            return bool
        }
    }

    var unsigned: UInt64 {
        get throws {
            let text = try text
            return try #require(UInt64(text))
        }
    }

    /// 64 bits in hex.
    var hexWord: UInt64 {
        get throws {
            let text = try text
            return try #require(UInt64(text, radix: 16))
        }
    }

    /// A float64 by its bits.
    var bits: Double {
        get throws { Double(bitPattern: try hexWord) }
    }

    /// Float32 values by their bits.
    var floats: [Float] {
        get throws { try text.split(separator: " ").map { try Vectors.float($0) } }
    }

    var tensor: Tensor {
        get throws {
            let shape = try self["shape"].items.map { try $0.int }
            if let floats = maybe("f32") { return .float(FloatTensor(try floats.floats, shape)) }
            return .long(LongTensor(try self["i64"].items.map { Int64(try $0.int) }, shape))
        }
    }

    var tensors: TensorSet {
        get throws {
            var found: TensorSet = [:]
            for (name, value) in try fields { found[name] = try value.tensor }
            return found
        }
    }

    /// Tensors by name, all of them float32.
    var floatTensors: [String: FloatTensor] {
        get throws { try tensors.mapValues { try #require($0.float) } }
    }

    /// Sets by name.
    var sets: [String: TensorSet] {
        get throws {
            var found: [String: TensorSet] = [:]
            for (name, value) in try fields { found[name] = try value.tensors }
            return found
        }
    }

    func dumped() -> String { pythonJSON(self) }
}
