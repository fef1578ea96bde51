import Testing

@testable import PFLMobile

@Suite struct GoldenCheckTests {
    private func floats(_ values: Float...) -> Tensor { .float(FloatTensor(values, [values.count])) }

    private func error(_ got: TensorSet, _ want: TensorSet, _ name: String, weight: Tensor? = nil) -> Double? {
        outputErrors(got, want, weight, goldenTolerance).first { $0.name == name }?.error
    }

    @Test("errors are relative to the largest entry")
    func relative() {
        #expect(relativeError([1, 3], [1, 4]) == 0.25)
        #expect(relativeError([0], [0]) == 0)
        #expect(relativeError([1], [0]) == .infinity)
        #expect(relativeError([.nan], [.nan]) == .infinity)
        #expect(relativeError([1], [0], floor: 2) == 0.5)
        #expect(relativeError([], []) == 0)
        #expect(relativeError([], [1]) == .infinity)
    }

    @Test("a tiny gradient beside large ones is rounding noise")
    func noise() throws {
        let want = ["grad.a": floats(100), "grad.b": floats(1e-9)]
        let got = ["grad.a": floats(100), "grad.b": floats(2e-9)]
        #expect(try #require(error(got, want, "grad.b")) < goldenTolerance)
        #expect(try #require(error(["b": floats(2e-3)], ["b": floats(1e-3)], "b")) > goldenTolerance)
    }

    @Test("one hit may fall to the other side")
    func hits() throws {
        let want = ["top1_sum": floats(5)]
        let weight = floats(1, 0.5)
        #expect(error(["top1_sum": floats(6)], want, "top1_sum", weight: weight) == 0)
        #expect(try #require(error(["top1_sum": floats(7)], want, "top1_sum", weight: weight)) > goldenTolerance)
        #expect(try #require(error(["top1_sum": floats(6)], want, "top1_sum")) > goldenTolerance)
    }

    @Test("ids of equal probability may change places")
    func ids() {
        func wrong(_ got: [Int64], _ want: [Int64], _ probs: Float...) -> Double? {
            let shape = [got.count / 3, 3]
            let values = Tensor.float(FloatTensor(probs, shape))
            return error(
                ["top_ids": .long(LongTensor(got, shape)), "top_probs": values],
                ["top_ids": .long(LongTensor(want, shape)), "top_probs": values], "top_ids")
        }
        #expect(wrong([1, 2, 3], [1, 2, 3], 0.5, 0.3, 0.2) == 0)
        #expect(wrong([2, 1, 3], [1, 2, 3], 0.4, 0.4, 0.2) == 0)
        #expect(wrong([2, 1, 3], [1, 2, 3], 0.5, 0.3, 0.2) == 1)
        // There may be a fourth as likely as the third, in one row.
        #expect(wrong([1, 2, 9], [1, 2, 3], 0.5, 0.2, 0.1) == 0)
        #expect(wrong([1, 2, 9], [1, 2, 3], 0.5, 0.3, 0.2) == 1)
        #expect(wrong([1, 2, 9, 1, 2, 9], [1, 2, 3, 1, 2, 3], 0.5, 0.2, 0.1, 0.5, 0.2, 0.1) == 1)
        // The end of a row is no neighbour of the next row's start.
        #expect(wrong([1, 2, 3, 9, 5, 6], [1, 2, 3, 4, 5, 6], 0.8, 0.1, 0.05, 0.05, 0.02, 0.01) == 1)
    }
}
