import Foundation
import Testing

@testable import PFLMobile

/// What a device decides by itself, by the vectors that Python writes.
@Suite struct DeviceVectorsTests {
    let privacy: JSON
    let device: JSON
    let temporary: TemporaryFolder

    init() throws {
        privacy = try Vectors.read("privacy.json")
        device = try Vectors.read("device.json")
        temporary = try TemporaryFolder()
    }

    private func policy(_ settings: JSON) throws -> PrivacyPolicy {
        try PrivacyPolicy(
            require: settings.maybe("require")?.bool ?? true, onlyLocal: settings.maybe("only_local")?.bool ?? false,
            minNoise: settings.maybe("min_noise")?.number ?? 0, maxEpsilon: settings.maybe("max_epsilon")?.number,
            maxDelta: settings.maybe("max_delta")?.number, report: settings.maybe("report")?.bool ?? true)
    }

    @Test("policies refuse tasks in the same words")
    func refusals() throws {
        var policies: [String: PrivacyPolicy] = [:]
        for (name, settings) in try privacy["policies"].fields { policies[name] = try policy(settings) }
        for (number, vector) in try privacy["cases"].items.enumerated() {
            let task = try Bodies.read(TaskPrivacy.self, try vector["privacy"])
            let reports = try vector["reports"].texts
            let sent = try SentNoise(temporary("\(number).json"))
            for noise in try vector["sent"].items { try sent.add(try noise.double) }
            for (name, verdict) in try vector["verdicts"].fields {
                let policy = try #require(policies[name])
                let found = [
                    policy.refusal(task, reports, sent), policy.refusal(task, reports, sent, counted: true),
                ]
                #expect(
                    try found == [verdict["refusal"].string, verdict["refusal_counted"].string],
                    "\(name): \(vector.dumped())")
                #expect(try policy.mayReport(task) == verdict["may_report"].truth, "\(name): \(vector.dumped())")
            }
        }
    }

    @Test("policies that protect less than they seem to are refused")
    func settings() throws {
        for vector in try privacy["settings"].items {
            let settings = try vector["settings"]
            if try vector["refused"].truth {
                expectError(.config, vector.dumped()) { _ = try policy(settings) }
            } else {
                _ = try policy(settings)
            }
        }
    }

    @Test("pauses grow, with jitter, and are bounded")
    func pauses() throws {
        for vector in try device["pauses"].items {
            let given = try vector["backoff"]
            let backoff = Backoff(
                firstS: given.maybe("first_s")?.number ?? Backoff().firstS,
                mostS: given.maybe("most_s")?.number ?? Backoff().mostS)
            let found = backoff.pause(
                try vector["failures"].int, toldS: try vector["told_s"].number, draw: try vector["u"].double)
            #expect(try found == vector["pause_s"].bits, "\(vector.dumped())")
        }
    }

    @Test("Retry-After is read as seconds or a date")
    func retry() throws {
        for vector in try device["retry_after"].items {
            let found = retryAfter(try vector["header"].text, now: try vector["now"].double)
            #expect(try found == vector["seconds"].number, "\(vector.dumped())")
        }
    }

    @Test("what was sent is counted on the disk")
    func counted() throws {
        let path = temporary("sent.json")
        let sent = try SentNoise(path)
        #expect(sent.epsilon(delta: 1e-6) == 0)
        #expect(try status(path) == nil)
        try sent.add(8)
        #expect(try SentNoise(path).epsilon(delta: 1e-6) == sent.epsilon(delta: 1e-6))
        #expect(try SentNoise(path).updates == 1)
        try sent.add(1e-200)
        #expect(try SentNoise(path).epsilon(delta: 1e-6) > 1e100)
        let counts = ["1, 1, 0", "1, -1, 1", "1, 1.5, 1", "1, 1, -1", "2, 1, 1"].map {
            let numbers = $0.components(separatedBy: ", ")
            return "{\"schema_version\":\(numbers[0]),\"updates\":\(numbers[1]),\"inverse_squares\":\(numbers[2])}"
        }
        for text in ["", "{}", "[]"] + counts {
            try Data(text.utf8).write(to: URL(fileURLWithPath: path))
            expectError(.deviceFolder, text) { _ = try SentNoise(path) }
        }
        try FileManager.default.removeItem(atPath: path)
        expectError(.deviceFolder, "a count that was lost") { _ = try SentNoise(path, begun: true) }
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
        expectError(.deviceFolder, "a folder") { _ = try SentNoise(path) }
    }

    private func task(_ json: String) throws -> TaskPrivacy { try Bodies.read(TaskPrivacy.self, try parseJSON(json)) }

    @Test("promises of memberships add up, and what cannot be true is none")
    func promises() throws {
        let path = temporary("spent.json")
        let spent = try Spent(path)
        try spent.made("one", try task(Tasks.believed))
        try spent.made("one", try task(Tasks.believed))
        try spent.made("two", try task(Tasks.believed))
        try spent.made("two", try task(Tasks.none))
        try spent.made("two", try task(Tasks.local))
        try spent.accepted(bytes: 100)
        try spent.asked(at: 7)
        let found = try Spent(path)
        #expect(found.promised.epsilon == 16 && found.promised.delta == 2e-6)
        #expect(found.promisedElsewhere("one") == 8 && found.promisedElsewhere(nil) == 16)
        #expect(found.unprotected == 1 && found.rounds == 1 && found.bytes == 100 && found.asked == 7)
        let sent = try SentNoise(temporary("sent.json"))
        let policy = PrivacyPolicy()
        #expect(policy.refusal(try task(Tasks.believed), [], sent) == nil)
        let why = policy.refusal(try task(Tasks.believed), [], sent, spent: found, device: "three")
        #expect(why == "epsilon is 24, the most that is accepted here is 10")
        try Data("{}".utf8).write(to: URL(fileURLWithPath: path))
        expectError(.deviceFolder) { _ = try Spent(path) }
    }

    // -- the folder

    private func restored() throws -> String {
        let place = temporary("device")
        let kept = try device["folder"]
        try FileManager.default.createDirectory(atPath: "\(place)/queue", withIntermediateDirectories: true)
        for (name, content) in try kept["files"].fields {
            try Data(try content.text.utf8).write(to: URL(fileURLWithPath: "\(place)/\(name)"))
        }
        let update = try kept["update"]
        let bytes = try #require(fromHex(try update["hex"].text))
        try Data(bytes).write(to: URL(fileURLWithPath: "\(place)/\(try update["name"].text)"))
        return place
    }

    private var model: ModelId {
        get throws {
            let parts = try device["folder"]["model"].texts
            return ModelId(name: parts[0], version: parts[1], fingerprint: parts[2])
        }
    }

    @Test("a folder of Python's is opened, and written alike")
    func pythonFolder() throws {
        let place = try restored()
        let kept = try device["folder"]
        let folder = try DeviceFolder(place, model: model, user: kept["user"].text)
        let membership = try #require(folder.membership)
        #expect(try membership.json == kept["membership"])
        let (pending, damaged) = try folder.pending()
        #expect(damaged.isEmpty)
        let entry = try #require(pending.first)
        #expect(try pending.count == 1 && entry.key == kept["pending"]["key"].text)
        #expect(try folder.sentUnderOwnNoise == kept["sent"]["updates"].int)
        let epsilon = try kept["sent"]["epsilon"].double
        #expect(abs(folder.ownEpsilon(try kept["sent"]["delta"].double) - epsilon) < 1e-8)

        try folder.change(entry)
        try folder.join(
            membership.server, Enrolled(device: membership.device, credential: membership.credential))
        folder.close()
        for (name, content) in try kept["files"].fields {
            let found = try parseJSON(bytes: try readBytes("\(place)/\(name)"))
            #expect(try found == parseJSON(try content.text), "\(name)")
        }
        for name in ["device.json", "queue/\(String(repeating: "0123456789abcdef", count: 2)).json"] {
            let mode = try #require(try status("\(place)/\(name)")).st_mode & 0o777
            #expect(mode == 0o600, "\(name)")
        }
    }

    @Test("a folder is of one process, model and user")
    func oneOwner() throws {
        let place = try restored()
        let model = try model
        let other = ModelId(name: model.name, version: "2", fingerprint: model.fingerprint)
        let held = try DeviceFolder(place, model: model)
        expectError(.deviceFolder, "a second process") { _ = try DeviceFolder(place, model: model) }
        held.close()
        expectError(.deviceFolder, "another model") { _ = try DeviceFolder(place, model: other) }
        expectError(.deviceFolder, "another user") { _ = try DeviceFolder(place, model: model, user: "bob") }
        let again = try DeviceFolder(place, model: model)
        try again.forget()
        again.close()
        try DeviceFolder(place, model: other).close()
        try Data("{}".utf8).write(to: URL(fileURLWithPath: "\(place)/device.json"))
        expectError(.deviceFolder, "damaged") { _ = try DeviceFolder(place, model: model) }
    }

    @Test("a damaged entry of the queue is found, and leftovers are removed")
    func damagedQueue() throws {
        let place = try restored()
        let folder = try DeviceFolder(place, model: model)
        let entry = try #require(try folder.pending().found.first)
        let b = String(repeating: "b", count: 32)
        let c = String(repeating: "c", count: 32)
        let d = String(repeating: "d", count: 32)
        var fields = try #require(entry.json.object)
        fields["task"] = .string(b)
        fields["round"] = .integer(1)
        // Its digest is of another update.
        try folder.put(try Bodies.read(Pending.self, .object(fields)), Array("other".utf8))
        #expect(try folder.pending().found.map(\.task) == [entry.task] && folder.pending().damaged == [b])
        try Data("of a killed process".utf8).write(to: URL(fileURLWithPath: folder.updatePath(c)))
        try Data("{".utf8).write(to: URL(fileURLWithPath: "\(place)/queue/\(d).json"))
        #expect(try folder.waiting == 3)
        #expect(try folder.pending().damaged == [b, d])
        #expect(try status(folder.updatePath(c)) != nil, "it may be one that is just being written")
        try folder.removeOrphans()
        #expect(try status(folder.updatePath(c)) == nil)
        for task in try folder.pending().damaged { try folder.remove(task) }
        #expect(try folder.pending().found.map(\.json) == [entry.json])
        var uploaded = entry
        uploaded.uploaded = true
        try folder.change(uploaded)
        try FileManager.default.removeItem(atPath: folder.updatePath(entry.task))
        #expect(try folder.waiting == 1 && folder.pending().damaged.isEmpty)
        try folder.discardWaiting()
        #expect(try folder.waiting == 0)
    }

    @Test("a membership that ended is kept until its aggregator knows, and a cleared folder keeps its counts")
    func leaving() throws {
        let place = try restored()
        let folder = try DeviceFolder(place, model: model)
        let membership = try #require(folder.membership)
        try folder.leaveLater()
        #expect(try !folder.enrolled && folder.waiting == 0 && folder.toLeave == [membership])
        folder.close()
        let again = try DeviceFolder(place, model: model)
        #expect(again.toLeave == [membership])
        try again.left(membership)
        again.close()
        #expect(try status("\(place)/leaving.json") == nil)
        try DeviceFolder.clear(place)
        #expect(try namesIn(place) == ["lock", "personal", "queue", "sent.json", "sets"])
        for name in ["personal", "queue", "sets"] { #expect(try namesIn("\(place)/\(name)").isEmpty) }
        #expect(try DeviceFolder(place, model: model).sentUnderOwnNoise == 2)
    }

    @Test("downloaded values are what their digest says, or not there")
    func sets() throws {
        let folder = try DeviceFolder(try restored(), model: model)
        let data = try Safetensors.write(["a": .float(FloatTensor([1, 2], [2]))])
        let digest = Sha256.hex(data)
        func put(_ name: String, _ bytes: [UInt8]) throws {
            try Data(bytes).write(to: URL(fileURLWithPath: folder.setPath(name)))
        }
        #expect(try folder.loadSet(digest) == nil)
        try put(digest, data)
        #expect(try folder.loadSet(digest)?["a"]?.shape == [2])
        try put(digest, data + [0])
        #expect(try folder.loadSet(digest) == nil)
        #expect(try status(folder.setPath(digest)) == nil)
        try put("\(digest).part", data)
        try put(String(repeating: "e", count: 64), data)
        try folder.keepSets([digest])
        #expect(try namesIn("\(folder.directory)/sets") == ["\(digest).part"])
    }
}
