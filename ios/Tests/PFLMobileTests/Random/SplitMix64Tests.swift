import Testing

@testable import PFLMobile

@Suite struct SplitMix64Tests {
    @Test("outputs and permutations are Python's")
    func vectors() throws {
        for generator in try Vectors.read("random.json")["generators"].items {
            let seed = try generator["seed"].unsigned
            for (index, want) in try generator["splitmix64"].items.enumerated() {
                #expect(try SplitMix64.output(seed, UInt64(index)) == want.unsigned)
            }
            for want in try generator["permutations"].items {
                let order = try want.items.map { try $0.int }
                #expect(SplitMix64.permutation(seed, order.count) == order)
            }
        }
    }

    @Test("derived seeds are Python's")
    func derived() throws {
        for derived in try Vectors.read("random.json")["derive"].items {
            let keys = try derived["keys"].items.map { UInt64(try $0.int) }
            let found = keys.reduce(try derived["seed"].unsigned) { SplitMix64.derive($0, $1) }
            #expect(try found == derived["result"].unsigned)
        }
    }

    @Test("uniform numbers fill the unit interval")
    func uniform() {
        let drawn = SplitMix64.uniform(7, 1000)
        #expect(drawn.allSatisfy { $0 >= 0 && $0 < 1 })
        #expect((0.45...0.55).contains(drawn.reduce(0, +) / 1000))
    }
}
