/// The random numbers behind every shuffle, the same in every language: outputs of SplitMix64 (Steele, Lea and Flood 2014,
/// "Fast splittable pseudorandom number generators"). Output number i depends on the seed and i alone.
public enum SplitMix64 {
    private static let golden: UInt64 = 0x9E37_79B9_7F4A_7C15

    /// SplitMix64's output function: a bijection of 64-bit numbers.
    public static func mix(_ bits: UInt64) -> UInt64 {
        var z = (bits ^ (bits >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// Output number `index`, from 0, of the generator started at `seed`.
    public static func output(_ seed: UInt64, _ index: UInt64) -> UInt64 {
        mix(seed &+ (index &+ 1) &* golden)
    }

    /// A seed of its own for each sequence of keys, for instance (phase, epoch).
    public static func derive(_ seed: UInt64, _ keys: UInt64...) -> UInt64 {
        keys.reduce(seed, output)
    }

    /// A random order of `0..<n`: the indexes sorted by their outputs, which all differ.
    public static func permutation(_ seed: UInt64, _ n: Int) -> [Int] {
        let keys = (0..<n).map { output(seed, UInt64($0)) }
        return keys.indices.sorted { keys[$0] < keys[$1] }
    }

    /// So many numbers in [0, 1): the upper 53 bits of each output / 2^53.
    public static func uniform(_ seed: UInt64, _ count: Int) -> [Double] {
        (0..<count).map { Double(output(seed, UInt64($0)) >> 11) * 0x1p-53 }
    }
}
