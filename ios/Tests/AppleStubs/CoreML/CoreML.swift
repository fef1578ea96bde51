// A stand-in for tests, not Apple's framework: see the README beside it.
import Foundation

public enum MLComputeUnits: Int, Sendable {
    case cpuOnly = 0
    case cpuAndGPU = 1
    case all = 2
    case cpuAndNeuralEngine = 3
}

public class MLModelConfiguration {
    public init() {}
    public var computeUnits: MLComputeUnits = .all
    public var functionName: String?
}

public enum MLMultiArrayDataType: Int, Sendable {
    case double = 0x10040
    case float32 = 0x10020
    case float16 = 0x10010
    case int32 = 0x20020
}

public class MLMultiArray {
    public let dataType: MLMultiArrayDataType
    public let shape: [NSNumber]
    public let strides: [NSNumber]
    private let start: UnsafeMutableRawPointer
    private let deallocator: ((UnsafeMutableRawPointer) -> Void)?

    public init(
        dataPointer: UnsafeMutableRawPointer, shape: [NSNumber], dataType: MLMultiArrayDataType, strides: [NSNumber],
        deallocator: ((UnsafeMutableRawPointer) -> Void)? = nil
    ) throws {
        start = dataPointer
        self.shape = shape
        self.dataType = dataType
        self.strides = strides
        self.deallocator = deallocator
    }

    deinit { deallocator?(start) }

    public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try body(UnsafeRawBufferPointer(start: start, count: byteCount))
    }

    public func withUnsafeMutableBytes<R>(_ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> R) rethrows -> R {
        try body(UnsafeMutableRawBufferPointer(start: start, count: byteCount), strides.map(\.intValue))
    }

    private var byteCount: Int {
        let last = zip(shape, strides).reduce(0) { $0 + ($1.0.intValue - 1) * $1.1.intValue }
        return (last + 1) * (dataType.rawValue & 0xff) / 8
    }
}

public class MLFeatureValue {
    public let multiArrayValue: MLMultiArray?
    public init(multiArray value: MLMultiArray) { multiArrayValue = value }
}

public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public class MLDictionaryFeatureProvider: MLFeatureProvider {
    private let values: [String: MLFeatureValue]
    public init(dictionary: [String: Any]) throws { values = dictionary.compactMapValues { $0 as? MLFeatureValue } }
    public var featureNames: Set<String> { Set(values.keys) }
    public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

public class MLPredictionOptions {
    public init() {}
    public var outputBackings: [String: Any] = [:]
}

public class MLModel {
    private let program: StubProgram

    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws {
        program = try StubCoreML.shared.load(url, configuration)
    }

    public func prediction(from input: any MLFeatureProvider, options: MLPredictionOptions) throws
        -> any MLFeatureProvider
    {
        try program(input, options)
    }

    /// A copy of the package at a temporary place.
    public class func compileModel(at modelURL: URL) throws -> URL {
        try StubCoreML.shared.compile(modelURL)
    }
}

/// What a stub model computes.
public typealias StubProgram = (any MLFeatureProvider, MLPredictionOptions) throws -> any MLFeatureProvider

/// What the test says that Core ML does. Not part of Apple's framework.
public final class StubCoreML: @unchecked Sendable {
    public static let shared = StubCoreML()

    private let lock = NSLock()
    private var loading: (URL, MLModelConfiguration) throws -> StubProgram = { _, _ in
        throw StubError("nothing to load")
    }
    private var count = 0

    /// How often something was compiled.
    public var compiled: Int { lock.withLock { count } }

    /// From now on models are loaded so.
    public func loads(_ load: @escaping (URL, MLModelConfiguration) throws -> StubProgram) {
        lock.withLock {
            loading = load
            count = 0
        }
    }

    func load(_ url: URL, _ configuration: MLModelConfiguration) throws -> StubProgram {
        try lock.withLock { loading }(url, configuration)
    }

    func compile(_ package: URL) throws -> URL {
        lock.withLock { count += 1 }
        let place = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID().uuidString).mlmodelc")
        try FileManager.default.copyItem(at: package, to: place)
        return place
    }
}

/// An error as the framework might give one.
public struct StubError: Error, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}
