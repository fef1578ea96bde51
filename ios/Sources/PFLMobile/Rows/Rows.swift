// Rows -> batches of fixed shape: programs are exported for one batch size, so the last batch is padded. Padding rows are zero
// everywhere, so their weight is 0 and the sums of the programs do not see them.

/// Examples as arrays by name with the same first axis, one of them `weight` (float32; 0 for what does not count).
public typealias Rows = TensorSet

/// The weights of rows that were checked; none where there are none.
func weights(_ rows: Rows) -> FloatTensor {
    rows["weight"]?.float ?? FloatTensor([], [0])
}

/// How many rows there are, of rows that were checked.
func count(_ rows: Rows) -> Int { weights(rows).shape.first ?? 0 }

/// How many rows there are.
///
/// - Throws: `.data`: no `weight`, lengths that differ, or a weight that is negative or not finite
@discardableResult
func checkRows(_ rows: Rows, _ what: String = "rows") throws -> Int {
    guard let weight = rows["weight"]?.float else {
        throw PFLError(
            .data, "the \(what) have no 'weight'", mend: "give float32 weights, 1 for an ordinary example")
    }
    let count = weight.shape.first ?? 0
    for (name, value) in rows where value.shape.first != count {
        throw PFLError(
            .data, "the \(what) have \(count) weights but '\(name)' has shape \(value.shape)",
            mend: "give every array the same first axis")
    }
    if weight.values.contains(where: { !($0 >= 0 && $0.isFinite) }) {
        throw PFLError(.data, "a weight of the \(what) is negative or not finite", mend: "use weights of 0 or more")
    }
    return count
}

/// Which rows have a positive weight in all; weights are 0 or more.
func counting(_ weight: FloatTensor) -> [Int] {
    let count = weight.shape.first ?? 0
    let width = count == 0 ? 0 : weight.size / count
    return (0..<count).filter { row in weight.values[row * width..<(row + 1) * width].contains { $0 > 0 } }
}

/// The rows whose total weight is positive, in order; the others would only be padding.
///
/// - Throws: `.noExamples`: none is left; `.data` as `checkRows`
func weightedRows(_ rows: Rows, _ what: String = "rows") throws -> Rows {
    let count = try checkRows(rows, what)
    let keep = counting(weights(rows))
    if keep.isEmpty {
        throw PFLError(.noExamples, "the \(what) hold no example with a positive weight", mend: "add examples first")
    }
    return keep.count == count ? rows : take(rows, keep[...], keep.count)
}

/// Order of the rows in one epoch: a permutation drawn from derive(seed, phase, epoch).
func epochOrder(_ count: Int, seed: UInt64, phase: Int, epoch: Int) -> [Int] {
    SplitMix64.permutation(SplitMix64.derive(seed, UInt64(phase), UInt64(epoch)), count)
}

/// The rows of these indexes, at most `size`, as one batch of exactly `size`, padded with zeros.
func take(_ rows: Rows, _ order: ArraySlice<Int>, _ size: Int) -> Rows {
    rows.mapValues { value in
        let width = length(Array(value.shape.dropFirst()))
        let shape = [size] + value.shape.dropFirst()
        switch value {
        case .float(let tensor): return .float(FloatTensor(taken(tensor.values, order, width, size, 0), shape))
        case .long(let tensor): return .long(LongTensor(taken(tensor.values, order, width, size, 0), shape))
        case .raw(let tensor):
            return .raw(RawTensor(tensor.dtype, taken(tensor.bytes, order, width * tensor.dtype.bytes, size, 0), shape))
        }
    }
}

private func taken<Value>(_ from: [Value], _ order: ArraySlice<Int>, _ width: Int, _ size: Int, _ zero: Value)
    -> [Value]
{
    var out: [Value] = []
    out.reserveCapacity(size * width)
    for index in order { out += from[index * width..<(index + 1) * width] }
    out += repeatElement(zero, count: size * width - out.count)
    return out
}

/// All rows once, in an order (or as they are), in batches of `size`.
func paddedBatches(_ rows: Rows, _ size: Int, _ order: [Int]? = nil) -> some Sequence<Rows> {
    let all = order ?? Array(0..<count(rows))
    return stride(from: 0, to: all.count, by: size).lazy.map { take(rows, all[$0..<min($0 + size, all.count)], size) }
}

/// How many of so many examples are held out, the newest: floor(count * fraction + 0.5), at least 1 when there are 2 or more,
/// and always leaving 1 to train on.
func holdoutSize(_ count: Int, _ fraction: Double) -> Int {
    count < 2 ? 0 : min(max(Int(Double(count) * fraction + 0.5), 1), count - 1)
}

/// The first so many rows, and the others.
func cutRows(_ rows: Rows, _ at: Int) -> (Rows, Rows) {
    let count = rows.first?.value.shape.first ?? 0
    return (take(rows, ArraySlice(0..<at), at), take(rows, ArraySlice(at..<count), count - at))
}

/// Rows one after the other, with the names of the first; what they do not share in shape or type is left out.
func joinRows(_ first: Rows, _ then: Rows) -> Rows {
    var joined: Rows = [:]
    for (name, one) in first {
        let shape = [(one.shape.first ?? 0) + (then[name]?.shape.first ?? 0)] + one.shape.dropFirst()
        switch (one, then[name]) {
        case (.float(let a), .float(let b)): joined[name] = .float(FloatTensor(a.values + b.values, shape))
        case (.long(let a), .long(let b)): joined[name] = .long(LongTensor(a.values + b.values, shape))
        case (.raw(let a), .raw(let b)): joined[name] = .raw(RawTensor(a.dtype, a.bytes + b.bytes, shape))
        default: break
        }
    }
    return joined
}

/// Rows of the same names, shapes and types one after the other; none of none.
func stackRows(_ rows: [Rows]) -> Rows {
    guard let first = rows.first else { return [:] }
    var stacked: Rows = [:]
    for (name, one) in first {
        let parts = rows.compactMap { $0[name] }
        let shape = [parts.reduce(0) { $0 + ($1.shape.first ?? 0) }] + one.shape.dropFirst()
        switch one {
        case .float: stacked[name] = .float(FloatTensor(parts.flatMap { $0.float?.values ?? [] }, shape))
        case .long: stacked[name] = .long(LongTensor(parts.flatMap { $0.long?.values ?? [] }, shape))
        case .raw(let tensor):
            let bytes = parts.flatMap { part in part.withBytes { Array($0) } }
            stacked[name] = .raw(RawTensor(tensor.dtype, bytes, shape))
        }
    }
    return stacked
}
