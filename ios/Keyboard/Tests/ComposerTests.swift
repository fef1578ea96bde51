import PFLKeyboard
import Testing

@Suite struct ComposerTests {
    @Test(
        "the word before the cursor",
        arguments: [
            ("", ""), ("see ", ""), ("see yo", "yo"), ("I don't", "don't"), ("I don\u{2019}", ""),
            ("he said 'he", "he"),
            ("über grö", "grö"), ("привет ми", "ми"), ("नमस्ते दुनि", "दुनि"), ("می\u{200C}خو", "می\u{200C}خو"), ("我在这", ""),
            ("hi 👍", ""), ("hi 👍🏽ok", "ok"), ("x,y", "y"),
        ])
    func words(_ before: String, _ word: String) {
        let asked = Composer.request(before)
        #expect(asked.prefix == word)
        #expect(asked.context + asked.prefix == before)
    }

    @Test("completions begin with what is typed, whatever its capitals and apostrophes")
    func completions() {
        let words = ["the", "<unk>", ",", "gym", "don't", "Them", "👍", "the"]
        #expect(Composer.completions(words, "", 3) == ["the", "gym", "don't"])
        #expect(Composer.completions(words, "T", 3) == ["the", "Them"])
        #expect(Composer.completions(words, "the", 3) == ["Them"])
        #expect(Composer.completions(words, "Don\u{2019}", 3) == ["don't"])
        #expect(Composer.completions(["!", "👍", "1"], "", 3) == ["👍"])
    }

    @Test("a suggestion has the capitals of what is typed")
    func spelled() {
        #expect(Composer.spelled("gym", prefix: "g", capital: false) == "gym")
        #expect(Composer.spelled("gym", prefix: "G", capital: false) == "Gym")
        #expect(Composer.spelled("gym", prefix: "GY", capital: false) == "GYM")
        #expect(Composer.spelled("gym", prefix: "", capital: true) == "Gym")
        #expect(Composer.spelled("gym", prefix: "", capital: false) == "gym")
        #expect(Composer.spelled("i'm", prefix: "", capital: false) == "I'm")
    }

    @Test("choosing replaces the word, or follows a space")
    func choose() {
        #expect(Composer.choose("at the gy", "gym") == Edit(2, "gym "))
        #expect(Composer.choose("at the ", "gym") == Edit(0, "gym "))
        #expect(Composer.choose("at the,", "gym") == Edit(0, " gym "))
        #expect(Composer.choose("(", "gym") == Edit(0, "gym "))
        #expect(Composer.choose("", "gym") == Edit(0, "gym "))
        #expect(Composer.choose("我在这", "里") == Edit(0, "里"), "no spaces in Chinese")
        #expect(Composer.choose("ok 👍", "👍") == Edit(0, " 👍 "))
        #expect(Composer.choose("cafe\u{301}", "cafés") == Edit(4, "cafés "), "a letter with its mark is one character")
    }

    @Test("punctuation takes the space of a suggestion, and not the user's")
    func punctuation() {
        #expect(Composer.type("gym ", ",", ownSpace: true) == Edit(1, ", "))
        #expect(Composer.type("gym ", ")", ownSpace: true) == Edit(1, ")"))
        #expect(Composer.type("gym ", ",", ownSpace: false) == Edit(0, ","))
        #expect(Composer.type("gym ", "(", ownSpace: true) == Edit(0, "("))
    }

    @Test("two spaces end a sentence, three do not")
    func space() {
        #expect(Composer.space("gym ") == Edit(1, ". "))
        for before in ["gym", "gym. ", "  ", " ", ""] { #expect(Composer.space(before) == Edit(0, " "), "'\(before)'") }
    }

    @Test("sentences end in every script")
    func ends() {
        for end in ["a.", "a? ", "a…", "a。", "a！", "a\n"] { #expect(Composer.endsSentence(end), "\(end)") }
        for no in ["", " ", "a", "a,", "👍"] { #expect(!Composer.endsSentence(no), "\(no)") }
    }
}
