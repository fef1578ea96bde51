// A stand-in for tests, not Apple's framework: see the README beside it.
@_exported import Foundation

extension ProcessInfo {
    public enum ThermalState: Int, Sendable {
        case nominal, fair, serious, critical
    }

    public var thermalState: ThermalState { .nominal }
    public var isLowPowerModeEnabled: Bool { false }
}

extension URLResourceValues {
    public var volumeAvailableCapacityForImportantUsage: Int64? { nil }
}

extension URLResourceKey {
    public static let volumeAvailableCapacityForImportantUsageKey = URLResourceKey(rawValue: "")
}

@MainActor public class UIDevice {
    public enum BatteryState: Int, Sendable {
        case unknown, unplugged, charging, full
    }

    public class var current: UIDevice { UIDevice() }
    public var isBatteryMonitoringEnabled = false
    public var batteryState: BatteryState { .unknown }
    public var batteryLevel: Float { -1 }
}

@MainActor public class UIApplication {
    public enum State: Int, Sendable {
        case active, inactive, background
    }

    public class var shared: UIApplication { UIApplication() }
    public var applicationState: State { .active }
}

@MainActor open class UIResponder {
    public init() {}
}

@MainActor public class NSLayoutConstraint {
    public class func activate(_ constraints: [NSLayoutConstraint]) {}
}

@MainActor public class NSLayoutAnchor<AnchorType> {
    public func constraint(equalTo anchor: NSLayoutAnchor<AnchorType>) -> NSLayoutConstraint { NSLayoutConstraint() }
}

public class NSLayoutXAxisAnchor: NSLayoutAnchor<NSLayoutXAxisAnchor> {}
public class NSLayoutYAxisAnchor: NSLayoutAnchor<NSLayoutYAxisAnchor> {}

public class NSLayoutDimension: NSLayoutAnchor<NSLayoutDimension> {
    public func constraint(equalToConstant c: CGFloat) -> NSLayoutConstraint { NSLayoutConstraint() }
    public func constraint(equalTo anchor: NSLayoutDimension, multiplier m: CGFloat) -> NSLayoutConstraint {
        NSLayoutConstraint()
    }
}

@MainActor open class UIView: UIResponder {
    public init(frame: CGRect) {}
    public override convenience init() { self.init(frame: .zero) }
    public var translatesAutoresizingMaskIntoConstraints = true
    public var accessibilityLabel: String?
    public func addSubview(_ view: UIView) {}
    public func removeFromSuperview() {}
    public var topAnchor: NSLayoutYAxisAnchor { NSLayoutYAxisAnchor() }
    public var bottomAnchor: NSLayoutYAxisAnchor { NSLayoutYAxisAnchor() }
    public var leadingAnchor: NSLayoutXAxisAnchor { NSLayoutXAxisAnchor() }
    public var trailingAnchor: NSLayoutXAxisAnchor { NSLayoutXAxisAnchor() }
    public var centerXAnchor: NSLayoutXAxisAnchor { NSLayoutXAxisAnchor() }
    public var widthAnchor: NSLayoutDimension { NSLayoutDimension() }
    public var heightAnchor: NSLayoutDimension { NSLayoutDimension() }
}

public enum NSTextAlignment: Int, Sendable { case left, center, right }

public class UILabel: UIView {
    public var text: String?
    public var textAlignment: NSTextAlignment = .left
}

public class UIStackView: UIView {
    public enum Distribution: Int, Sendable { case fill, fillEqually }
    public convenience init(arrangedSubviews views: [UIView]) { self.init(frame: .zero) }
    public var axis: NSLayoutConstraint.Axis = .horizontal
    public var distribution: Distribution = .fill
    public var spacing: CGFloat = 0
    public func addArrangedSubview(_ view: UIView) {}
}

extension NSLayoutConstraint {
    public enum Axis: Int, Sendable { case horizontal, vertical }
}

@MainActor public class UIAction {
    public init(handler: @escaping (UIAction) -> Void) {}
}

public class UIControl: UIView {
    public struct Event: Sendable {
        public static let touchUpInside = Event()
    }

    public struct State: Sendable {
        public static let normal = State()
    }

    public func addAction(_ action: UIAction, for controlEvents: UIControl.Event) {}
}

public class UIButton: UIControl {
    public enum ButtonType: Int, Sendable { case custom, system }
    public convenience init(type buttonType: ButtonType) { self.init(frame: .zero) }
    public func setTitle(_ title: String?, for state: UIControl.State) {}
}

public enum UIKeyboardType: Int, Sendable {
    case `default`, asciiCapable, numbersAndPunctuation, URL, numberPad, phonePad, namePhonePad, emailAddress,
        decimalPad, twitter,
        webSearch, asciiCapableNumberPad
}

public enum UITextAutocapitalizationType: Int, Sendable { case none, words, sentences, allCharacters }
public enum UITextAutocorrectionType: Int, Sendable { case `default`, no, yes }

public struct UITextContentType: RawRepresentable, Hashable, Sendable {
    public let rawValue: String
    public init(rawValue: String) { self.rawValue = rawValue }
}

/// Its members are optional requirements of an Objective-C protocol, hence the second question mark.
@MainActor public protocol UITextInputTraits {
    var autocapitalizationType: UITextAutocapitalizationType? { get }
    var autocorrectionType: UITextAutocorrectionType? { get }
    var keyboardType: UIKeyboardType? { get }
    var isSecureTextEntry: Bool? { get }
    var textContentType: UITextContentType?? { get }
}

@MainActor public protocol UIKeyInput: UITextInputTraits {
    var hasText: Bool { get }
    func insertText(_ text: String)
    func deleteBackward()
}

@MainActor public protocol UITextInput: UIKeyInput {}

@MainActor public protocol UITextDocumentProxy: UIKeyInput {
    var documentContextBeforeInput: String? { get }
    var documentContextAfterInput: String? { get }
    var selectedText: String? { get }
}

@MainActor open class UIViewController: UIResponder {
    public override init() {}
    open var view: UIView! = UIView()
    open func viewDidLoad() {}
    open func viewWillAppear(_ animated: Bool) {}
    open func viewWillDisappear(_ animated: Bool) {}
}

@MainActor open class UIInputViewController: UIViewController {
    open var textDocumentProxy: any UITextDocumentProxy { fatalError("a stand-in") }
    open var hasFullAccess: Bool { false }
    open var needsInputModeSwitchKey: Bool { false }
    open func advanceToNextInputMode() {}
    open func textDidChange(_ textInput: (any UITextInput)?) {}
}
