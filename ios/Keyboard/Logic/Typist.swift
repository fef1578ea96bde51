/// The text that is typed into.
@MainActor public protocol Editor {
    /// What the app tells of the text before the cursor.
    var before: String { get }
    /// Of the text behind it.
    var after: String { get }
    /// Whether text is selected, which the next character or backspace replaces.
    var hasSelection: Bool { get }
    /// Whether the field wants a capital here.
    var wantsCapital: Bool { get }
    /// Removes characters before the cursor and puts a text there, or in the place of the selection.
    func edit(_ edit: Edit)
}

/// What the keyboard does with its keys, apart from drawing and from UIKit.
@MainActor public final class Typist {
    private let learn: (String) -> Void
    private var shiftKey = ShiftKey()
    private var collector = SentenceCollector()
    private var place = Field.unknown
    private var ownSpace = false

    /// The keys to show.
    public private(set) var page = Page.letters
    public var shift: Shift { shiftKey.state }

    /// The character left of the space bar.
    public var beside: String {
        switch place.kind {
        case .address: "@"
        case .url: "/"
        default: ","
        }
    }

    /// - Parameter learn: takes what may be learned
    public init(learn: @escaping (String) -> Void) {
        self.learn = learn
    }

    /// Begins in a field.
    public func start(_ field: Field, _ editor: any Editor) {
        hand(on: collector.close())
        place = field
        ownSpace = false
        shiftKey = ShiftKey()
        page = field.kind == .digits ? .symbols : .letters
        shiftKey.fieldWants(editor.wantsCapital)
    }

    /// The field may do other things now: the user asked for incognito, or ended it. What was typed until now follows the stricter.
    public func change(_ field: Field) {
        if !field.learns { collector.drop() }
        place = field
    }

    /// - Parameter now: seconds, of a clock that does not go back
    public func press(_ action: KeyAction, _ editor: any Editor, now: Double) {
        switch action {
        case .show(let page): self.page = page
        case .shift: shiftKey.press(now)
        case .backspace: backspace(editor)
        case .space: space(editor)
        case .enter: enter(editor)
        case .type(let text): type(shift == .off ? text : text.uppercased(), editor)
        }
        if action != .shift { shiftKey.fieldWants(editor.wantsCapital) }
    }

    /// A suggestion was chosen.
    public func choose(_ word: String, _ editor: any Editor) {
        apply(Composer.choose(editor.before, word), editor)
        ownSpace = editor.before.hasSuffix(" ")
        shiftKey.typed()
        shiftKey.fieldWants(editor.wantsCapital)
    }

    /// The cursor or the text changed, perhaps by ourselves.
    public func moved(_ editor: any Editor) {
        if !editor.before.hasSuffix(" ") { ownSpace = false }
        hand(on: collector.moved(editor.before, editor.after))
        shiftKey.fieldWants(editor.wantsCapital)
    }

    /// The field is left.
    public func finish() {
        hand(on: collector.close())
        place = .unknown
    }

    /// What to ask the model; nil where nothing is suggested.
    public func request(_ editor: any Editor) -> Request? {
        place.suggests && !editor.hasSelection ? Composer.request(editor.before) : nil
    }

    /// How a suggestion is shown.
    public func spelled(_ word: String, _ request: Request) -> String {
        shift == .locked ? word.uppercased() : Composer.spelled(word, prefix: request.prefix, capital: shift == .once)
    }

    private func hand(on sentences: [String]) {
        for sentence in sentences { LearningFilter.parts(sentence).forEach(learn) }
    }

    private func type(_ text: String, _ editor: any Editor) {
        let edit = Composer.type(editor.before, text, ownSpace: ownSpace)
        apply(edit, editor)
        ownSpace = edit.delete > 0 && edit.insert.hasSuffix(" ")
        shiftKey.typed()
    }

    private func space(_ editor: any Editor) {
        if ownSpace && editor.before.hasSuffix(" ") {
            // the space is there already; a second press is the user's own
            ownSpace = false
        } else {
            apply(place.suggests ? Composer.space(editor.before) : Edit(0, " "), editor)
        }
        if page != .letters && place.kind != .digits { page = .letters }
    }

    private func backspace(_ editor: any Editor) {
        ownSpace = false
        if editor.hasSelection {
            hand(on: collector.close())
            editor.edit(Edit(1, ""))
            return
        }
        editor.edit(Edit(1, ""))
        collector.deleted(1)
    }

    private func enter(_ editor: any Editor) {
        ownSpace = false
        hand(on: collector.close())
        editor.edit(Edit(0, "\n"))
    }

    private func apply(_ edit: Edit, _ editor: any Editor) {
        let before = editor.before
        if editor.hasSelection { hand(on: collector.close()) }
        editor.edit(edit)
        guard place.learns else { return }
        collector.deleted(edit.delete)
        hand(on: collector.typed(String(before.dropLast(edit.delete)), edit.insert))
    }
}
