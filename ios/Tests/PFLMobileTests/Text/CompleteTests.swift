import Testing

@testable import PFLMobile

@Suite struct CompleteTests {
    @Test("words that were begun are completed as Python does")
    func vectors() throws {
        let vectors = try Vectors.read("completions.json")
        let tokenizer = try WordTokenizer(WordTokenizer.specialWords + vectors["words"].texts)
        let index = try PrefixIndex(tokenizer)
        let cases = try vectors["cases"].items
        for vector in cases {
            let prefix = try vector["prefix"].text
            let ids = index.startingWith(prefix)
            #expect(try ids == vector["ids"].flat, "\(prefix)")
            for (count, words) in try vector["words"].fields {
                let found = complete(
                    try vector["likely"].texts, own: try vector["own"].texts, vocabulary: try ids.map(tokenizer.word),
                    prefix: prefix, count: try #require(Int(count)))
                #expect(try found == words.texts, "\(prefix)")
            }
        }
        #expect(cases.count > 10)
    }

    @Test("over subwords what is likely and one's own is all")
    func subwords() {
        let found = complete(["see", "tonight"], own: ["tzatziki"], vocabulary: [], prefix: "t", count: 3)
        #expect(found == ["tonight", "tzatziki"])
    }

    @Test("suggestions are words, each once, the likeliest first")
    func suggestions() throws {
        let tokenizer = try WordTokenizer(WordTokenizer.specialWords + ["see", "you"])
        let encoder = try TextEncoder(tokenizer, length: 4, vocabulary: 8, slots: 2, words: ["zorp"])
        let outputs: TensorSet = [
            "top_ids": .long(LongTensor([2, 5, 9, 8, 5, 4], [1, 6])),
            "top_probs": .float(FloatTensor([0.5, 0.25, 0.125, 0.0625, 0.0625, 0], [1, 6])),
        ]
        let found = try suggest(encoder, after: "see", count: 2) { context in
            #expect(context.tokens.values == [1, 4, 0, 0])
            #expect(context.position.values == [1])
            return try Predicted(outputs)
        }
        #expect(found == [Suggestion(word: "you", probability: 0.25), Suggestion(word: "zorp", probability: 0.0625)])
        expectError(.engine) { _ = try Predicted([:]) }
    }
}
