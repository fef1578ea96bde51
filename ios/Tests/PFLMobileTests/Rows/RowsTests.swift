import Testing

@testable import PFLMobile

@Suite struct RowsTests {
    let vectors: JSON

    init() throws {
        vectors = try Vectors.read("batches.json")
    }

    @Test("each epoch has Python's order")
    func order() throws {
        for vector in try vectors["epoch_order"].items {
            let found = epochOrder(
                try vector["rows"].int, seed: try vector["seed"].unsigned, phase: try vector["phase"].int,
                epoch: try vector["epoch"].int)
            #expect(try found == vector["order"].flat)
        }
    }

    @Test("the last batch is padded with zeros")
    func padded() throws {
        let vector = try vectors["padded"]
        let found = Array(paddedBatches(try vector["rows"].tensors, try vector["size"].int, try vector["order"].flat))
        let want = try vector["batches"].items.map { try $0.tensors }
        #expect(found.count == want.count)
        for (one, other) in zip(want, found) { expectBits(one, other, "a batch") }
    }

    @Test("as many are held out")
    func holdout() throws {
        for vector in try vectors["holdout_size"].items.map({ try $0.items }) {
            #expect(try holdoutSize(vector[0].int, vector[1].double) == vector[2].int)
        }
    }

    @Test("rows that are cut and joined are the same rows")
    func cut() throws {
        let rows = try vectors["padded"]["rows"].tensors
        let (first, rest) = cutRows(rows, 3)
        #expect(try [checkRows(first), checkRows(rest)] == [3, 4])
        expectBits(rows, joinRows(first, rest), "joined")
    }

    @Test("rows without weight do not count")
    func weighted() throws {
        let rows: Rows = [
            "x": .long(LongTensor([1, 2, 3], [3])), "weight": .float(FloatTensor([0, 0, 0, 0.5, 0, 0], [3, 2])),
        ]
        #expect(try weightedRows(rows)["x"]?.long?.values == [2])
        expectError(.noExamples) { _ = try weightedRows(cutRows(rows, 1).0) }
    }

    @Test("rows that are none are refused")
    func refused() {
        func weight(_ values: Float...) -> Tensor { .float(FloatTensor(values, [values.count])) }
        expectError(.data) { try checkRows([:]) }
        expectError(.data) { try checkRows(["weight": weight(1), "x": weight(1, 2)]) }
        expectError(.data) { try checkRows(["weight": weight(-1)]) }
        expectError(.data) { try checkRows(["weight": weight(.nan)]) }
    }
}
