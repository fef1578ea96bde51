/// The n-gram memory, which the host writes without gradients.
struct Memory: Sendable {
    /// int64 [capacity]: the label of each entry; 0 is empty.
    let next: LongTensor
    /// int64 [capacity, context]: the token at the position first, then the ones before it; 0 where the sequence had not begun.
    let context: LongTensor
    /// Entries written in all.
    let count: Int
}

/// Writes one entry for each label position with a positive weight, rows in order, left to right, into an empty memory. Entry
/// number j goes to place j mod capacity, so the newest entries stay.
///
/// - Parameters:
///   - tokens: int64 [rows, T]
///   - labels: int64 [rows, T], the token after each position
///   - weight: float32 [rows, T]
///   - context: tokens of context kept with each entry (order - 1)
/// - Throws: `.data`: the shapes differ
func memorize(
    _ tokens: LongTensor, _ labels: LongTensor, _ weight: FloatTensor, capacity: Int, context: Int
) throws -> Memory {
    if tokens.shape != labels.shape || tokens.shape != weight.shape || tokens.shape.count != 2 {
        throw PFLError(
            .data, "tokens \(tokens.shape), labels \(labels.shape) and weight \(weight.shape) differ",
            mend: "the memory needs rows of tokens [rows, T] with a label and a weight at every position")
    }
    let length = tokens.shape[1]
    var next = [Int64](repeating: 0, count: capacity)
    var before = [Int64](repeating: 0, count: capacity * context)
    let entries = weight.values.count { $0 > 0 }
    var number = 0
    for place in weight.values.indices where weight.values[place] > 0 {
        let entry = number
        number += 1
        if capacity == 0 || entry < entries - capacity { continue }  // it would only be overwritten
        let at = entry % capacity
        next[at] = labels.values[place]
        let position = place % length
        for back in 0..<context {
            before[at * context + back] = back <= position ? tokens.values[place - back] : 0
        }
    }
    return Memory(
        next: LongTensor(next, [capacity]), context: LongTensor(before, [capacity, context]), count: entries)
}

/// float32 [size]: 1 for the first `assigned` slots, 0 for the free ones behind them.
func active(_ assigned: Int, _ size: Int) -> FloatTensor {
    FloatTensor((0..<size).map { $0 < assigned ? 1 : 0 }, [size])
}
