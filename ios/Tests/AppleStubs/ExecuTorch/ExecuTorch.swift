// A stand-in for tests, not ExecuTorch's package: see the README beside it.
import Foundation

public enum DataType: Int8, Sendable {
    case byte = 0
    case char
    case short
    case int
    case long
    case half
    case float
    case double
    case bool = 11
}

public enum ShapeDynamism: UInt8, Sendable {
    case `static`
    case dynamicBound
    case dynamicUnbound
}

public enum ModuleLoadMode: Int, Sendable {
    case file = 0
    case mmap
    case mmapUseMlock
    case mmapUseMlockIgnoreErrors
}

public protocol ValueConvertible {
    func asValue() -> Value
}

public final class AnyTensor: ValueConvertible {
    public let shape: [Int]
    public let dataType: DataType
    private let pointer: UnsafeMutableRawPointer

    public init(
        bytesNoCopy pointer: UnsafeMutableRawPointer, shape: [Int], strides: [Int] = [], dimensionOrder: [Int] = [],
        dataType: DataType, shapeDynamism: ShapeDynamism = .dynamicBound
    ) {
        self.pointer = pointer
        self.shape = shape
        self.dataType = dataType
    }

    public var count: Int { shape.reduce(1, *) }

    public func bytes(_ handler: (UnsafeRawPointer, Int, DataType) -> Void) {
        handler(UnsafeRawPointer(pointer), count, dataType)
    }

    public func asValue() -> Value { Value(self) }
}

public final class Value {
    public let anyTensor: AnyTensor?
    public init(_ tensor: AnyTensor) { anyTensor = tensor }
    public init() { anyTensor = nil }
}

public class Module {
    private let path: String

    public init(filePath: String, loadMode: ModuleLoadMode) { path = filePath }

    public func load() throws {
        if !FileManager.default.fileExists(atPath: path) { throw StubError("no such file") }
    }

    public func methodNames() throws -> Set<String> { Set(StubExecuTorch.shared.all.keys) }

    public func execute(_ method: String, _ inputs: [any ValueConvertible]) throws -> [Value] {
        guard let found = StubExecuTorch.shared.all[method] else { throw StubError("no method \(method)") }
        return try found(inputs.compactMap { $0.asValue().anyTensor })
    }
}

/// What the test says that the methods compute. Not part of ExecuTorch.
public final class StubExecuTorch: @unchecked Sendable {
    public static let shared = StubExecuTorch()
    public typealias Method = ([AnyTensor]) throws -> [Value]
    private let lock = NSLock()
    private var methods: [String: Method] = [:]

    var all: [String: Method] { lock.withLock { methods } }

    /// From now on modules have these methods.
    public func has(_ methods: [String: Method]) {
        lock.withLock { self.methods = methods }
    }
}

/// An error as the runtime might give one.
public struct StubError: Error, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}
