import Foundation

/// The repository that these tests lie in.
let repository: String = {
    var folder = URL(fileURLWithPath: #filePath)
    repeat {
        folder.deleteLastPathComponent()
    } while folder.path != "/"
        && !FileManager.default.fileExists(atPath: folder.appendingPathComponent("conformance").path)
    return folder.path
}()

/// Bundles that Python exported, and the states that it ended with: `python android/desktop.py` makes them. Tests that need them
/// are left out where they are not.
let bundles = ProcessInfo.processInfo.environment["PFL_BUNDLES"] ?? "\(repository)/android/target/bundles"
