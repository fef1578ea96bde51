import Foundation
import Testing

@testable import PFLMobile

@Suite struct ForgetTests {
    let cases: [JSON]
    let table: [DeviceTensor]
    let initial: TensorSet
    let state: PersonalState
    let encoder: TextEncoder

    init() throws {
        let vectors = try Vectors.read("slots.json")
        let forget = try vectors["forget"]
        cases = try forget["cases"].items
        table = try forget["table"].table
        initial = try forget["initial"].tensors
        let tokenizer = try WordTokenizer(vectors["vocabulary"].texts)
        encoder = try TextEncoder(tokenizer, length: 8, vocabulary: tokenizer.size, slots: 4)
        state = PersonalState(
            tensors: try forget["state"]["tensors"].tensors, copies: try forget["state"]["copies"].sets,
            words: try forget["state"]["words"].texts)
    }

    @Test("words leave no slot and no entry, and all else stays")
    func leave() throws {
        let ids = WordIds(encoder)
        for vector in cases {
            let words = try vector["cut"].texts
            let found = try forgetWords(state, words, ids, table, initial)
            #expect(try found.words == vector["words"].texts, "\(words)")
            expectBits(try vector["tensors"].tensors, found.tensors, "\(words)")
            for (copy, values) in try vector["copies"].sets {
                expectBits(values, found.copies[copy] ?? [:], "\(words): \(copy)")
            }
            #expect(try countForgotten(found, words, ids, table) == (0, 0))
            #expect(try countForgotten(state, words, ids, table).slots == state.words.count - found.words.count)
        }
    }

    @Test("words are cut as the keyboard cuts them")
    func cut() throws {
        for vector in cases { #expect(try wordsToForget(vector["forget"].texts) == vector["cut"].texts) }
        for bad in [[], ["two words"], [" "]] { expectError(.config) { _ = try wordsToForget(bad) } }
    }

    @Test("every saved version forgets, and the words are not learned again")
    func versions() throws {
        let folder = try TemporaryFolder()
        let store = try PersonalStateStore(
            URL(fileURLWithPath: folder.path), model: ModelId(name: "toy", version: "1", tensors: table))
        for _ in 0..<2 { _ = try store.save(state) }
        let done = try forget(store, ["Zorp"], encoder: encoder, table: table, initial: initial)
        #expect(done.versions == [1, 2] && done.slots == 1 && done.trained)
        for version in done.versions { #expect(try !store.read(version).words.contains("zorp")) }
        #expect(try store.blocked().hides("zorp"))
        let again = try forget(store, ["Zorp"], encoder: encoder, table: table, initial: initial, retrain: true)
        #expect(again.slots == 0 && !again.trained)
    }

    @Test("what gradients trained can be had as shipped")
    func shipped() {
        let fresh = shippedAgain(state, table, initial)
        for tensor in table {
            guard let value = fresh.tensors[tensor.name] else { continue }
            let want = tensor.update == .gradient ? initial[tensor.name] : state.tensors[tensor.name]
            #expect(want?.sameBits(value) == true, "\(tensor.name)")
        }
        #expect(fresh.copies.isEmpty)
    }
}
