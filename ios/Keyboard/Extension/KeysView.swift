import PFLKeyboard
import UIKit

/// The keys of a page, row by row.
final class KeysView: UIView {
    var onKey: (KeyAction) -> Void = { _ in }
    var onNextKeyboard: () -> Void = {}
    private var shown: UIStackView?
    private var rows: [[Key]] = []
    private var state: (Shift, Bool)?

    /// Shows keys; those that are shown already stay.
    func show(_ rows: [[Key]], shift: Shift, nextKeyboard: Bool) {
        if rows == self.rows, let state, state == (shift, nextKeyboard) { return }
        self.rows = rows
        state = (shift, nextKeyboard)
        shown?.removeFromSuperview()
        let column = UIStackView(arrangedSubviews: [])
        column.axis = .vertical
        column.distribution = .fillEqually
        column.spacing = 6
        column.translatesAutoresizingMaskIntoConstraints = false
        addSubview(column)
        NSLayoutConstraint.activate([
            column.topAnchor.constraint(equalTo: topAnchor), column.bottomAnchor.constraint(equalTo: bottomAnchor),
            column.leadingAnchor.constraint(equalTo: leadingAnchor), column.trailingAnchor.constraint(equalTo: trailingAnchor),
        ])
        shown = column
        for row in rows { add(row, shift, nextKeyboard && row == rows.last, to: column) }
    }

    private func add(_ keys: [Key], _ shift: Shift, _ nextKeyboard: Bool, to column: UIStackView) {
        let line = UIView()
        let row = UIStackView(arrangedSubviews: [])
        row.axis = .horizontal
        row.spacing = 4
        row.translatesAutoresizingMaskIntoConstraints = false
        line.addSubview(row)
        column.addArrangedSubview(line)
        var constraints = [
            row.topAnchor.constraint(equalTo: line.topAnchor), row.bottomAnchor.constraint(equalTo: line.bottomAnchor),
            row.centerXAnchor.constraint(equalTo: line.centerXAnchor),
        ]
        if nextKeyboard {
            let globe = button("🌐", "next keyboard") { [weak self] in self?.onNextKeyboard() }
            row.addArrangedSubview(globe)
            constraints.append(globe.widthAnchor.constraint(equalTo: line.widthAnchor, multiplier: 0.09))
        }
        for key in keys {
            let (label, spoken) = labels(key.action, shift)
            let made = button(label, spoken) { [weak self] in self?.onKey(key.action) }
            row.addArrangedSubview(made)
            // the globe takes its place from the space bar
            let weight = key.weight - (nextKeyboard && key.action == .space ? 1 : 0)
            let share = weight / KeyLayout.width - 0.01
            constraints.append(made.widthAnchor.constraint(equalTo: line.widthAnchor, multiplier: share))
        }
        NSLayoutConstraint.activate(constraints)
    }

    private func button(_ label: String, _ spoken: String, _ pressed: @escaping () -> Void) -> UIButton {
        let made = UIButton(type: .system)
        made.setTitle(label, for: .normal)
        made.accessibilityLabel = spoken
        made.addAction(UIAction { _ in pressed() }, for: .touchUpInside)
        return made
    }

    /// What stands on a key, and what a screen reader says.
    private func labels(_ action: KeyAction, _ shift: Shift) -> (String, String) {
        switch action {
        case .type(let text):
            let shown = shift == .off ? text : text.uppercased()
            return (shown, shown == text ? text : "capital \(text)")
        case .show(.letters): return ("ABC", "letters")
        case .show(.symbols): return ("123", "symbols")
        case .show(.moreSymbols): return ("#+=", "more symbols")
        case .shift:
            switch shift {
            case .off: return ("⇧", "shift")
            case .once: return ("⬆", "shift, on for one letter")
            case .locked: return ("⇪", "caps lock")
            }
        case .backspace: return ("⌫", "backspace")
        case .space: return ("space", "space")
        case .enter: return ("⏎", "new line")
        }
    }
}

/// Three words above the keys, or a note.
final class SuggestionStrip: UIView {
    var onWord: (String) -> Void = { _ in }
    private var shown: UIStackView?

    func show(_ words: [String], _ note: String) {
        shown?.removeFromSuperview()
        let row = UIStackView(arrangedSubviews: words.isEmpty ? [text(note)] : words.map(button))
        row.axis = .horizontal
        row.distribution = .fillEqually
        row.translatesAutoresizingMaskIntoConstraints = false
        addSubview(row)
        NSLayoutConstraint.activate([
            row.topAnchor.constraint(equalTo: topAnchor), row.bottomAnchor.constraint(equalTo: bottomAnchor),
            row.leadingAnchor.constraint(equalTo: leadingAnchor), row.trailingAnchor.constraint(equalTo: trailingAnchor),
        ])
        shown = row
    }

    private func text(_ note: String) -> UIView {
        let label = UILabel()
        label.text = note
        label.textAlignment = .center
        return label
    }

    private func button(_ word: String) -> UIView {
        let made = UIButton(type: .system)
        made.setTitle(word, for: .normal)
        made.accessibilityLabel = "suggestion \(word)"
        made.addAction(UIAction { [weak self] _ in self?.onWord(word) }, for: .touchUpInside)
        return made
    }
}
