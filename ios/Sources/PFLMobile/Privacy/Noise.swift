import Foundation

/// A source of standard Gaussian values.
protocol Noise {
    /// Independent N(0, 1) values.
    func normal(_ size: Int) -> [Double]
}

/// N(0, 1) values that nobody can predict or repeat: their bits are those of the platform's secure generator, which Swift's
/// `SystemRandomNumberGenerator` is on all of them.
///
/// Floating-point numbers have gaps, and which values a textbook sampler can give depends on what they are added to (Mironov
/// 2012; Jin et al. 2022). So each value is the sum of four independent Gaussians over 2, of eight uniform numbers with 53
/// random bits each (Holohan and Braghin 2021). This is a defence, not a proof: the guarantees elsewhere are those of real
/// numbers.
struct SecureNoise: Noise {
    private static let half = 1 << 9

    func normal(_ size: Int) -> [Double] {
        var generator = SystemRandomNumberGenerator()
        var out: [Double] = []
        out.reserveCapacity(size)
        while out.count < size {
            var words = (0..<2 * summands * SecureNoise.half).map { _ in generator.next() as UInt64 }
            out += summedBoxMuller(words, half: SecureNoise.half).prefix(size - out.count)
            for i in words.indices { words[i] = 0 }
        }
        return out
    }
}

/// Gaussians that are added up for one value.
private let summands = 4
private let unit = 0x1p-53
private let sine = series(terms: 8, first: 1)
private let cosine = series(terms: 9, first: 0)

/// (-1)^k / (2 k + first)! for each k.
private func series(terms: Int, first: Int) -> [Double] {
    (0..<terms).map { k in
        var factorial = 1.0
        for i in stride(from: 2, through: 2 * k + first, by: 1) { factorial *= Double(i) }
        return (k % 2 == 0 ? 1 : -1) / factorial
    }
}

/// Words of 64 random bits to N(0, 1) values.
///
/// Box and Muller (1958): r cos(a) and r sin(a) are independent and Gaussian. The two of a pair go to different values, so that
/// every value is a sum over four independent pairs. The angle is uniform in one quadrant, and two further bits are the signs.
///
/// - Parameter words: `[2, 4, half]`: radii, then angles
/// - Returns: `2 * half` values
func summedBoxMuller(_ words: [UInt64], half: Int) -> [Double] {
    var values = [Double](repeating: 0, count: 2 * half)
    let angles = summands * half
    for summand in 0..<summands {
        for i in 0..<half {
            let at = summand * half + i
            let bits = words[angles + at]
            // In (0, 1], so that the logarithm is finite; r / sqrt(2).
            let radius = (-log((Double(words[at] >> 11) + 1) * unit)).squareRoot()
            // sqrt(2) times cosine and sine by the series around pi / 4, in the same time for any angle.
            let angle = Double(bits >> 11) * (Double.pi / 2 * unit) - Double.pi / 4
            let square = angle * angle
            let odd = polynomial(square, sine) * angle
            let even = polynomial(square, cosine)
            values[i] += signed((even - odd) * radius, bits & 1)
            values[half + i] += signed((even + odd) * radius, bits >> 1 & 1)
        }
    }
    return values.map { $0 / Double(summands).squareRoot() }
}

private func signed(_ value: Double, _ bit: UInt64) -> Double {
    Double(bitPattern: value.bitPattern ^ bit << 63)
}

private func polynomial(_ x: Double, _ coefficients: [Double]) -> Double {
    var sum = 0.0
    for coefficient in coefficients.dropFirst().reversed() { sum = (sum + coefficient) * x }
    return sum + coefficients[0]
}
