import Foundation

/// A new folder of its own, removed when nobody holds it.
final class TemporaryFolder: Sendable {
    let path: String

    init() throws {
        path = NSTemporaryDirectory() + "pfl-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit {
        try? FileManager.default.removeItem(atPath: path)
    }

    /// Where something with this name lies in it, or will.
    func callAsFunction(_ name: String) -> String { "\(path)/\(name)" }

    /// The same.
    func url(_ name: String) -> URL { URL(fileURLWithPath: "\(path)/\(name)") }
}
