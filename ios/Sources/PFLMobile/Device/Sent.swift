/// Updates that left this device under its own noise: how many, and the sum of z^-2, which is what epsilon needs. The
/// aggregator's figures are not believed.
///
/// An update counts once it is made, before its upload begins, and never again: one that is resumed has the same noise, one that
/// is trained anew has fresh noise and counts anew.
final class SentNoise {
    private var file: CountFile<Count>

    /// - Parameters:
    ///   - path: of the file; where there is none, nothing was sent
    ///   - begun: whether it must be there, so that one that is missing was lost
    /// - Throws: `.deviceFolder`: the file is damaged or was lost, so it is not known what was sent
    init(_ path: String, begun: Bool = false, files: AtomicFiles = AtomicFiles()) throws {
        file = try CountFile(
            path, begun: begun, nothing: Count(), files: files,
            unknown: "how much was sent under this device's noise",
            mend: "restore it from a backup; only the user can decide to remove it and to begin to count anew")
    }

    /// How many there were.
    var updates: Int { file.now.updates }

    /// Counts an update that is about to be sent; it is on the disk when this returns.
    ///
    /// - Parameter noiseMultiplier: z > 0 of its noise, relative to its clip norm
    /// - Throws: `.storageFull`, `.unwritable`: it cannot be counted, so it must not be sent
    func add(_ noiseMultiplier: Double) throws { try file.write(file.now.plus(noiseMultiplier)) }

    /// Has the file, so that a loss of it is seen.
    func begin() throws { try file.begin() }

    /// Epsilon at a delta of all that was sent, and of more updates, given by the z > 0 of each.
    func epsilon(delta: Double, _ more: [Double] = []) -> Double {
        LocalNoise.localEpsilon(
            inverseSquares: more.reduce(file.now) { $0.plus($1) }.inverseSquares, delta: delta)
    }

    private struct Count: Body {
        var schemaVersion = DeviceFolder.schemaVersion
        var updates = 0
        var inverseSquares = 0.0

        /// The largest sum that is kept: noise this small hides nothing anyway, and infinity is no JSON.
        private static let most = 1e300

        init() {}

        init(_ fields: inout Fields) throws {
            schemaVersion = try fields.required("schema_version", Fields.whole)
            updates = try fields.required("updates", Fields.whole)
            inverseSquares = try fields.required("inverse_squares", Fields.finite)
            if updates < 0 || (inverseSquares > 0) != (updates > 0) { throw Malformed("its numbers are out of range") }
        }

        var json: JSON {
            object(
                ("schema_version", .integer(schemaVersion)), ("updates", .integer(updates)),
                ("inverse_squares", .double(inverseSquares)))
        }

        func plus(_ noiseMultiplier: Double) -> Count {
            var more = self
            more.updates += 1
            // z is divided by twice: its square may underflow
            more.inverseSquares = min(inverseSquares + 1 / noiseMultiplier / noiseMultiplier, Count.most)
            return more
        }
    }
}
