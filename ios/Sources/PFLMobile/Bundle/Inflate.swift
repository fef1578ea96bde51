/// Unpacks what "deflate" packed (RFC 1951). Neither Foundation nor the compiler's own modules have a reader that all systems
/// share, and this one gives the content in pieces, so that a small file cannot become all of the memory.
struct Inflate {
    /// Takes more of the packed bytes; empty at their end.
    typealias Source = () throws -> ArraySlice<UInt8>

    private static let window = 1 << 15
    private static let piece = 1 << 16

    private let source: Source
    private var input: ArraySlice<UInt8> = []
    private var bits: UInt32 = 0
    private var have = 0
    private var out: [UInt8] = []
    /// Bytes at the front of `out` that were given out and are kept to be copied from.
    private var given = 0

    init(_ source: @escaping Source) {
        self.source = source
        out.reserveCapacity(Inflate.window + Inflate.piece + 300)
    }

    /// Gives the content in pieces; false ends the reading.
    ///
    /// - Throws: `Malformed`: it is not what "deflate" gives; what the source throws
    mutating func run(_ give: (ArraySlice<UInt8>) throws -> Bool) throws {
        var last = false
        while !last {
            last = try take(1) == 1
            switch try take(2) {
            case 0: if try !stored(give) { return }
            case 1: if try !block(Inflate.fixedLengths, Inflate.fixedDistances, give) { return }
            case 2:
                let (lengths, distances) = try codes()
                if try !block(lengths, distances, give) { return }
            default: throw Malformed("a block of no kind")
            }
        }
        _ = try flush(give, all: true)
    }

    private mutating func byte() throws -> UInt8 {
        if input.isEmpty {
            input = try source()
            if input.isEmpty { throw Malformed("its data end too early") }
        }
        return input.removeFirst()
    }

    private mutating func take(_ count: Int) throws -> Int {
        while have < count {
            bits |= UInt32(try byte()) << UInt32(have)
            have += 8
        }
        let value = Int(bits & ((1 << UInt32(count)) &- 1))
        bits >>= UInt32(count)
        have -= count
        return value
    }

    private mutating func flush(_ give: (ArraySlice<UInt8>) throws -> Bool, all: Bool = false) throws -> Bool {
        if out.count - given < (all ? 1 : Inflate.piece) { return true }
        let more = try give(out[given...])
        if out.count > Inflate.window { out.removeFirst(out.count - Inflate.window) }
        given = out.count
        return more
    }

    private mutating func stored(_ give: (ArraySlice<UInt8>) throws -> Bool) throws -> Bool {
        bits = 0
        have = 0
        let length = try take(16)
        if try take(16) != length ^ 0xffff { throw Malformed("a stored block of two lengths") }
        for _ in 0..<length {
            out.append(try byte())
            if try !flush(give) { return false }
        }
        return true
    }

    private mutating func block(
        _ lengths: Code, _ distances: Code, _ give: (ArraySlice<UInt8>) throws -> Bool
    ) throws -> Bool {
        while true {
            let symbol = try read(lengths)
            if symbol < 256 {
                out.append(UInt8(symbol))
            } else if symbol == 256 {
                return true
            } else {
                guard symbol - 257 < Inflate.lengthBase.count else { throw Malformed("a length of no code") }
                let length = Inflate.lengthBase[symbol - 257] + (try take(Inflate.lengthBits[symbol - 257]))
                let code = try read(distances)
                guard code < Inflate.distanceBase.count else { throw Malformed("a distance of no code") }
                let distance = Inflate.distanceBase[code] + (try take(Inflate.distanceBits[code]))
                guard distance <= out.count else { throw Malformed("a distance beyond the start") }
                for _ in 0..<length { out.append(out[out.count - distance]) }
            }
            if try !flush(give) { return false }
        }
    }

    private mutating func read(_ code: Code) throws -> Int {
        var value = 0
        var first = 0
        var index = 0
        for length in 1..<code.counts.count {
            value |= try take(1)
            let count = code.counts[length]
            if value - first < count { return code.symbols[index + value - first] }
            index += count
            first = (first + count) << 1
            value <<= 1
        }
        throw Malformed("bits of no code")
    }

    private mutating func codes() throws -> (Code, Code) {
        let literals = try take(5) + 257
        let distances = try take(5) + 1
        let count = try take(4) + 4
        guard literals <= 286, distances <= 30 else { throw Malformed("too many codes") }
        var lengths = [Int](repeating: 0, count: 19)
        for place in Inflate.order.prefix(count) { lengths[place] = try take(3) }
        let code = try Code(lengths, complete: true)
        lengths = []
        while lengths.count < literals + distances {
            let symbol = try read(code)
            switch symbol {
            case 0..<16: lengths.append(symbol)
            case 16:
                guard let last = lengths.last else { throw Malformed("nothing to repeat") }
                lengths += repeatElement(last, count: 3 + (try take(2)))
            case 17: lengths += repeatElement(0, count: 3 + (try take(3)))
            default: lengths += repeatElement(0, count: 11 + (try take(7)))
            }
        }
        guard lengths.count == literals + distances, lengths[256] > 0 else { throw Malformed("codes that do not fit") }
        return (
            try Code(Array(lengths[..<literals]), complete: true),
            try Code(Array(lengths[literals...]), complete: false)
        )
    }

    /// A canonical Huffman code.
    private struct Code {
        /// How many symbols have a code of each length.
        let counts: [Int]
        /// Symbols in the order of their codes.
        let symbols: [Int]

        init(_ lengths: [Int], complete: Bool) throws {
            var counts = [Int](repeating: 0, count: 16)
            for length in lengths where length > 0 { counts[length] += 1 }
            var left = 1
            for count in counts[1...] {
                left = left << 1 - count
                if left < 0 { throw Malformed("more codes than there are bits for") }
            }
            // A code of one symbol has one bit.
            let single = counts.reduce(0, +) <= 1
            if left > 0 && (complete || !single) && !(single && counts[1] == 1) {
                throw Malformed("bits without a code")
            }
            self.counts = counts
            symbols = lengths.indices.filter { lengths[$0] > 0 }.sorted { (lengths[$0], $0) < (lengths[$1], $1) }
        }

        fileprivate init(fixed lengths: [Int]) {
            counts = (0..<16).map { length in length == 0 ? 0 : lengths.count { $0 == length } }
            symbols = lengths.indices.sorted { (lengths[$0], $0) < (lengths[$1], $1) }
        }
    }

    private static let fixedLengths = Code(
        fixed: (0..<288).map { $0 < 144 ? 8 : $0 < 256 ? 9 : $0 < 280 ? 7 : 8 })
    private static let fixedDistances = Code(fixed: [Int](repeating: 5, count: 30))
    private static let order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]
    private static let lengthBits = (0..<29).map { $0 < 8 || $0 == 28 ? 0 : ($0 - 4) / 4 }
    private static let lengthBase = [
        3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227,
        258,
    ]
    private static let distanceBits = (0..<30).map { $0 < 4 ? 0 : ($0 - 2) / 2 }
    private static let distanceBase = [
        1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097,
        6145,
        8193, 12289, 16385, 24577,
    ]
}

/// CRC-32 of zip files, over bytes given one after the other.
struct Crc32 {
    private var state: UInt32 = 0xffff_ffff

    var value: UInt32 { state ^ 0xffff_ffff }

    mutating func add(_ bytes: ArraySlice<UInt8>) {
        for byte in bytes { state = Crc32.table[Int((state ^ UInt32(byte)) & 0xff)] ^ state >> 8 }
    }

    private static let table: [UInt32] = (0..<256).map { start in
        (0..<8).reduce(UInt32(start)) { value, _ in value & 1 == 1 ? 0xedb8_8320 ^ value >> 1 : value >> 1 }
    }
}
