import Foundation
import Testing

@testable import PFLMobile

/// What a user lives through; `conformance/scenarios`. Each process of a scenario is one, and those that the system kills are killed.
@Suite(.enabled(if: isThere("tiny"))) struct ScenariosTests {
    private static let place = "swift-linux"

    private let scenarios = URL(fileURLWithPath: "\(Vectors.folder)/scenarios")
    private let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
        let bundles = URL(fileURLWithPath: PFLOnnxRuntimeTests.bundles)
        for name in ["tiny", "tiny-2", "talk"] {
            try FileManager.default.copyItem(
                at: bundles.appendingPathComponent("\(name).pflb"), to: folder.url("\(name).pflb"))
        }
        // A quarter of the bytes changed: a single one may lie between two entries, where nothing reads it.
        var bytes = try Data(contentsOf: folder.url("tiny.pflb"))
        for place in bytes.count / 4..<bytes.count / 2 { bytes[place] &+= 1 }
        try bytes.write(to: folder.url("damaged.pflb"))
    }

    @Test("scenarios pass, and what passed is written down")
    func all() async throws {
        let files = try FileManager.default.contentsOfDirectory(atPath: scenarios.path)
            .filter { $0.hasSuffix(".json") }.sorted()
        #expect(files.count > 10)
        let marks = scenarios.appendingPathComponent("passed/\(Self.place).sha256")
        let told = (try? String(contentsOf: marks, encoding: .utf8)) ?? ""
        let aggregators = try aggregators()
        var passed = ""
        for name in files {
            let file = scenarios.appendingPathComponent(name)
            let json = try parseJSON(bytes: try readBytes(file.path))
            let steps = try #require(json.object?["steps"]?.array).compactMap(\.object)
            let line = "\(Sha256.hex(try readBytes(file.path)))  \(name)\n"
            if steps.contains(where: { $0["do"]?.string == "serve" }), aggregators[name] == nil {
                if told.contains(line) { passed += line }  // it cannot be tried here, and passed as it is
                continue
            }
            var isGood = true
            let home = folder.url(name)
            try FileManager.default.createDirectory(at: home, withIntermediateDirectories: true)
            let parts = steps.reduce(into: [[]] as [[JSONObject]]) { parts, step in
                if step["do"]?.string == "restart" { parts.append([]) }
                parts[parts.count - 1].append(step)
            }
            for part in parts.indices where isGood {
                let killed = parts[part].contains { $0["kill_after"] != nil || $0["kill_at"] != nil }
                let (status, said) = try await run(file, part, home, aggregators[name])
                isGood = status == (killed ? .killed : .exited(0))
                #expect(isGood, "\(name), process \(part): \(status), \(said)")
            }
            if isGood { passed += line }
        }
        if ProcessInfo.processInfo.environment["PFL_SCENARIOS_WRITE"] != nil {
            try Data(passed.utf8).write(to: marks)
            return
        }
        #expect(told == passed, "run `make ios-scenarios`, which writes \(marks.lastPathComponent)")
    }

    /// Addresses by scenario, where scenarios.py started what they need.
    private func aggregators() throws -> [String: String] {
        guard let given = ProcessInfo.processInfo.environment["PFL_AGGREGATORS"] else { return [:] }
        return try JSONDecoder().decode([String: String].self, from: Data(given.utf8))
    }

    private enum Status: Equatable, Sendable {
        case exited(Int32)
        case killed
        case signal(Int32)
    }

    private func run(_ file: URL, _ part: Int, _ home: URL, _ aggregator: String?) async throws -> (Status, String) {
        let program = try #require(program)
        let arguments = [file.path, "\(part)", folder.path, home.path] + (aggregator.map { [$0] } ?? [])
        // Whoever waits for a process holds a thread.
        return try await offload { _ in
            let process = Process()
            process.executableURL = program
            process.arguments = arguments
            let output = Pipe()
            process.standardOutput = output
            // ONNX Runtime of Debian tells there what it registers.
            process.standardError = FileHandle.nullDevice
            try process.run()
            let said = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            process.waitUntilExit()
            let number = process.terminationStatus
            if process.terminationReason == .exit { return (.exited(number), said) }
            return (number == SIGKILL ? .killed : .signal(number), said)
        }
    }

    /// The program that carries out a part, which is built beside the tests.
    private var program: URL? {
        let tests = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
        let found = [tests, URL(fileURLWithPath: CommandLine.arguments[0])].map {
            $0.deletingLastPathComponent().appendingPathComponent("pfl-scenario")
        }
        return found.first { FileManager.default.isExecutableFile(atPath: $0.path) }
    }
}
