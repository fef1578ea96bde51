/// Updates shortened to an L2 norm, as they leave a device.
enum Clipping {
    /// Clipped norms stay this share below the limit: far more than all roundings of float32 and float64 together can add, far
    /// less than anybody notices.
    private static let margin = 0x1p-20

    /// L2 norm of all values together, in float64: squares of float32 overflow at 1e19 and vanish at 1e-23.
    ///
    /// - Throws: `.nonFinite`: a value is NaN or infinite
    static func norm(_ flat: [Float]) throws -> Double {
        var total = 0.0
        for x in flat {
            let wide = Double(x)
            total += wide * wide
        }
        let norm = total.squareRoot()
        try check(norm)
        return norm
    }

    /// min(1, C / norm), rounded down so that the clipped norm is never above C.
    ///
    /// - Throws: `.nonFinite`: the norm is NaN or infinite; `.config`: C is not a positive number
    static func factor(_ norm: Double, clipNorm: Double) throws -> Double {
        if !(clipNorm.isFinite && clipNorm > 0) {
            throw PFLError(.config, "the clip norm is \(clipNorm)", mend: "give a positive number")
        }
        try check(norm)
        let padded = norm * (1 + margin)
        return padded > clipNorm ? clipNorm / padded : 1
    }

    /// An update clipped to C, before any noise: float64 [P].
    ///
    /// - Throws: as `norm` and `factor`
    static func clipped(_ flat: [Float], clipNorm: Double) throws -> [Double] {
        let factor = try factor(try norm(flat), clipNorm: clipNorm)
        return flat.map { Double($0) * factor }
    }

    private static func check(_ norm: Double) throws {
        if !norm.isFinite {
            throw PFLError(
                .nonFinite, "the norm of the update is NaN or infinite",
                mend: "do not send it: there is no clip factor for it")
        }
    }
}

/// What may be called private: the one rule of plans, aggregators, studies and devices.
enum Limits {
    /// The largest epsilon that a device accepts where its user says nothing.
    static let deviceEpsilon = 10.0
    /// The largest delta that a device accepts where its user says nothing.
    static let deviceDelta = 1e-6
    /// No guarantee is said, planned or accepted with a larger epsilon: with 20 an outcome may be 5 * 10^8 times as probable.
    static let mostEpsilon = 20.0
    /// The same of delta.
    static let mostDelta = 1e-3
    /// Smaller ones are lost in the arithmetic.
    static let leastDelta = 1e-100
    /// Norms outside could not be told from zero or infinity in float32.
    static let clipNorms = 1e-12...1e12
}
