import Foundation
import PFLMobile
import PFLOnnxRuntime

/// Says how much memory a process takes.
///
/// `pfl-memory BUNDLE`: one that does what a keyboard does: opens a model, keeps sentences, suggests words. A keyboard on iOS is ended
/// above about 60 MB.
///
/// `pfl-memory BUNDLE STEPS`: what loading the bundle's programs and so many training steps (`gradients` on its golden batch)
/// add to a process in which ONNX Runtime is loaded, beside what the manifest plans, as one line of JSON
/// (`bench/parts_memory.py`).
@main enum Main {
    static func main() async throws {
        let arguments = CommandLine.arguments.dropFirst()
        guard let bundle = arguments.first.map({ URL(fileURLWithPath: $0) }) else { fatalError("give a bundle") }
        guard arguments.count > 1 else { return try await keyboard(bundle) }
        guard arguments.count == 2, let steps = arguments.last.flatMap({ Int($0) }), steps > 0 else {
            fatalError("give a bundle, or a bundle and a number of steps")
        }
        try training(bundle, steps)
    }

    private static func keyboard(_ bundle: URL) async throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("pfl-memory-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: folder) }
        say("a Swift process with ONNX Runtime's libraries")
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

    private static func training(_ path: URL, _ count: Int) throws {
        let program = "gradients"
        let bundle = try ModelBundle.open(path)
        guard let inputs = try bundle.golden()[program]?.inputs else { fatalError("the bundle does not train") }
        let session = try openSession(bundle, engines: [OnnxRuntimeEngine()], trusted: true)  // loads no program yet
        var wall: [Double] = []
        var processor: [Double] = []
        let added = try watched(["RssAnon", "RssFile"]) {
            for _ in 0...count {
                let start = (seconds(CLOCK_MONOTONIC), seconds(CLOCK_THREAD_CPUTIME_ID))
                _ = try session.run(program, inputs)
                wall.append(seconds(CLOCK_MONOTONIC) - start.0)
                processor.append(seconds(CLOCK_THREAD_CPUTIME_ID) - start.1)
            }
        }
        try goldenCheck(bundle, session).require()  // what was measured is the right work
        let found: [String: Any] = [
            "added_anonymous": added[0], "added_mapped": added[1], "peak_resident": resident("VmHWM"),
            "step_ms": 1e3 * (wall.dropFirst().min() ?? 0),
            "step_processor_ms": 1e3 * (processor.dropFirst().min() ?? 0),
            "planned": bundle.manifest.engines[session.name]?.measured["planned_\(program)_bytes"] ?? NSNull(),
        ]
        let line = try JSONSerialization.data(withJSONObject: found, options: .sortedKeys)
        print(String(decoding: line, as: UTF8.self))
    }

    private static func seconds(_ clock: clockid_t) -> Double {
        var time = timespec()
        clock_gettime(clock, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }

    /// The most that some work adds to memory of these kinds, in bytes, seen every 2 ms.
    private static func watched(_ kinds: [String], _ work: () throws -> Void) throws -> [Int] {
        let before = kinds.map(resident)
        let seen = Seen(before)
        let ended = DispatchSemaphore(value: 0)
        let watcher = Thread {
            repeat { seen.look(kinds.map(resident)) } while ended.wait(timeout: .now() + .milliseconds(2)) == .timedOut
        }
        watcher.start()
        defer { ended.signal() }
        try work()
        seen.look(kinds.map(resident))
        return zip(seen.most, before).map { $0 - $1 }
    }

    /// The most of each kind that was seen.
    private final class Seen: @unchecked Sendable {
        private let lock = NSLock()
        private var found: [Int]

        init(_ before: [Int]) { found = before }

        func look(_ now: [Int]) { lock.withLock { found = zip(found, now).map { max($0, $1) } } }

        var most: [Int] { lock.withLock { found } }
    }

    /// Bytes of this process's memory, as Linux names them.
    private static func resident(_ kind: String) -> Int {
        let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
        let line = status.split(separator: "\n").first { $0.hasPrefix("\(kind):") }
        guard let found = line.flatMap({ Int($0.filter(\.isNumber)) }) else {
            fatalError("Linux does not tell \(kind)")
        }
        return found * 1024
    }

    /// Megabytes that are in memory now, and the most there were.
    private static func say(_ what: String) {
        func megabytes(_ kind: String) -> String { String(format: "%.1f", Double(resident(kind)) / 1_048_576) }
        let (now, most, files) = (megabytes("VmRSS"), megabytes("VmHWM"), megabytes("RssFile"))
        print("\(now) MB (at most \(most)), of which files \(files): \(what)")
    }
}
