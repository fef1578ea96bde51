import Testing

@testable import PFLKeyboard

@Suite struct LearningTests {
    @Test("learns where people write, and nowhere else")
    func fields() {
        #expect(Field.of(Traits(), incognito: false).learns)
        let never = [
            Traits(isSecret: true), Traits(keys: .digits), Traits(keys: .address), Traits(keys: .url),
            Traits(keys: .search),
            Traits(content: "password"), Traits(content: "oneTimeCode"), Traits(content: "name"),
            Traits(noCorrection: true),
        ]
        for traits in never { #expect(!Field.of(traits, incognito: false).learns, "\(traits)") }
        #expect(Field.of(Traits(), incognito: true) == Field(kind: .text, learns: false, suggests: true))
        #expect(!Field.of(Traits(isSecret: true), incognito: false).suggests)
        #expect(Field.of(Traits(keys: .search), incognito: false).suggests)
    }

    @Test("one-off strings are known")
    func oneOff() {
        let codes = [
            "12", "3.50", "room7", "٣", "½", "a@b.example", "@someone", "https://a.example/b", "www.example.org",
            "example.org,",
            "hunter2!", "aGhKxQ", "snake_case", "C:\\temp", "#tag", "xkcdqwrt", String(repeating: "a", count: 31),
            "50%", "²",
            "(B12)",
        ]
        for token in codes { #expect(LearningFilter.isOneOff(token), "\(token)") }
        let words = [
            "gym", "don't", "(hello)", "ok...", "Müller", "привет", "我们", "नमस्ते", "👍", "iPhone", "McDonald", ":)", "hm",
            "e.g.",
            "rhythm",
        ]
        for token in words { #expect(!LearningFilter.isOneOff(token), "\(token)") }
    }

    @Test("a text is cut where something is left out")
    func parts() {
        #expect(LearningFilter.parts("see you at 18:30 tomorrow evening") == ["see you at", "tomorrow evening"])
        #expect(LearningFilter.parts("write to me at ann@mail.example please") == ["write to me at"])
        for none in ["  ", "ok", "👍 👍"] { #expect(LearningFilter.parts(none) == []) }
        #expect(LearningFilter.parts("love you 👍🏽") == ["love you 👍🏽"])
    }

    private func type(_ text: String, _ collector: inout SentenceCollector) -> [String] {
        var before = ""
        var ended: [String] = []
        for letter in text {
            ended += collector.typed(before, String(letter))
            before.append(letter)
        }
        return ended
    }

    @Test("a sentence is learned when it ends")
    func sentences() {
        var collector = SentenceCollector()
        #expect(type("see you at 3.5 there. and", &collector) == ["see you at 3.5 there."])
        #expect(collector.close() == ["and"])
        #expect(type("我们走。好", &collector) == ["我们走。"])
    }

    @Test("what was deleted is not learned")
    func deleted() {
        var collector = SentenceCollector()
        _ = type("see your", &collector)
        collector.deleted(1)
        collector.deleted(0)
        #expect(collector.close() == ["see you"])
        collector.deleted(5)
        #expect(collector.close() == [])
    }

    @Test("only what was typed, without halves of words that stood there")
    func halves() {
        var collector = SentenceCollector()
        _ = collector.typed("hel", "lo my")
        _ = collector.typed("hello my", " frie")
        #expect(collector.close("nd") == ["my"])
    }

    @Test("the cursor elsewhere ends the sentence, our own edits do not")
    func moved() {
        var collector = SentenceCollector()
        _ = type("see you", &collector)
        #expect(collector.moved("they wrote this, see you", "") == [])
        #expect(collector.moved("you", "") == [], "an app may tell the end only")
        #expect(collector.moved("", "") == ["see you"])
    }
}
