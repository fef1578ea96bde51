import Foundation
import Testing

@testable import PFLMobile

@Suite struct ClippingTests {
    @Test("updates are clipped to the same bits")
    func vectors() throws {
        for vector in try Vectors.read("clip.json").items {
            let flat = try vector["values"].floats
            let clipNorm = try vector["clip_norm"].double
            let norm = try Clipping.norm(flat)
            let want = try vector["norm"].bits
            #expect(abs(norm - want) <= 1e-12 * norm)
            let shortened = try Clipping.factor(norm, clipNorm: clipNorm) < 1
            #expect(try shortened == vector["clipped"].truth)
            let sent = try Clipping.clipped(flat, clipNorm: clipNorm).map { Float($0).bitPattern }
            #expect(try sent == vector["sent"].floats.map(\.bitPattern))
        }
    }

    @Test("what has no norm is refused")
    func refused() {
        expectError(.nonFinite) { _ = try Clipping.clipped([.nan], clipNorm: 1) }
        expectError(.config) { _ = try Clipping.clipped([1], clipNorm: 0) }
    }
}

@Suite struct PrivacyVectorsTests {
    let vectors: JSON

    init() throws {
        vectors = try Vectors.read("privacy.json")
    }

    private func expectClose(_ want: Double, _ found: Double, _ share: Double, _ what: @autoclosure () -> String) {
        if found == want || abs(found - want) <= share * abs(want) { return }
        Issue.record("\(what()): \(found) instead of \(want)")
    }

    @Test("random bits become the values that Python makes of them")
    func noise() throws {
        for vector in try vectors["noise"].items {
            let words = try vector["words"].items.map { try $0.hexWord }
            let found = summedBoxMuller(words, half: try vector["half"].int)
            let want = try vector["values"].items.map { try $0.double }
            #expect(found.count == want.count)
            for (want, found) in zip(want, found) { expectClose(want, found, 1e-9, "a value") }
        }
    }

    private struct Ramp: Noise {
        func normal(_ size: Int) -> [Double] {
            (0..<size).map { (i: Int) -> Double in Double(i) * (i % 2 == 0 ? -0.5 : 0.5) }
        }
    }

    @Test("an update is clipped, and the noise is relative to the bound")
    func updates() throws {
        for vector in try vectors["updates"].items {
            let found = try LocalNoise.privateUpdate(
                try vector["flat"].floats, clipNorm: try vector["clip_norm"].double,
                noiseMultiplier: try vector["noise_multiplier"].double, source: Ramp())
            #expect(try found == vector["sent"].floats)
        }
    }

    @Test("epsilon is that of Python")
    func epsilon() throws {
        let epsilon = try vectors["epsilon"]
        for vector in try epsilon["release"].items {
            let found = LocalNoise.releaseEpsilon(mu: try vector["mu"].double, delta: try vector["delta"].double)
            expectClose(try vector["epsilon"].double, found, 1e-8, vector.dumped())
        }
        for vector in try epsilon["sampled"].items {
            let found = LocalNoise.sampledEpsilon(
                mu: try vector["mu"].double, rate: try vector["rate"].double, delta: try vector["delta"].double)
            expectClose(try vector["epsilon"].double, found, 1e-8, vector.dumped())
        }
        for vector in try epsilon["local"].items {
            let found = LocalNoise.localEpsilon(
                inverseSquares: try vector["inverse_squares"].double, delta: try vector["delta"].double)
            expectClose(try vector["epsilon"].double, found, 1e-8, vector.dumped())
        }
    }

    @Test("nothing sent costs nothing, and noise that is none everything")
    func limits() {
        #expect(LocalNoise.localEpsilon(inverseSquares: 0, delta: 1e-6) == 0)
        #expect(LocalNoise.releaseEpsilon(mu: .infinity, delta: 1e-6) == .infinity)
    }

    @Test("secure noise is standard, and never the same")
    func secure() {
        let size = 20_000
        let values = SecureNoise().normal(size)
        let mean = values.reduce(0, +) / Double(size)
        let deviation = (values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(size)).squareRoot()
        // Six standard errors: one run in 10^9 fails.
        #expect(abs(mean) < 6 / Double(size).squareRoot())
        #expect(abs(deviation - 1) < 6 / (2 * Double(size)).squareRoot())
        #expect(Set(values).count == size)
        #expect(SecureNoise().normal(5).count == 5 && SecureNoise().normal(0).isEmpty)
        #expect(SecureNoise().normal(5) != SecureNoise().normal(5))
    }
}
