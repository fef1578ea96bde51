import Foundation

/// Noise that a device adds to its own update, so that it need not trust the aggregator, and what that guarantees.
enum LocalNoise {
    private static let exact = 1e-12

    // Beyond it exp would overflow; there log(1 + q (e^x - 1)) is x + log(q).
    private static let huge = 500.0

    /// An update clipped to C with N(0, (z C)^2) on every value, float32 [P].
    ///
    /// - Parameters:
    ///   - flat: all tensors of the update together, float32 [P]
    ///   - clipNorm: C
    ///   - noiseMultiplier: z; 0 only clips
    ///   - source: `SecureNoise` on a real device
    /// - Throws: `.nonFinite`: a value is NaN or infinite
    static func privateUpdate(
        _ flat: [Float], clipNorm: Double, noiseMultiplier: Double, source: any Noise
    ) throws -> [Float] {
        var clipped = try Clipping.clipped(flat, clipNorm: clipNorm)
        if noiseMultiplier != 0 {
            let scale = noiseMultiplier * clipNorm
            for (i, drawn) in source.normal(clipped.count).enumerated() { clipped[i] += scale * drawn }
        }
        return clipped.map { Float($0) }
    }

    /// Exact epsilon against those who receive a device's updates (Balle and Wang 2018, Theorem 8). As one device's data
    /// replaced by any other moves a clipped update by 2 C, updates with z1, z2, ... are together one Gaussian release with
    /// mu = 2 (sum of z^-2)^(1/2).
    ///
    /// - Parameters:
    ///   - inverseSquares: sum over the updates of z^-2; 0 where nothing was sent
    ///   - delta: between 0 and 1
    static func localEpsilon(inverseSquares: Double, delta: Double) -> Double {
        releaseEpsilon(mu: 2 * inverseSquares.squareRoot(), delta: delta)
    }

    /// Exact epsilon of one Gaussian release (Balle and Wang 2018, Theorem 8).
    ///
    /// - Parameters:
    ///   - mu: how far one device moves it, in standard deviations of the noise
    ///   - delta: between 0 and 1
    static func releaseEpsilon(mu: Double, delta: Double) -> Double {
        if mu == 0 || mu.isInfinite { return mu }
        let rho = mu * mu / 2
        if gaussianDelta(0, mu) <= delta { return 0 }
        var low = 0.0
        var high = rho + 2 * (rho * log(1 / delta)).squareRoot()  // by zCDP (Bun and Steinke 2016)
        while true {
            let middle = (low + high) / 2
            if high - low <= exact * high || !(low < middle && middle < high) { return high }
            if gaussianDelta(middle, mu) <= delta { high = middle } else { low = middle }
        }
    }

    /// Exact epsilon of one release that a device is in by a secret coin, when it is then left out; no number of rounds costs
    /// less (Balle, Barthe, Gaboardi 2018, Theorem 8).
    ///
    /// - Parameters:
    ///   - mu: as in `releaseEpsilon`
    ///   - rate: q, the probability of the coin, above 0
    ///   - delta: between 0 and 1
    static func sampledEpsilon(mu: Double, rate: Double, delta: Double) -> Double {
        if rate >= 1 { return releaseEpsilon(mu: mu, delta: delta) }
        if delta >= rate { return 0 }
        let whole = releaseEpsilon(mu: mu, delta: delta / rate)
        return whole < huge ? log1p(rate * expm1(whole)) : whole + log(rate)
    }

    /// Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu), which decreases with epsilon.
    private static func gaussianDelta(_ epsilon: Double, _ mu: Double) -> Double {
        let a = mu / 2 - epsilon / mu
        let b = mu / 2 + epsilon / mu
        let density = exp(-a * a / 2) / (2 * Double.pi).squareRoot()  // e^epsilon times that at b, without overflow
        return NormalTail.above(-a) - density * NormalTail.mills(b)
    }
}
