import PFLKeyboard
import Testing

@MainActor final class Page1: Editor {
    var before = ""
    var after = ""
    var hasSelection = false
    var wantsCapital: Bool { before.isEmpty || Composer.endsSentence(before) }

    func edit(_ edit: Edit) {
        before = String(before.dropLast(edit.delete)) + edit.insert
        hasSelection = false
    }
}

@Suite @MainActor struct TypistTests {
    private final class Learned { var texts: [String] = [] }
    private let page = Page1()
    private let learned = Learned()
    private let typist: Typist

    init() {
        let learned = learned
        typist = Typist { learned.texts.append($0) }
        typist.start(Field.of(Traits(), incognito: false), page)
    }

    private func type(_ text: String) {
        for letter in text { typist.press(letter == " " ? .space : .type(String(letter)), page, now: 0) }
    }

    @Test("a sentence begins with a capital, and is learned when it ends")
    func sentence() {
        type("see you at the gym. ok")
        #expect(page.before == "See you at the gym. Ok")
        #expect(learned.texts == ["See you at the gym."])
    }

    @Test("a chosen word takes the place of what is typed of it, and punctuation its space")
    func choose() {
        type("at the gy")
        typist.choose("gym", page)
        #expect(page.before == "At the gym ")
        type(",")
        #expect(page.before == "At the gym, ")
        type(" so")
        #expect(page.before == "At the gym, so", "the space is there already")
        typist.finish()
        #expect(learned.texts == ["At the gym, so"])
    }

    @Test("in a field that turns secret nothing of what was typed is learned")
    func secret() {
        type("my word is")
        typist.change(Field.of(Traits(isSecret: true), incognito: false))
        type(" swordfish please")
        typist.finish()
        #expect(learned.texts == [])
        #expect(typist.request(page) == nil)
    }

    @Test("backspace takes what a reader calls one character, and a selection is replaced")
    func backspace() {
        type("hi ")
        typist.press(.type("👨‍👩‍👧‍👦"), page, now: 0)
        typist.press(.backspace, page, now: 0)
        #expect(page.before == "Hi ")
        page.hasSelection = true
        #expect(typist.request(page) == nil)
        typist.press(.type("x"), page, now: 0)
        #expect(learned.texts == [])
    }

    @Test("shift locks at a second press, and follows the field otherwise")
    func shift() {
        #expect(typist.shift == .once)
        type("a")
        #expect(typist.shift == .off)
        typist.press(.shift, page, now: 1)
        typist.press(.shift, page, now: 1.2)
        #expect(typist.shift == .locked)
        type("bc")
        #expect(page.before == "ABC")
        #expect(typist.spelled("gym", Request(context: "", prefix: "g")) == "GYM")
        typist.press(.shift, page, now: 9)
        #expect(typist.shift == .off)
    }

    @Test("rows are as wide as the keyboard at most")
    func rows() {
        for page in [Page.letters, .symbols, .moreSymbols] {
            for row in KeyLayout.rows(page) { #expect(row.reduce(0) { $0 + $1.weight } <= KeyLayout.width) }
        }
        typist.start(Field.of(Traits(keys: .address), incognito: false), page)
        #expect(typist.beside == "@")
        typist.start(Field.of(Traits(keys: .digits), incognito: false), page)
        #expect(typist.page == .symbols)
    }
}
