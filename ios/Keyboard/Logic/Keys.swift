/// What a key does.
public enum KeyAction: Sendable, Equatable {
    /// Types a character as it stands on the key; a letter follows shift.
    case type(String)
    /// Shows other keys.
    case show(Page)
    case shift, backspace, space, enter
}

/// A set of keys that is shown at a time.
public enum Page: Sendable {
    case letters, symbols, moreSymbols
}

/// A key.
public struct Key: Sendable, Equatable {
    public let action: KeyAction
    /// Its width, in widths of a letter.
    public var weight = 1.0
}

/// The keys of a page, row by row; a row is `width` wide, or lies in the middle.
public enum KeyLayout {
    /// The widest row, in widths of a letter.
    public static let width = 10.0

    /// The rows of a page.
    ///
    /// - Parameter beside: the character left of the space bar, which the kind of the field decides
    public static func rows(_ page: Page, beside: String = ",") -> [[Key]] {
        let upper: [[Key]] =
            switch page {
            case .letters: [types("qwertyuiop"), types("asdfghjkl"), third(.shift, "zxcvbnm")]
            case .symbols: [types("1234567890"), types("@#€_&-+()/"), third(.show(.moreSymbols), "*\"':;!?")]
            case .moreSymbols: [types("~`|•√π÷×§∆"), types("£$¥^°={}\\%"), third(.show(.symbols), "©®™✓[]<")]
            }
        let bottom = [
            Key(action: .show(page == .letters ? .symbols : .letters), weight: 1.5), Key(action: .type(beside)),
            Key(action: .space, weight: 5), Key(action: .type(".")), Key(action: .enter, weight: 1.5),
        ]
        return upper + [bottom]
    }

    private static func types(_ characters: String) -> [Key] { characters.map { Key(action: .type(String($0))) } }

    private static func third(_ first: KeyAction, _ characters: String) -> [Key] {
        [Key(action: first, weight: 1.5)] + types(characters) + [Key(action: .backspace, weight: 1.5)]
    }
}

/// Whether letters are capitals.
public enum Shift: Sendable {
    case off
    /// The next letter only.
    case once
    /// Until it is pressed.
    case locked
}

/// Follows the shift key; a second press soon after the first locks it.
public struct ShiftKey: Sendable {
    private static let doublePress = 0.4
    public private(set) var state = Shift.off
    /// Whether the field, and not the user, asked for a capital.
    private var automatic = false
    private var pressed: Double?

    public init() {}

    /// - Parameter now: seconds, of a clock that does not go back
    public mutating func press(_ now: Double) {
        if state == .locked {
            state = .off
        } else if let pressed, now - pressed <= Self.doublePress {
            state = .locked
        } else {
            state = state == .once ? .off : .once
        }
        pressed = state == .off ? nil : now
        automatic = false
    }

    /// A letter was typed.
    public mutating func typed() {
        if state == .once { state = .off }
        pressed = nil
    }

    /// The cursor stands where the field wants a capital, or does not. What the user chose stays.
    public mutating func fieldWants(_ capital: Bool) {
        if capital && state == .off && pressed == nil {
            state = .once
            automatic = true
        } else if !capital && state == .once && automatic {
            state = .off
        }
    }
}
