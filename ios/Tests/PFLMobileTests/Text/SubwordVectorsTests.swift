import Foundation
import Testing

@testable import PFLMobile

/// `subwords.json`.
@Suite struct SubwordVectorsTests {
    let file: JSON

    init() throws { file = try Vectors.read("subwords.json") }

    @Test("texts drawn by chance become what the tokenizers library makes of them, whatever the steps of the file")
    func drawn() throws {
        let file = try Vectors.read("subword_texts.json")
        let texts = try file["texts"].texts
        for (name, vector) in try file["tokenizers"].fields {
            let tokenizer = try tokenizer(vector)
            let ids = try vector["ids"].items.map { try $0.flat }
            #expect(ids.count == texts.count && ids.count > 100)
            for (text, want) in zip(texts, ids) {
                let found = try tokenizer.words(text).map(tokenizer.id)
                #expect(found == want, "\(name): \(Scalars(text).map { String($0.value, radix: 16) })")
            }
            for (want, ids) in zip(try vector["decoded"].texts, ids) {
                #expect(Exact(tokenizer.text(ids)) == Exact(want), "\(name): \(ids)")
            }
        }
    }

    @Test("a word is put together of its parts until another one begins")
    func suggested() throws {
        let tokenizer = try tokenizer(try file["tokenizers"]["bpe"])
        let encoder = try TextEncoder(tokenizer, length: 6, vocabulary: tokenizer.size)
        let asked = Locked<[[String]]>([])
        func predicted(_ words: [(String, Float)]) throws -> Predicted {
            let ids = LongTensor(words.map { Int64(tokenizer.id($0.0)) }, [1, words.count])
            let probabilities = FloatTensor(words.map(\.1), [1, words.count])
            return try Predicted(["top_ids": .long(ids), "top_probs": .float(probabilities)])
        }
        let found = try suggest(encoder, after: "see", count: 2) { context in
            let last = Int(context.position.values[0])
            let typed = try context.tokens.values[1...last].map { try tokenizer.word(Int($0)) }
            asked { $0.append(typed) }
            switch typed.last {
            case "see" where typed.count == 1: return try predicted([("<|end|>", 0.4), ("\u{120}the", 0.25), ("\u{120}see", 0.125)])
            case "\u{120}the": return try predicted([("r", 0.5), ("\u{120}you", 0.25)])
            case "r": return try predicted([("e", 0.5)])
            default: return try predicted([("\u{120}you", 0.5)])
            }
        }
        #expect(found == [Suggestion(word: "there", probability: 0.0625), Suggestion(word: "see", probability: 0.125)])
        #expect(asked.now.count == 5)
    }

    private func tokenizer(_ vector: JSON) throws -> SubwordTokenizer {
        let ids = try vector["specials"]
        return try SubwordTokenizer(
            json: Array(try vector["tokenizer"].text.utf8),
            specials: SpecialIds(
                pad: ids["pad"].int, bos: ids["bos"].int, eos: ids["eos"].int, unk: ids["unk"].int))
    }

    /// A half of a surrogate pair is U+FFFD.
    private var texts: [String] {
        get throws { try file["texts"].items.map { try $0.codePoints.text() } }
    }

    @Test("texts become the ids and rows that Python gives")
    func ids() throws {
        for (name, vector) in try file["tokenizers"].fields {
            let tokenizer = try tokenizer(vector)
            let encoder = try TextEncoder(tokenizer, length: file["length"].int, vocabulary: tokenizer.size)
            let ids = try vector["ids"].items.map { try $0.flat }
            for (text, want) in zip(try texts, ids) { #expect(try encoder.ids(text) == want, "\(name): \(text)") }
            for (want, ids) in zip(try vector["decoded"].texts, ids) {
                #expect(Exact(tokenizer.text(ids)) == Exact(want), "\(name): \(ids)")
            }
            let rows = try encoder.encode(try texts, dropUnknown: true, wordsOnly: true)
            #expect(try rows.tokens.values.map { Int($0) } == vector["rows"]["tokens"].flat, "\(name)")
            #expect(try rows.labels.values.map { Int($0) } == vector["rows"]["labels"].flat, "\(name)")
            #expect(try rows.weight.values.map { Int($0) } == vector["rows"]["weight"].flat, "\(name)")
        }
    }

    @Test("nothing is learned from a text with a blocked word")
    func blocked() throws {
        let word = try file["blocked"].text
        for (name, vector) in try file["tokenizers"].fields {
            let tokenizer = try tokenizer(vector)
            let encoder = try TextEncoder(tokenizer, length: file["length"].int, vocabulary: tokenizer.size)
            let blocking = try encoder.withBlocked(BlockList().adding([word]))
            #expect(try blocking.encode(try texts).tokens.shape[0] == vector["rows_without_gym"].int, "\(name)")
            #expect(try tokenizer.spellings([word]).sorted() == vector["spellings_of_gym"].flat, "\(name)")
            #expect(try encoder.chooseWords(try texts) == [])
            expectError(.config) { _ = try TextEncoder(tokenizer, length: 6, vocabulary: tokenizer.size, slots: 1) }
        }
    }

    @Test("damaged files, and steps that are not understood, are refused")
    func refused() throws {
        let good = try file["tokenizers"]["wordpiece"]["tokenizer"].text
        let ids = SpecialIds(pad: 0, bos: 2, eos: 3, unk: 1)
        let models = [#"{"vocab": {"a": 9999999}}"#, #"{"vocab": {"a": 0, "b": 1, "c": 2, "d": 3}}"#]
        let other = good.replacingOccurrences(of: "BertPreTokenizer", with: "UnicodeScripts")
        for wrong in ["", "{}", "[]", other] + models.map({ #"{"model": \#($0)}"# }) {
            expectError(.data, wrong) { _ = try SubwordTokenizer(json: Array(wrong.utf8), specials: ids) }
        }
        _ = try SubwordTokenizer(json: Array(good.utf8), specials: ids)
        expectError(.data) {
            _ = try SubwordTokenizer(json: Array(good.utf8), specials: SpecialIds(pad: 0, bos: 4711, eos: 3, unk: 1))
        }
    }
}
