import Testing

@testable import PFLMobile

extension JSON {
    /// Code points of a text, which may have halves of surrogate pairs.
    var codePoints: Points {
        get throws {
            if case .points(let points) = self { return Points(points) }
            return Points(try text)
        }
    }

    /// Whole numbers in one list, of a list or of lists of lists.
    var flat: [Int] {
        get throws {
            if let integer { return [integer] }
            if let number { return [Int(number)] }
            return try items.flatMap { try $0.flat }
        }
    }
}

/// `text.json` and the words of `slots.json`.
@Suite struct TextVectorsTests {
    let file: JSON

    init() throws {
        file = try Vectors.read("text.json")
    }

    /// Fails unless two lists of pieces have the same code points.
    private func expectPieces(_ want: [String], _ found: [String], _ text: Points) {
        #expect(want.map(Exact.init) == found.map(Exact.init), "\(text.values.map { String($0, radix: 16) })")
    }

    @Test("the table is the one that Python loads")
    func table() throws {
        let points = UInt32(0)...0x10FFFF
        let table = UnicodeTable.shared
        let found: [String: [UInt8]] = [
            "kinds": points.map(table.kind),
            "lower": points.flatMap { point in withUnsafeBytes(of: table.lower(point).littleEndian) { Array($0) } },
            "assigned": points.map { table.assigned.contains($0) ? 1 : 0 },
            "accents": points.map { table.accents.contains($0) ? 1 : 0 },
        ]
        for (name, digest) in try file["table"]["sha256"].fields {
            let bytes = try #require(found[name])
            #expect(Sha256.hex(bytes) == digest.string, "\(name)")
        }
        #expect(try table.rules == file["table"]["rules"].int)
    }

    @Test("every text is cut as Python cuts it")
    func cut() throws {
        for vector in try file["cut"].items {
            let points = try vector["text"].codePoints
            expectPieces(try vector["2"].texts, Pieces.cut(points.text()), points)
            if let old = vector.maybe("1") {
                expectPieces(try old.texts, PieceRules.version1.cut(points.text()), points)
            }
        }
    }

    @Test("texts are folded as Python folds them")
    func fold() throws {
        for vector in try file["fold"].items {
            let points = try vector.items[0].codePoints
            expectPieces([try vector.items[1].codePoints.text()], [Pieces.fold(points).text()], points)
        }
    }

    @Test("symbols and digits are told apart")
    func symbols() throws {
        for vector in try file["pieces"].items {
            let word = try vector.items[0].codePoints.text()
            #expect(try PieceRules.version2.isSymbol(word) == vector.items[1].truth, "\(word)")
            #expect(try Pieces.holdsDigit(word) == vector.items[2].truth, "\(word)")
        }
    }

    @Test("rows and contexts are Python's")
    func rows() throws {
        let about = try file["encode"]
        let tokenizer = try WordTokenizer(about["vocabulary"].texts)
        let messages = try about["messages"].texts
        for vector in try about["cases"].items {
            let length = try vector["length"].int
            let encoder = try TextEncoder(
                tokenizer, length: length, vocabulary: tokenizer.size, slots: vector["slots"].int,
                words: vector["words"].texts)
            #expect(try messages.map(encoder.ids) == vector["ids"].items.map { try $0.flat })
            let rows = try encoder.encode(
                messages, dropUnknown: vector["drop_unknown"].truth, wordsOnly: vector["words_only"].truth)
            let want = try vector["rows"]
            #expect(try rows.tokens.values.map(Int.init) == want["tokens"].flat)
            #expect(try rows.labels.values.map(Int.init) == want["labels"].flat)
            #expect(try rows.weight.values.map { Int($0) } == want["weight"].flat)
            #expect(try rows.tokens.shape == [want["tokens"].items.count, length])
            for (message, context) in zip(messages, try vector["contexts"].items) {
                let found = try encoder.context(message)
                #expect(try found.tokens.values.map(Int.init) == context["tokens"].flat)
                #expect(try found.position.values.map(Int.init) == context["position"].flat)
                #expect(found.tokens.shape == [1, length])
            }
        }
    }

    @Test("slots go to the words that Python chooses")
    func slots() throws {
        let about = try Vectors.read("slots.json")
        let tokenizer = try WordTokenizer(about["vocabulary"].texts)
        let messages = try about["messages"].texts
        let last = try #require(messages.last)
        for vector in try about["cases"].items {
            let blocked = try BlockList().adding(vector["blocked"].texts)
            let encoder = try TextEncoder(
                tokenizer, length: 8, vocabulary: tokenizer.size, slots: vector["slots"].int,
                words: vector["words"].texts,
                blocked: blocked)
            let chosen = try encoder.chooseWords(messages, minCount: vector["min_count"].int)
            #expect(try chosen == vector["chosen"].texts)
            #expect(try encoder.withWords(chosen).ids(last) == vector["ids"].flat)
        }
    }

    @Test("ids become words again, and others are refused")
    func ids() throws {
        let tokenizer = try WordTokenizer(WordTokenizer.specialWords + ["see", "you"])
        let encoder = try TextEncoder(tokenizer, length: 4, vocabulary: 8, slots: 2, words: ["zorp"])
        #expect(try [4, 7, 8, 9].map(encoder.word) == ["see", "<unk>", "zorp", "<unk>"])
        #expect([0, 4, 7, 8, 9].map(encoder.isSpecial) == [true, false, true, false, true])
        for wrong in [-1, 10] { expectError(.outOfVocabulary) { _ = try encoder.word(wrong) } }
        expectError(.outOfVocabulary) { _ = try tokenizer.word(6) }
        expectError(.config) { _ = try TextEncoder(tokenizer, length: 1, vocabulary: 8) }
        expectError(.config) { _ = try TextEncoder(tokenizer, length: 4, vocabulary: 5) }
        for words in [["a", "b"], ["see"], ["<unk>"]] {
            expectError(.config) { _ = try TextEncoder(tokenizer, length: 4, vocabulary: 8, slots: 1, words: words) }
        }
    }

    @Test("words that differ only in how an accent is written are two words")
    func exactWords() throws {
        let tokenizer = try WordTokenizer(WordTokenizer.specialWords + ["\u{e9}", "e\u{301}"])
        #expect(tokenizer.id("\u{e9}") == 4)
        #expect(tokenizer.id("e\u{301}") == 5)
    }

    @Test("files of both versions are read, and others refused")
    func files() throws {
        let vocabulary = (WordTokenizer.specialWords + ["see"]).enumerated().map { "\"\($1)\": \($0)" }
        let model = """
            "model": {"type": "WordLevel", "vocab": {\(vocabulary.joined(separator: ", "))}, "unk_token": "<unk>"}
            """
        let new = """
            {"normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": [], \(model)}
            """
        #expect(try WordTokenizer(json: new.utf8).rules == .version2)
        let parts = ["NFKC", "Replace", "Replace", "Lowercase"].map { "{\"type\": \"\($0)\"}" }.joined(separator: ", ")
        let old = """
            {"normalizer": {"type": "Sequence", "normalizers": [\(parts)]}, "pre_tokenizer": {"type": "Split"}, \(model)}
            """
        #expect(try WordTokenizer(json: old.utf8).rules == .version1)
        let wrongs = [
            "", "[]", "{}", new.replacing("WordLevel", with: "BPE"), new.replacing(": 4}", with: ": 5}"),
            new.replacing("null", with: "7"),
        ]
        for wrong in wrongs { expectError(.data, wrong) { _ = try WordTokenizer(json: wrong.utf8) } }
    }

    @Test("long texts do no harm")
    func long() {
        let units = ["a", "é", "'`", "\u{301}", "\u{200d}", "#\u{FE0F}", "👨\u{200D}", "ا\u{200c}", "\u{a8}", "เ"]
        for unit in units { _ = Pieces.cut(String(repeating: unit, count: 20_000)) }
    }
}

@Suite struct BlockListTests {
    @Test("digests are Python's")
    func digests() throws {
        let about = try Vectors.read("slots.json")["digests"]
        let key = try #require(fromHex(try about["key"].text))
        for (word, digest) in try about["words"].fields {
            #expect(BlockList(key: key, digests: [try digest.text]).contains(word), "\(word)")
        }
    }

    @Test("a word hides what it is a part of, and comes back from a file")
    func hides() throws {
        let blocked = BlockList().adding(["zorp", "été"])
        for list in [blocked, try BlockList(json: blocked.json(), "it")] {
            #expect(list.contains("zorp") && !list.contains("zorp's") && list.hides("zorp's") && list.hides("l'été"))
            #expect(!list.hides("zorps") && !list.hides(""))
            #expect(list.size == 2)
        }
        #expect(try BlockList(json: BlockList().json(), "it").size == 0)
        #expect(!String(decoding: blocked.json(), as: UTF8.self).contains("zorp"))
    }
}
