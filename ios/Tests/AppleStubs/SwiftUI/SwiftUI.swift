// A stand-in for tests, not Apple's framework: see the README beside it.
@_exported import Foundation

@MainActor @preconcurrency public protocol View {
    associatedtype Body: View
    @ViewBuilder @MainActor @preconcurrency var body: Body { get }
}

extension Never: View {
    public var body: Never { fatalError("a stand-in") }
}

@MainActor public protocol Primitive: View where Body == Never {}

extension Primitive {
    public var body: Never { fatalError("a stand-in") }
}

public struct EmptyView: Primitive { public init() {} }
public struct TupleView<T>: Primitive {}
public struct Conditional<A, B>: Primitive {}
extension Optional: View where Wrapped: View {
    public var body: Never { fatalError("a stand-in") }
}

@MainActor @resultBuilder public enum ViewBuilder {
    public static func buildExpression<Content: View>(_ content: Content) -> Content { content }
    public static func buildBlock() -> EmptyView { EmptyView() }
    public static func buildBlock<Content: View>(_ content: Content) -> Content { content }
    public static func buildBlock<each Content: View>(_ content: repeat each Content) -> TupleView<
        (repeat each Content)
    > {
        TupleView()
    }
    public static func buildIf<Content: View>(_ content: Content?) -> Content? { content }
    public static func buildEither<A: View, B: View>(first: A) -> Conditional<A, B> { Conditional() }
    public static func buildEither<A: View, B: View>(second: B) -> Conditional<A, B> { Conditional() }
}

public struct Text: Primitive {
    public init<S: StringProtocol>(_ content: S) {}
}

public struct Spacer: Primitive { public init() {} }

public struct HStack<Content: View>: Primitive {
    public init(@ViewBuilder content: () -> Content) {}
}

public struct List<Content: View>: Primitive {
    public init(@ViewBuilder content: () -> Content) {}
}

public struct NavigationStack<Content: View>: Primitive {
    public init(@ViewBuilder root: () -> Content) {}
}

public struct Section<Content: View>: Primitive {
    public init<S: StringProtocol>(_ title: S, @ViewBuilder content: () -> Content) {}
}

public struct ForEach<Data: RandomAccessCollection, ID: Hashable, Content: View>: Primitive {
    public init(_ data: Data, id: KeyPath<Data.Element, ID>, @ViewBuilder content: @escaping (Data.Element) -> Content)
    {}
}

public struct ButtonRole: Sendable {
    public static let destructive = ButtonRole()
}

public struct Button: Primitive {
    public init<S: StringProtocol>(_ title: S, action: @escaping @MainActor () -> Void) {}
    public init<S: StringProtocol>(_ title: S, role: ButtonRole?, action: @escaping @MainActor () -> Void) {}
}

public struct Toggle: Primitive {
    public init<S: StringProtocol>(_ title: S, isOn: Binding<Bool>) {}
}

public struct Binding<Value> {
    public static func constant(_ value: Value) -> Binding<Value> { Binding() }
    private init() {}
    public var wrappedValue: Value {
        get { fatalError("a stand-in") }
        nonmutating set {}
    }
}

@MainActor @propertyWrapper public struct State<Value> {
    public init(wrappedValue value: Value) {}
    public var wrappedValue: Value {
        get { fatalError("a stand-in") }
        nonmutating set {}
    }
    public var projectedValue: Binding<Value> { fatalError("a stand-in") }
}

public enum ScenePhase: Sendable { case background, inactive, active }
public enum Visibility: Sendable { case automatic, visible, hidden }

public struct EnvironmentValues {
    public var scenePhase: ScenePhase { .active }
}

@MainActor @propertyWrapper public struct Environment<Value> {
    public init(_ keyPath: KeyPath<EnvironmentValues, Value>) {}
    public var wrappedValue: Value { fatalError("a stand-in") }
}

extension View {
    public func navigationTitle<S: StringProtocol>(_ title: S) -> some View { EmptyView() }
    public func privacySensitive(_ sensitive: Bool = true) -> some View { EmptyView() }
    public func disabled(_ disabled: Bool) -> some View { EmptyView() }
    public func accessibilityLabel<S: StringProtocol>(_ label: S) -> some View { EmptyView() }
    public func task(_ action: sending @escaping @isolated(any) () async -> Void) -> some View { EmptyView() }
    public func onChange<V: Equatable>(of value: V, _ action: @escaping (V, V) -> Void) -> some View { EmptyView() }
    public func confirmationDialog<S: StringProtocol, A: View>(
        _ title: S, isPresented: Binding<Bool>, titleVisibility: Visibility = .automatic, @ViewBuilder actions: () -> A
    ) -> some View { EmptyView() }
}

@MainActor @preconcurrency public protocol Scene {
    associatedtype Body: Scene
    @SceneBuilder @MainActor @preconcurrency var body: Body { get }
}

extension Never: Scene {}

@MainActor @resultBuilder public enum SceneBuilder {
    public static func buildExpression<Content: Scene>(_ content: Content) -> Content { content }
    public static func buildBlock<Content: Scene>(_ content: Content) -> Content { content }
}

public struct WindowGroup<Content: View>: Scene {
    public init(@ViewBuilder content: () -> Content) {}
    public var body: Never { fatalError("a stand-in") }
}

extension Scene {
    public func onChange<V: Equatable>(of value: V, _ action: @escaping (V, V) -> Void) -> some Scene {
        WindowGroup { EmptyView() }
    }
}

@MainActor @preconcurrency public protocol App {
    associatedtype Body: Scene
    @SceneBuilder @MainActor @preconcurrency var body: Body { get }
    @MainActor @preconcurrency init()
}

extension App {
    @MainActor @preconcurrency public static func main() {}
}
