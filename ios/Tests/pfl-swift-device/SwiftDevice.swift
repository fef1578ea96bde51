import Foundation
import PFLMobile
import PFLOnnxRuntime

/// A device of Swift as a program, for tests only: `ios/rounds.py` has it take part in rounds of a real `pfl serve`, together with
/// devices of other languages. It uses what apps can use, and nothing else.
@main struct SwiftDevice {
    static func main() async {
        do {
            let options = try Options(Array(CommandLine.arguments.dropFirst()))
            try await takePart(options)
        } catch let error as PFLError {
            tell(["error": error.code.rawValue, "message": error.message, "mend": error.mend])
            exit(1)
        } catch {
            tell(["error": "\(error)"])
            exit(1)
        }
    }

    private static func takePart(_ options: Options) async throws {
        let bundle = try ModelBundle.open(URL(fileURLWithPath: try options.required("bundle")))
        let session = try openSession(bundle, engines: [OnnxRuntimeEngine()], trusted: true)
        let model = try Model.open(bundle, session)
        let folder = try DeviceFolder(
            URL(fileURLWithPath: try options.required("folder")), model: model.id, user: options["user"])
        let client = try Client(
            try options.required("server"), backoff: Backoff(attempts: 4, firstS: 0.05, mostS: 0.5), timeoutS: 20)
        let policy = try PrivacyPolicy(
            require: options["allow-no-privacy"] == nil, onlyLocal: options["only-local"] != nil)
        let rows = try Table.read(try options.required("rows"))
        let device = Device(
            model, .arrays(rows), folder, client, policy: policy, facts: DeviceFacts(platform: "linux"),
            patienceS: options["patience"].flatMap(Double.init), onEvent: { tell(described($0)) })
        let summary = try await device.run(rounds: options["rounds"].flatMap { Int($0) })
        var told: [String: Any] = [
            "ended": summary.ended.rawValue, "rounds": summary.rounds, "declined": summary.declined,
            "dropped": summary.dropped, "bytes_up": summary.bytesUp, "bytes_down": summary.bytesDown,
            "waiting": try folder.waiting, "sent_under_own_noise": folder.sentUnderOwnNoise,
            "state": try folder.personal.current,
        ]
        if summary.ended != .privacy {
            let newest = try await device.measure()
            told["version"] = newest.version
            told["loss"] = newest.shared["loss"]
        }
        tell(told)
    }

    private static func described(_ event: Event) -> [String: Any] {
        switch event {
        case .joined(let device, let again): ["event": "joined", "device": device, "again": again]
        case .assigned(let round, _): ["event": "assigned", "round": round]
        case .downloaded(let name, let bytes, let cached):
            ["event": "downloaded", "name": name, "bytes": bytes, "cached": cached]
        case .stepped(let step, let of, _): ["event": "stepped", "step": step, "of": of]
        case .finished(let done):
            ["event": "finished", "round": done.round, "adopted": done.adopted, "clipped": done.clipped]
        case .uploaded(let round, let bytes, let duplicate):
            ["event": "uploaded", "round": round, "bytes": bytes, "duplicate": duplicate]
        case .reported(let round, _, _, let weight): ["event": "reported", "round": round, "weight": weight]
        case .declined(let round, let reason, let why):
            ["event": "declined", "round": round, "reason": reason, "why": why]
        case .dropped(let task, let what, let why): ["event": "dropped", "task": task, "what": what, "why": why]
        case .waiting(let seconds, let reason): ["event": "waiting", "seconds": seconds, "reason": reason]
        case .offline(let seconds, let why): ["event": "offline", "seconds": seconds, "why": why]
        case .measured(let found): ["event": "measured", "version": found.version]
        }
    }

    /// A line of JSON.
    private static func tell(_ what: [String: Any]) {
        guard let line = try? JSONSerialization.data(withJSONObject: what, options: [.sortedKeys]) else { return }
        FileHandle.standardOutput.write(line + Data("\n".utf8))
    }
}

/// `--name value`, or `--name` alone before another.
private struct Options {
    private var values: [String: String] = [:]

    init(_ arguments: [String]) throws {
        var at = 0
        while at < arguments.count {
            guard arguments[at].hasPrefix("--") else {
                throw PFLError(.config, "'\(arguments[at])' is no option", mend: "give --name value")
            }
            let name = String(arguments[at].dropFirst(2))
            let hasValue = at + 1 < arguments.count && !arguments[at + 1].hasPrefix("--")
            values[name] = hasValue ? arguments[at + 1] : ""
            at += hasValue ? 2 : 1
        }
    }

    subscript(name: String) -> String? { values[name] }

    func required(_ name: String) throws -> String {
        guard let value = values[name] else { throw PFLError(.config, "--\(name) is missing", mend: "give it") }
        return value
    }
}

/// Rows of features and labels in a file of JSON.
private struct Table: Decodable {
    let x: [[Float]]
    let labels: [Int64]

    static func read(_ path: String) throws -> Rows {
        let table = try JSONDecoder().decode(Table.self, from: try Data(contentsOf: URL(fileURLWithPath: path)))
        let count = table.labels.count
        return [
            "x": .float(FloatTensor(table.x.flatMap { $0 }, [count, table.x[0].count])),
            "labels": .long(LongTensor(table.labels, [count])),
            "weight": .float(FloatTensor([Float](repeating: 1, count: count), [count])),
        ]
    }
}
