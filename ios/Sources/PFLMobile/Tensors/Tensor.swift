#if _endian(big)
    #error("tensors are little-endian in files and in memory")
#endif

/// What an element of a tensor is; the raw value is the name in manifests.
public enum DType: String, Sendable, CaseIterable {
    // In the order in which the safetensors library lays tensors out, the last first.
    /// True or false in a byte.
    case bool
    /// A byte from 0.
    case uint8
    /// A signed byte.
    case int8
    /// Two bytes, signed.
    case int16
    /// IEEE binary16.
    case float16
    /// Four bytes, signed.
    case int32
    /// IEEE binary32.
    case float32
    /// IEEE binary64.
    case float64
    /// Eight bytes, signed.
    case int64

    /// Bytes of an element.
    public var bytes: Int {
        switch self {
        case .bool, .uint8, .int8: 1
        case .int16, .float16: 2
        case .int32, .float32: 4
        case .float64, .int64: 8
        }
    }

    /// The name in safetensors files.
    public var safetensorsName: String {
        switch self {
        case .bool: "BOOL"
        case .uint8: "U8"
        case .int8: "I8"
        case .int16: "I16"
        case .float16: "F16"
        case .int32: "I32"
        case .float32: "F32"
        case .float64: "F64"
        case .int64: "I64"
        }
    }

    /// The place in the order of safetensors files.
    var rank: Int { DType.ranks[self] ?? 0 }

    private static let ranks = Dictionary(uniqueKeysWithValues: allCases.enumerated().map { ($1, $0) })
    private static let safetensorsNames = Dictionary(uniqueKeysWithValues: allCases.map { ($0.safetensorsName, $0) })

    static func ofSafetensors(_ name: String) -> DType? { safetensorsNames[name] }
}

/// A tensor of float32 in C order; the shape is empty for a scalar.
public struct FloatTensor: Sendable {
    /// The elements.
    public var values: [Float]
    /// Lengths of the axes.
    public let shape: [Int]

    /// A tensor; the values must fill the shape.
    public init(_ values: [Float], _ shape: [Int]) {
        precondition(length(shape) == values.count, "\(values.count) values do not fill the shape \(shape)")
        self.values = values
        self.shape = shape
    }

    /// Number of elements.
    public var size: Int { values.count }

    static func zeros(like other: FloatTensor) -> FloatTensor {
        FloatTensor([Float](repeating: 0, count: other.size), other.shape)
    }
}

/// A tensor of int64 in C order.
public struct LongTensor: Sendable {
    /// The elements.
    public var values: [Int64]
    /// Lengths of the axes.
    public let shape: [Int]

    /// A tensor; the values must fill the shape.
    public init(_ values: [Int64], _ shape: [Int]) {
        precondition(length(shape) == values.count, "\(values.count) values do not fill the shape \(shape)")
        self.values = values
        self.shape = shape
    }

    /// Number of elements.
    public var size: Int { values.count }
}

/// A tensor of another type, which a device passes on and does not compute with.
public struct RawTensor: Sendable {
    /// Type of the elements; neither float32 nor int64, which have types of their own.
    public let dtype: DType
    /// The elements, little-endian.
    public var bytes: [UInt8]
    /// Lengths of the axes.
    public let shape: [Int]

    /// A tensor; the bytes must fill the shape.
    public init(_ dtype: DType, _ bytes: [UInt8], _ shape: [Int]) {
        precondition(dtype != .float32 && dtype != .int64, "\(dtype.rawValue) has a type of its own")
        precondition(length(shape) * dtype.bytes == bytes.count, "\(bytes.count) bytes do not fill the shape \(shape)")
        self.dtype = dtype
        self.bytes = bytes
        self.shape = shape
    }

    /// Number of elements.
    public var size: Int { bytes.count / dtype.bytes }
}

/// Values in memory, of one of the types that a device handles.
public enum Tensor: Sendable {
    /// Float32, which training changes.
    case float(FloatTensor)
    /// Int64: tokens and labels.
    case long(LongTensor)
    /// Any other type.
    case raw(RawTensor)

    /// What an element is.
    public var dtype: DType {
        switch self {
        case .float: .float32
        case .long: .int64
        case .raw(let tensor): tensor.dtype
        }
    }

    /// Lengths of the axes; empty for a scalar.
    public var shape: [Int] {
        switch self {
        case .float(let tensor): tensor.shape
        case .long(let tensor): tensor.shape
        case .raw(let tensor): tensor.shape
        }
    }

    /// Number of elements.
    public var size: Int {
        switch self {
        case .float(let tensor): tensor.size
        case .long(let tensor): tensor.size
        case .raw(let tensor): tensor.size
        }
    }

    /// `float32[2, 3]`, as messages name it.
    public var signature: String { "\(dtype.rawValue)\(shape)" }

    /// The float32 tensor; nil for another type.
    public var float: FloatTensor? {
        if case .float(let tensor) = self { tensor } else { nil }
    }

    /// The int64 tensor; nil for another type.
    public var long: LongTensor? {
        if case .long(let tensor) = self { tensor } else { nil }
    }
}

/// Tensors by name: what a plan calls a set.
public typealias TensorSet = [String: Tensor]

/// Number of elements of a shape.
func length(_ shape: [Int]) -> Int {
    shape.reduce(1, *)
}
