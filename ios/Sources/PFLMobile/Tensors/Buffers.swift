extension Tensor {
    /// Calls `body` with the elements as little-endian bytes.
    package func withBytes<Result>(_ body: (UnsafeRawBufferPointer) throws -> Result) rethrows -> Result {
        switch self {
        case .float(let tensor): try tensor.values.withUnsafeBytes(body)
        case .long(let tensor): try tensor.values.withUnsafeBytes(body)
        case .raw(let tensor): try tensor.bytes.withUnsafeBytes(body)
        }
    }

    /// A tensor with a copy of bytes, which must fill the shape.
    package init(_ dtype: DType, _ shape: [Int], copying bytes: UnsafeRawBufferPointer) {
        switch dtype {
        case .float32:
            let values = [Float](unsafeUninitializedCapacity: bytes.count / 4) { buffer, count in
                UnsafeMutableRawBufferPointer(buffer).copyMemory(from: bytes)
                count = bytes.count / 4
            }
            self = .float(FloatTensor(values, shape))
        case .int64:
            let values = [Int64](unsafeUninitializedCapacity: bytes.count / 8) { buffer, count in
                UnsafeMutableRawBufferPointer(buffer).copyMemory(from: bytes)
                count = bytes.count / 8
            }
            self = .long(LongTensor(values, shape))
        default:
            self = .raw(RawTensor(dtype, [UInt8](bytes), shape))
        }
    }

    /// Whether two tensors have the same dtype, shape and bits.
    func sameBits(_ other: Tensor) -> Bool {
        guard dtype == other.dtype, shape == other.shape else { return false }
        return withBytes { mine in other.withBytes { mine.elementsEqual($0) } }
    }

    /// How many float values are NaN or infinite; 0 for other types.
    var countNotFinite: Int {
        switch self {
        case .float(let tensor):
            return tensor.values.reduce(0) { $0 + ($1.isFinite ? 0 : 1) }
        case .long:
            return 0
        case .raw(let tensor):
            switch tensor.dtype {
            case .float64: return doubles.count { !$0.isFinite }
            case .float16:
                return (0..<tensor.size).count { tensor.integer($0, of: UInt16.self) & 0x7c00 == 0x7c00 }
            default: return 0
            }
        }
    }

    /// The elements as numbers; false and true as 0 and 1.
    var doubles: [Double] {
        switch self {
        case .float(let tensor): tensor.values.map(Double.init)
        case .long(let tensor): tensor.values.map(Double.init)
        case .raw(let tensor): (0..<tensor.size).map(tensor.number)
        }
    }
}

extension RawTensor {
    fileprivate func integer<Number: FixedWidthInteger>(_ at: Int, of: Number.Type) -> Number {
        bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: at * MemoryLayout<Number>.size, as: Number.self) }
    }

    fileprivate func number(_ at: Int) -> Double {
        switch dtype {
        case .float64: Double(bitPattern: integer(at, of: UInt64.self))
        case .float16: half(integer(at, of: UInt16.self))
        case .int32: Double(integer(at, of: Int32.self))
        case .int16: Double(integer(at, of: Int16.self))
        case .int8: Double(integer(at, of: Int8.self))
        default: Double(bytes[at])
        }
    }
}

/// The number whose bits in IEEE 754 binary16 these are; Intel Macs have no Float16.
private func half(_ bits: UInt16) -> Double {
    let sign = bits & 0x8000 != 0 ? -1.0 : 1.0
    let exponent = Int(bits >> 10 & 0x1f)
    let mantissa = Double(bits & 0x3ff)
    switch exponent {
    case 0: return sign * mantissa * 0x1p-24
    case 0x1f: return mantissa == 0 ? sign * .infinity : .nan
    default: return sign * Double(sign: .plus, exponent: exponent - 25, significand: mantissa + 0x400)
    }
}
