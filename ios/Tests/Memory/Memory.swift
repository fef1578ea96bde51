import Foundation
import PFLMobile
import PFLOnnxRuntime

/// Says how much memory a process takes that does what a keyboard does: opens a model, keeps sentences, suggests words. A keyboard on
/// iOS is ended above about 60 MB.
///
/// Argument: a bundle of texts.
@main enum Main {
    static func main() async throws {
        guard CommandLine.arguments.count == 2 else { fatalError("give a bundle") }
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("pfl-memory-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: folder) }
        say("a Swift process with ONNX Runtime's libraries")
        let bundle = URL(fileURLWithPath: CommandLine.arguments[1])
        let model = try await PersonalModel.open(
            bundle: bundle, folder: folder, engines: [OnnxRuntimeEngine()], trusted: true)
        say("the model open")
        for number in 0..<200 {
            try await model.remember("see you at the gym on day \(["one", "two", "three"][number % 3])")
        }
        say("200 sentences kept")
        _ = try await model.suggest("see you at the")
        say("the engine loaded, one suggestion")
        for _ in 0..<200 {
            _ = try await model.suggest("see you at the")
            _ = try await model.complete("see you at the", prefix: "g")
        }
        say("200 suggestions and completions more")
        try await model.close()
    }

    /// Megabytes that are in memory now, and the most there were; as Linux says it.
    private static func say(_ what: String) {
        let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
        func megabytes(_ name: String) -> String {
            let line = status.split(separator: "\n").first { $0.hasPrefix("\(name):") }
            let kilobytes = line?.split(separator: " ").dropLast().last.flatMap { Double($0.filter(\.isNumber)) }
            return kilobytes.map { String(format: "%.1f", $0 / 1024) } ?? "?"
        }
        print(
            "\(megabytes("VmRSS")) MB (at most \(megabytes("VmHWM"))), of which files \(megabytes("RssFile")): \(what)")
    }
}
