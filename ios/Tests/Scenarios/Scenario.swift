import Foundation
import PFLMobile
import PFLOnnxRuntime

/// Carries out one part of a scenario of `conformance/scenarios`: what one process does. It ends with 1 where a step gives
/// something else than the scenario says, and says which.
///
/// Arguments: scenario, part, folder of the bundles, the phone's folder, and the aggregator's address where there is one.
@main enum Main {
    static func main() async {
        do {
            let arguments = CommandLine.arguments
            guard 5...6 ~= arguments.count, let number = Int(arguments[2]) else {
                throw Failure("give scenario, part, bundles and folder")
            }
            let scenario = try Scenario(Data(contentsOf: URL(fileURLWithPath: arguments[1])))
            try await scenario.carryOut(
                number, bundles: URL(fileURLWithPath: arguments[3]), home: URL(fileURLWithPath: arguments[4]),
                aggregator: arguments.count > 5 ? arguments[5] : nil)
        } catch {
            print(error)
            exit(1)
        }
    }
}

struct Failure: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) {
        self.description = description
    }
}

private func require<Value: Equatable>(_ found: Value, _ wanted: Value, _ what: String) throws {
    if found != wanted { throw Failure("\(what): \(found), not \(wanted)") }
}

/// One step, of which each field must be taken.
struct Step: Decodable, Sendable {
    private struct Field: Decodable {
        let value: any Sendable

        init(from decoder: any Decoder) throws {
            let from = try decoder.singleValueContainer()
            if let truth = try? from.decode(Bool.self) {
                value = truth
            } else if let number = try? from.decode(Int.self) {
                value = number
            } else if let number = try? from.decode(Double.self) {
                value = number
            } else if let text = try? from.decode(String.self) {
                value = text
            } else {
                value = try from.decode([String].self)
            }
        }
    }

    let what: String
    private let fields: [String: any Sendable]
    private var taken: Set<String> = ["do"]

    init(from decoder: any Decoder) throws {
        fields = try [String: Field](from: decoder).mapValues(\.value)
        guard let what = fields["do"] as? String else { throw Failure("a step says not what to do") }
        self.what = what
    }

    func has(_ name: String) -> Bool { fields[name] != nil }

    mutating func take<Value>(_ name: String, _ type: Value.Type = Value.self) throws -> Value? {
        taken.insert(name)
        guard let value = fields[name] else { return nil }
        guard let found = value as? Value else { throw Failure("\(name) is no \(type)") }
        return found
    }

    mutating func need<Value>(_ name: String, _ type: Value.Type = Value.self) throws -> Value {
        guard let value = try take(name, type) else { throw Failure("\(what) needs \(name)") }
        return value
    }

    func done() throws {
        if let other = fields.keys.first(where: { !taken.contains($0) }) {
            throw Failure("\(what) with \(other) is not known here")
        }
    }
}

/// One file of `conformance/scenarios`, read.
struct Scenario {
    /// What one process after the other does; each but the first begins with `restart`.
    let parts: [[Step]]

    private struct File: Decodable {
        let steps: [Step]
    }

    init(_ json: Data) throws {
        var parts: [[Step]] = [[]]
        for step in try JSONDecoder().decode(File.self, from: json).steps {
            if step.what == "restart" { parts.append([]) }
            parts[parts.count - 1].append(step)
        }
        self.parts = parts
    }

    func carryOut(_ part: Int, bundles: URL, home: URL, aggregator: String?) async throws {
        var before = parts[..<part].flatMap { $0 }
        let opened = before.lastIndex { $0.has("bundle") && !$0.has("refused") && $0.what != "serve" }
        let phone = Phone(bundles, home, aggregator, try opened.map { try before[$0].need("bundle") })
        for step in parts[part] {
            do {
                try await phone.carryOut(step)
            } catch {
                throw Failure("step \(before.count), \(step.what): \(error)")
            }
            before.append(step)
        }
        try await phone.close()
    }
}

/// A user whose app has a personal model.
actor Phone {
    private let bundles: URL
    private let home: URL
    private let aggregator: String?
    private var bundle: String?
    private var opened: PersonalModel?

    /// - Parameter bundle: that was open before; nil for a new user
    init(_ bundles: URL, _ home: URL, _ aggregator: String?, _ bundle: String?) {
        self.bundles = bundles
        self.home = home
        self.aggregator = aggregator
        self.bundle = bundle
    }

    func carryOut(_ given: Step) async throws {
        var step = given
        switch step.what {
        case "open": try await open(&step)
        case "restart": try await restart(try step.take("bundle"))
        case "remember": try await remember(&step)
        case "learn": try await learn(&step)
        case "suggest": try await suggest(&step)
        case "status": try await status(&step)
        case "forget": try await model.forgetWord(try step.need("word"))
        case "pause": try await model.pause()
        case "resume": try await model.resume()
        case "revert": try await model.revert()
        case "erase": try await model.eraseEverything()
        case "serve":
            // Whoever carries out the scenario started an aggregator before.
            _ = try federation()
            _ = try (step.need("bundle", String.self), step.take("alone", Bool.self))
        case "take_part": try await takePart(&step)
        case "leave": try await leave(&step)
        default: throw Failure("no such step here")
        }
        try step.done()
    }

    func close() async throws {
        try await opened?.close()
        opened = nil
    }

    private var model: PersonalModel {
        get throws {
            guard let opened else { throw Failure("a scenario begins with open") }
            return opened
        }
    }

    private func restart(_ newer: String? = nil) async throws {
        try await close()
        bundle = newer ?? bundle
        guard let bundle else { throw Failure("a scenario begins with open") }
        opened = try await PersonalModel.open(
            bundle: bundles.appendingPathComponent("\(bundle).pflb"), folder: home.appendingPathComponent("model"),
            options: try ModelOptions(trusted: true, checkpointEvery: 1))
    }

    private func open(_ step: inout Step) async throws {
        let before = bundle
        bundle = try step.need("bundle")
        guard let refused = try step.take("refused", String.self) else { return try await restart() }
        do {
            try await restart()
        } catch let error as PFLError {
            try require(error.code.rawValue, refused, "the error")
            bundle = before
            return
        }
        throw Failure("it was opened")
    }

    private func remember(_ step: inout Step) async throws {
        let refused = try step.take("refused", String.self)
        let texts = try step.need("texts", [String].self)
        for _ in 0..<(try step.take("times") ?? 1) {
            for text in texts {
                switch try await model.remember(text) {
                case .kept: try require(nil, refused, text)
                case .refused(let reason): try require(nameOf(reason), refused, text)
                }
            }
        }
    }

    private func nameOf(_ reason: RememberResult.Reason) -> String {
        switch reason {
        case .blocked: "BLOCKED"
        case .empty: "EMPTY"
        case .paused: "PAUSED"
        case .storageFull: "STORAGE_FULL"
        }
    }

    private func learn(_ step: inout Step) async throws {
        let cancelAt = try step.take("stop_after", Int.self)
        let killAt = try step.take("kill_after", Int.self)
        let model = try model
        let (steps, stepped) = AsyncStream.makeStream(of: Int.self)
        let running = Task {
            defer { stepped.finish() }
            return try await model.personalize { progress in
                // Nothing of the process runs any more.
                if progress.step == killAt { kill(getpid(), SIGKILL) }
                stepped.yield(progress.step)
                // It must not have ended before it is cancelled.
                if progress.step == cancelAt { while !cancelled.isSet { usleep(1000) } }
            }
        }
        for await number in steps where number == cancelAt {
            running.cancel()
            cancelled.set()
        }
        var resumed = false
        let ends: String
        do {
            switch try await running.value {
            case .adopted(let report):
                ends = "adopted"
                resumed = report.report.resumedAt != nil
            case .kept: ends = "kept"
            case .notEnoughExamples: ends = "not_enough"
            case .paused: ends = "paused"
            case .cancelled: ends = "cancelled"
            case .failed(let error): throw error
            }
        } catch is CancellationError {
            ends = "cancelled"
        }
        if killAt != nil { throw Failure("the process was to be killed, and training ended as \(ends)") }
        try require(ends, try step.need("ends"), "training ended")
        if try step.take("resumed") ?? false { try require(resumed, true, "it went on from a checkpoint") }
    }

    private func takePart(_ step: inout Step) async throws {
        let killAt = try step.take("kill_at", String.self)
        let rounds = try step.take("rounds", Int.self) ?? 1
        let most = try step.take("max_epsilon", Double.self)
        let result = try await model.takePart(
            try federation(try PrivacyPolicy(maxEpsilon: most)), rounds: rounds
        ) { event in
            if case .finished = event, killAt == "finished" { kill(getpid(), SIGKILL) }
        }
        let ends: String
        switch result {
        case .tookPart(let summary):
            ends = "took_part"
            try require(summary.rounds, rounds, "accepted updates")
            try require(summary.declined, [:], "declined tasks")
        case .noRound: ends = "no_round"
        case .notProtected: ends = "not_protected"
        case .notEnoughExamples: ends = "not_enough"
        case .paused: ends = "paused"
        case .cancelled: ends = "cancelled"
        case .unreachable: ends = "unreachable"
        case .refused(let error), .failed(let error): throw error
        }
        if killAt != nil { throw Failure("the process was to be killed, and it ended as \(ends)") }
        try require(ends, try step.need("ends"), "taking part ended")
    }

    private func leave(_ step: inout Step) async throws {
        let ends: String
        switch try await model.leave(try federation()) {
        case .left: ends = "left"
        case .notThere: ends = "not_there"
        case .unreachable: ends = "unreachable"
        case .failed(let error): throw error
        }
        try require(ends, try step.need("ends"), "leaving ended")
    }

    private func federation(_ policy: PrivacyPolicy = PrivacyPolicy()) throws -> Federation {
        guard let aggregator else { throw Failure("there is no aggregator here") }
        return try Federation(aggregator, policy: policy, backoff: Backoff(firstS: 0.05, mostS: 0.5))
    }

    private func suggest(_ step: inout Step) async throws {
        let words = try await model.suggest(try step.need("text")).map(\.word)
        if let word = try step.take("has", String.self) {
            try require(words.contains(word), true, "'\(word)' is among \(words)")
        }
        if let word = try step.take("lacks", String.self) {
            try require(words.contains(word), false, "'\(word)' is among \(words)")
        }
    }

    private func status(_ step: inout Step) async throws {
        let now = try await model.status()
        let shown = [
            ("examples", now.examples), ("words", now.words), ("version", now.version),
            ("rounds", now.rounds?.rounds ?? 0), ("waiting", now.rounds?.waiting ?? 0),
        ]
        for (name, found) in shown {
            if let want = try step.take(name, Int.self) { try require(found, want, name) }
        }
        if let want = try step.take("paused", Bool.self) { try require(now.paused, want, "paused") }
    }
}

private final class Flag: @unchecked Sendable {
    private let lock = NSLock()
    private var value = false

    var isSet: Bool { lock.withLock { value } }

    func set() { lock.withLock { value = true } }
}

/// Whether the training of this process was cancelled.
private let cancelled = Flag()
