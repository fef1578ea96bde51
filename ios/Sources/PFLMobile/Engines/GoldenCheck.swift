/// The golden calls of a bundle on one engine.
public struct GoldenReport: Sendable, Equatable {
    /// Its name.
    public let engine: String
    /// Largest relative error of a loss.
    public let lossRelErr: Double
    /// Largest relative error of a gradient.
    public let gradMaxRelErr: Double
    /// Whether every output of every program is within the tolerance.
    public let ok: Bool
    /// The largest allowed relative error.
    public let tolerance: Double
    /// The output that is furthest off, as `program.output`.
    public let worst: String
    /// Its relative error; infinite when a value is not finite.
    public let worstRelErr: Double

    /// Refuses to go on with an engine that disagrees.
    ///
    /// - Throws: `.engineMismatch`: it does
    public func require() throws {
        if ok { return }
        throw PFLError(
            .engineMismatch,
            "engine '\(engine)' computes other numbers than PyTorch did at the export: output '\(worst)' is off by "
                + "\(worstRelErr) (allowed \(tolerance))",
            mend:
                "do not train with this engine here; run `pfl verify` for every engine, and export again with the version of "
                + "the runtime that the device has")
    }
}

/// Engines differ from PyTorch by the order of float32 sums, which stays below 1e-5 on the models of the test suite; a wrong
/// gradient is off by 1e-2 or more.
public let goldenTolerance = 2e-4

/// Runs the golden calls of a bundle and compares every output with what PyTorch gave. A device does so before it first
/// trains.
///
/// - Parameters:
///   - session: the programs of the bundle on an engine
///   - tolerance: largest allowed difference of a tensor, relative to its largest entry; what the bundle says of programs in
///     mixed precision, unless it is given
/// - Throws: `.engine`: the engine cannot run a program at all
public func goldenCheck(
    _ bundle: ModelBundle, _ session: any EngineSession, tolerance: Double? = nil
) throws -> GoldenReport {
    let tolerance = tolerance ?? bundle.manifest.engines[session.name]?.precision?.tolerance ?? goldenTolerance
    var largest: [ErrorKind: Double] = [:]
    var worst = ""
    var worstError = -1.0
    for (program, golden) in try bundle.golden().sorted(by: { nameOrder($0.key, $1.key) }) {
        let got = try session.run(program, golden.inputs)
        for output in outputErrors(got, golden.outputs, golden.inputs["weight"], tolerance) {
            largest[output.kind] = max(largest[output.kind] ?? 0, output.error)
            if output.error > worstError {
                worst = "\(program).\(output.name)"
                worstError = output.error
            }
        }
    }
    let error = max(worstError, 0)
    return GoldenReport(
        engine: session.name, lossRelErr: largest[.loss] ?? 0, gradMaxRelErr: largest[.gradient] ?? 0,
        ok: error <= tolerance, tolerance: tolerance, worst: worst, worstRelErr: error)
}

enum ErrorKind: Sendable {
    case gradient
    case loss
    case other
}

/// How far one output is from what was expected, see `relativeError`.
struct OutputError: Sendable {
    let name: String
    let error: Double
    let kind: ErrorKind
}

/// Largest difference over the largest expected entry (or `floor`); infinite when a value is not finite.
func relativeError(_ got: [Double], _ want: [Double], floor: Double = 0) -> Double {
    if !got.allSatisfy(\.isFinite) || !want.allSatisfy(\.isFinite) { return .infinity }
    let scale = max(want.largest, floor)
    let difference = largestDifference(got, want)
    if scale > 0 { return difference / scale }
    return difference > 0 ? .infinity : 0
}

/// The error of every output of one call of a program.
///
/// - Parameters:
///   - weight: the weights of the batch, where there are any
///   - tolerance: from which error on a count of hits is looked at again: one near-tie may fall to the other side of float32
///     rounding, which is no error
func outputErrors(_ got: TensorSet, _ want: TensorSet, _ weight: Tensor?, _ tolerance: Double) -> [OutputError] {
    let largest = want.filter { $0.key.hasPrefix(gradientPrefix) }.map(\.value.doubles.largest).max() ?? 0
    return want.sorted { nameOrder($0.key, $1.key) }.map { name, expected in
        let found = got[name]?.doubles ?? []
        let wanted = expected.doubles
        if name == "top_ids" {
            let wrong = idsDiffer(found, wanted, want["top_probs"]?.doubles, expected.shape.last ?? 1, tolerance)
            return OutputError(name: name, error: wrong ? 1 : 0, kind: .other)
        }
        let isGradient = name.hasPrefix(gradientPrefix)
        // A gradient that is tiny beside the others is rounding noise of the sums.
        var error = relativeError(found, wanted, floor: isGradient ? 1e-4 * largest : 1e-6)
        if let weight, isHits(name), error > tolerance, error.isFinite {
            let one = max(weight.doubles.max() ?? 0, 0)
            if largestDifference(found, wanted) <= 1.0001 * one { error = 0 }
        }
        return OutputError(name: name, error: error, kind: isGradient ? .gradient : name == "loss_sum" ? .loss : .other)
    }
}

/// Whether a name is `top<number>_sum`.
private func isHits(_ name: String) -> Bool {
    guard name.hasPrefix("top"), name.hasSuffix("_sum") else { return false }
    let digits = name.dropFirst(3).dropLast(4)
    return !digits.isEmpty && digits.utf8.allSatisfy { $0 >= 0x30 && $0 <= 0x39 }
}

/// Whether an id differs that equal probabilities do not explain. Neighbours of equal probability may change places. Who is
/// next after the last is not known: an id there may differ where there could be one as likely, and in one row.
///
/// - Parameter width: ids of a row
private func idsDiffer(
    _ got: [Double], _ want: [Double], _ probs: [Double]?, _ width: Int, _ tolerance: Double
) -> Bool {
    guard got.count == want.count else { return true }
    let other = want.indices.filter { got[$0] != want[$0] }
    guard let probs, probs.count == want.count else { return !other.isEmpty }
    let allowed = tolerance * max(probs.max() ?? 0, 0)
    func near(_ at: Int, _ next: Int) -> Bool {
        at / width == next / width && abs(probs[at] - probs[next]) <= allowed
    }
    let wrong = other.filter { at in
        !(at > 0 && near(at, at - 1)) && !(at + 1 < want.count && near(at, at + 1))
    }
    let last = wrong.filter { at in
        let row = at / width * width
        return at % width == width - 1 && 1 - probs[row..<row + width].reduce(0, +) + allowed >= probs[at]
    }
    return wrong.count > (last.count == 1 ? 1 : 0)
}

extension [Double] {
    fileprivate var largest: Double { lazy.map { abs($0) }.max() ?? 0 }
}

private func largestDifference(_ got: [Double], _ want: [Double]) -> Double {
    got.count == want.count ? zip(got, want).lazy.map { abs($0 - $1) }.max() ?? 0 : .infinity
}
