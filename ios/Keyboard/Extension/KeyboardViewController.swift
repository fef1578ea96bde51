import PFLKeyboard
import PFLMobile
import UIKit

/// The keyboard: keys, three suggestions of the personal model, and learning from what is typed.
final class KeyboardViewController: UIInputViewController {
    private static let shown = 3
    /// Of so many words some are punctuation.
    private static let choice = 12

    private var assistant: Assistant?
    private var asked: Task<Void, Never>?
    private lazy var typist = Typist { [weak self] in self?.learn($0) }
    private let keys = KeysView()
    private let strip = SuggestionStrip()
    private var field = Field.unknown

    override func viewDidLoad() {
        super.viewDidLoad()
        let column = UIStackView(arrangedSubviews: [strip, keys])
        column.axis = .vertical
        column.translatesAutoresizingMaskIntoConstraints = false
        view.addSubview(column)
        NSLayoutConstraint.activate([
            column.topAnchor.constraint(equalTo: view.topAnchor), column.bottomAnchor.constraint(equalTo: view.bottomAnchor),
            column.leadingAnchor.constraint(equalTo: view.leadingAnchor),
            column.trailingAnchor.constraint(equalTo: view.trailingAnchor), strip.heightAnchor.constraint(equalToConstant: 40),
            keys.heightAnchor.constraint(equalToConstant: 216),
        ])
        keys.onKey = { [weak self] in self?.press($0) }
        keys.onNextKeyboard = { [weak self] in self?.advanceToNextInputMode() }
        strip.onWord = { [weak self] in self?.choose($0) }
    }

    override func viewWillAppear(_ animated: Bool) {
        super.viewWillAppear(animated)
        // without Full Access the shared folder cannot be written
        let shared = hasFullAccess
        assistant = Assistant(open: { try await Shared.open(shared: shared) })
        field = now()
        typist.start(field, ProxyEditor(textDocumentProxy))
        show()
        suggest()
    }

    override func viewWillDisappear(_ animated: Bool) {
        asked?.cancel()
        typist.finish()
        field = .unknown
        let leaving = assistant
        assistant = nil
        // the lock of the shared folder must not outlive the screen: iOS would end the keyboard
        Task { await leaving?.close() }
        super.viewWillDisappear(animated)
    }

    override func textDidChange(_ textInput: (any UITextInput)?) {
        super.textDidChange(textInput)
        let field = now()
        if field != self.field {
            self.field = field
            typist.change(field)
        }
        typist.moved(ProxyEditor(textDocumentProxy))
        show()
        suggest()
    }

    private func now() -> Field {
        var field = Field.of(Traits(textDocumentProxy), incognito: Shared.incognito)
        if !hasFullAccess { field.learns = false }
        return field
    }

    private func press(_ action: KeyAction) {
        typist.press(action, ProxyEditor(textDocumentProxy), now: ProcessInfo.processInfo.systemUptime)
        show()
        suggest()
    }

    private func choose(_ word: String) {
        typist.choose(word, ProxyEditor(textDocumentProxy))
        show()
        suggest()
    }

    private func show() {
        keys.show(
            KeyLayout.rows(typist.page, beside: typist.beside), shift: typist.shift, nextKeyboard: needsInputModeSwitchKey)
    }

    /// Asks for words; a question that is overtaken by the next is dropped.
    private func suggest() {
        asked?.cancel()
        let note = field.learns ? "" : hasFullAccess ? "nothing is learned in this field" : "learning needs Full Access"
        guard let request = typist.request(ProxyEditor(textDocumentProxy)), let assistant else {
            strip.show([], note)
            return
        }
        asked = Task { [weak self] in
            // without a model the keys still type
            let words = (try? await assistant.words(request, count: Self.choice)) ?? []
            guard let self, !Task.isCancelled else { return }
            let shown = Composer.completions(words, request.prefix, Self.shown).map { self.typist.spelled($0, request) }
            self.strip.show(shown, note)
        }
    }

    private func learn(_ text: String) {
        guard hasFullAccess, let assistant else { return }
        // not cut short when the keyboard goes away: closing waits for it
        Task { try? await assistant.remember(text) }
    }
}

/// The text of the app, as far as it shows it to keyboards.
@MainActor private struct ProxyEditor: Editor {
    private let proxy: any UITextDocumentProxy

    init(_ proxy: any UITextDocumentProxy) {
        self.proxy = proxy
    }

    var before: String { proxy.documentContextBeforeInput ?? "" }
    var after: String { proxy.documentContextAfterInput ?? "" }
    var hasSelection: Bool { proxy.selectedText?.isEmpty == false }

    var wantsCapital: Bool {
        switch proxy.autocapitalizationType ?? .sentences {
        case .none: false
        case .allCharacters: true
        case .words: before.last?.isWhitespace ?? true
        default: before.isEmpty || Composer.endsSentence(before)
        }
    }

    func edit(_ edit: Edit) {
        for _ in 0..<edit.delete { proxy.deleteBackward() }
        if !edit.insert.isEmpty { proxy.insertText(edit.insert) }
    }
}

extension Traits {
    @MainActor fileprivate init(_ proxy: any UITextDocumentProxy) {
        let keys: Traits.Keys =
            switch proxy.keyboardType ?? .default {
            case .default, .asciiCapable, .twitter: .text
            case .emailAddress: .address
            case .URL: .url
            case .webSearch: .search
            default: .digits
            }
        self.init(
            keys: keys, isSecret: proxy.isSecureTextEntry ?? false, content: proxy.textContentType??.rawValue,
            noCorrection: proxy.autocorrectionType == .no)
    }
}
