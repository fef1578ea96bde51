import Foundation

/// Tails of the normal distribution; relative errors are below 1e-14.
enum NormalTail {
    /// P(N(0, 1) > x).
    static func above(_ x: Double) -> Double {
        0.5 * erfc(x / 2.0.squareRoot())
    }

    /// P(N(0, 1) > x) over the density at x, for x >= 0; of large x a lower bound, exact to 1e-9.
    static func mills(_ x: Double) -> Double {
        if x < far { return (Double.pi / 2).squareRoot() * scaledComplement(x / 2.0.squareRoot()) }
        let y = 1 / (x * x)
        return (1 - y * (1 - 3 * y * (1 - 5 * y))) / x
    }

    /// exp(z^2) erfc(z) for z >= 0.
    private static func scaledComplement(_ z: Double) -> Double {
        z < near ? exp(z * z) * erfc(z) : trapezoids(z)
    }

    /// By the trapezoidal rule on `z / pi * integral of exp(-t^2) / (z^2 + t^2)`, whose error with steps of h is about
    /// exp(-(pi / h)^2), less the residue of the pole where that lies inside (Chiarella and Reichel 1968).
    private static func trapezoids(_ z: Double) -> Double {
        let square = z * z
        var sum = 1 / (2 * square)
        for k in 1...terms {
            let t = Double(k) * step
            sum += exp(-t * t) / (square + t * t)
        }
        let whole = 2 * step * z / Double.pi * sum
        let pole = z < Double.pi / step ? 2 * exp(square) / expm1(2 * Double.pi * z / step) : 0
        return whole - pole
    }

    private static let near = 0.5
    private static let far = 25.0
    private static let step = 0.5
    private static let terms = 13
}
