import Foundation
import Testing

@testable import PFLMobile

/// Fails unless a float64 has the bits that the vectors write.
private func expectDouble(
    _ want: JSON, _ found: Double?, _ what: String, _ location: SourceLocation = #_sourceLocation
) throws {
    let bits = try want.bits
    #expect(
        found?.bitPattern == bits.bitPattern, "\(what): \(found ?? .nan) instead of \(bits)", sourceLocation: location)
}

private func expectLosses(_ want: JSON, _ found: [Double], _ what: String) throws {
    let losses = try want.items
    #expect(losses.count == found.count, "\(what)")
    for (loss, value) in zip(losses, found) { try expectDouble(loss, value, "\(what): loss") }
}

/// A time that a test moves.
private final class TestClock: @unchecked Sendable {
    var seconds = 0.0
}

@Suite struct TrainerTests {
    let vectors: JSON
    let train: Examples
    let holdout: Examples
    let initial: TensorSet
    let sets: [String: TensorSet]

    init() throws {
        vectors = try Vectors.read("trainer.json")
        train = .arrays(try vectors["train"].tensors)
        holdout = .arrays(try vectors["holdout"].tensors)
        initial = try vectors["initial"].tensors
        sets = try vectors["sets"].sets
    }

    private func sgd(_ steps: Int, lr: Double = 0.1) throws -> Plan {
        try Plan(
            json:
                "{\"phases\": [{\"kind\": \"train\", \"steps\": \(steps), \"optimizer\": {\"kind\": \"sgd\", \"lr\": \(lr)}}]}"
        )
    }

    private func trainer(_ plan: Plan, most: Most = Most(), session: Toy = Toy()) throws -> LocalTrainer {
        try LocalTrainer(session, plan: plan, tensors: Toy.table, initial: initial, sets: sets, most: most)
    }

    @Test("whole runs end with Python's bits")
    func wholeRuns() throws {
        for vector in try vectors["cases"].items {
            let name = try vector["name"].text
            let report = try trainer(Plan(json: vector["plan"].dumped())).personalize(train, holdout: holdout)
            #expect(try report.status.rawValue == vector["status"].text, "\(name)")
            #expect(try report.steps == vector["steps"].int, "\(name)")
            try expectLosses(try vector["losses"], report.losses, name)
            expectBits(try vector["tensors"].tensors, report.state?.tensors ?? initial, name)
            let copies = try vector["copies"].sets
            #expect(copies.keys.sorted() == (report.state?.copies ?? [:]).keys.sorted(), "\(name)")
            for (copy, values) in copies { expectBits(values, report.state?.copies[copy] ?? [:], "\(name): \(copy)") }
            let reports = try vector["reports"].fields
            #expect(reports.count == report.reports.count, "\(name)")
            for (number, want) in reports { try expectDouble(want, report.reports[number], "\(name): \(number)") }
            try expectDouble(try vector["before"], report.before["loss"], "\(name): before")
            if try vector["after"].isNull {
                #expect(report.after["loss"] == nil)
            } else {
                try expectDouble(try vector["after"], report.after["loss"], "\(name): after")
            }
        }
    }

    @Test("stop is asked after each step")
    func stop() throws {
        var asked = 0
        let report = try trainer(sgd(6)).personalize(
            train, holdout: holdout,
            stop: {
                asked += 1
                return asked == 3
            })
        #expect(report.status == .cancelled)
        #expect(report.steps == 2)  // asked once before the first
        #expect(report.state == nil)
    }

    @Test("a cancelled task makes no other step")
    func cancelled() async throws {
        let session = Toy()
        let trainer = try trainer(sgd(1000), session: session)
        let (train, holdout) = (train, holdout)
        let task = Task {
            try trainer.personalize(train, holdout: holdout) { progress in
                if progress.step == 2 { withUnsafeCurrentTask { $0?.cancel() } }
            }
        }
        let result = await task.result
        #expect(throws: CancellationError.self) { try result.get() }
        #expect(session.calls == 3)  // one to measure before, two steps
    }

    @Test("progress counts the steps of the whole plan")
    func progress() throws {
        var seen: [Int] = []
        _ = try trainer(sgd(4)).personalize(train, holdout: holdout) {
            #expect($0.of == 4)
            seen.append($0.step)
        }
        #expect(seen == [1, 2, 3, 4])
    }

    @Test("limits of the bundle hold")
    func limits() throws {
        expectError(.tooManySteps) {
            _ = try trainer(sgd(6), most: Most(steps: 5)).personalize(train, holdout: holdout)
        }
        let clock = TestClock()
        var slow = try trainer(sgd(6), most: Most(seconds: 10))
        slow.now = { clock.seconds }
        var steps = 0
        expectError(.tooSlow) {
            _ = try slow.personalize(train, holdout: holdout) { _ in
                steps += 1
                clock.seconds += 6
            }
        }
        #expect(steps == 2)
    }

    @Test("the last step is never too late")
    func lastStep() throws {
        let clock = TestClock()
        var slow = try trainer(sgd(2), most: Most(seconds: 10))
        slow.now = { clock.seconds }
        let report = try slow.personalize(train, holdout: holdout) { _ in clock.seconds += 6 }
        #expect(report.status == .adopted)
        #expect(report.seconds == 12)
    }

    private func weightless(_ examples: Examples) -> Examples {
        guard case .arrays(var rows) = examples else { return examples }
        rows["weight"] = rows["weight"]?.float.map { .float(.zeros(like: $0)) }
        return .arrays(rows)
    }

    @Test("what cannot be trained is refused")
    func refused() throws {
        expectError(.nonFinite) { _ = try trainer(sgd(9, lr: 1e30)).personalize(train, holdout: holdout) }
        expectError(.noExamples) { _ = try trainer(sgd(1)).personalize(weightless(train), holdout: holdout) }
        expectError(.config) { _ = try trainer(sgd(1)).personalize(.texts(["a"]), holdout: holdout) }
        expectError(.tensorMismatch) {
            guard case .arrays(var rows) = train else { return }
            rows["x"] = nil
            _ = try trainer(sgd(1)).personalize(.arrays(rows), holdout: holdout)
        }
        expectError(.tensorMismatch) {
            _ = try LocalTrainer(Toy(), plan: sgd(1), tensors: Toy.table, initial: ["b": try #require(initial["b"])])
        }
        expectError(.config) {
            _ = try trainer(Plan(json: "{\"phases\": [{\"kind\": \"assign_slots\", \"module\": \"m\"}]}"))
        }
    }

    @Test("nothing held out trains nothing")
    func nothingHeldOut() throws {
        let report = try trainer(sgd(1)).personalize(train, holdout: weightless(holdout))
        #expect(report.guardReport?.reason == .tooFewExamples)
        #expect(report.status == .skipped)
    }

    @Test("a run that is stopped at any step goes on as if it never was")
    func resumed() throws {
        let folder = try TemporaryFolder()
        let model = ModelId(name: "toy", version: "1", fingerprint: "ab")
        for vector in try vectors["cases"].items {
            let plan = try Plan(json: vector["plan"].dumped())
            let steps = try vector["steps"].int
            if try steps == 0 || vector["status"].text == "skipped" { continue }
            for stop in Set([1, steps / 2, steps - 1]) where stop > 0 && stop < steps {
                let place = folder("\(try vector["name"].text)-\(stop)")
                let store = try PersonalStateStore(URL(fileURLWithPath: place), model: model)
                let checkpoints = try Checkpoints(store.checkpoint, model: model, every: 1000)
                var done = 0
                let first = try trainer(plan).personalize(
                    train, holdout: holdout, store: store, checkpoints: checkpoints,
                    onProgress: { done = $0.step }, stop: { done == stop })
                #expect(first.status == .cancelled)
                let second = try trainer(plan).personalize(
                    train, holdout: holdout, store: store, checkpoints: checkpoints)
                #expect(second.resumedAt == stop)
                #expect(try second.status.rawValue == vector["status"].text)
                try expectLosses(try vector["losses"], second.losses, place)
                expectBits(try vector["tensors"].tensors, second.state?.tensors ?? initial, place)
                #expect(try status(store.checkpoint) == nil)
                #expect(try store.load().version == (second.status == .adopted ? 1 : 0))
            }
        }
    }

    @Test("a checkpoint of another job is discarded, and said so")
    func otherJob() throws {
        let folder = try TemporaryFolder()
        let model = ModelId(name: "toy", version: "1", fingerprint: "ab")
        let store = try PersonalStateStore(URL(fileURLWithPath: folder.path), model: model)
        let checkpoints = try Checkpoints(store.checkpoint, model: model, every: 1)
        for damage in [false, true] {
            _ = try trainer(sgd(6)).personalize(
                train, holdout: holdout, store: store, checkpoints: checkpoints, stop: { true })
            var asked = 0
            _ = try trainer(sgd(6)).personalize(
                train, holdout: holdout, store: store, checkpoints: checkpoints,
                stop: {
                    asked += 1
                    return asked > 2
                })
            if damage { try Damage.write(store.checkpoint, [1]) }
            let report = try trainer(sgd(damage ? 6 : 5)).personalize(
                train, holdout: holdout, store: store, checkpoints: checkpoints)
            #expect(report.resumedAt == nil)
            #expect(report.notes.count == 1)
            try store.reset()
        }
    }
}

@Suite struct StrategiesTests {
    @Test("every strategy's plans end with Python's bits")
    func strategies() throws {
        let vectors = try Vectors.read("strategies.json")
        let train = Examples.arrays(try vectors["train"].tensors)
        let holdout = Examples.arrays(try vectors["holdout"].tensors)
        let initial = try vectors["initial"].tensors
        for vector in try vectors["cases"].items {
            let strategy = try vector["strategy"].text
            var table: [DeviceTensor] = []
            for (name, role) in try vector["roles"].fields {
                let role = try Fields.word(Role.self)(role, "role")
                table.append(trainedTensor(name, role, try #require(initial[name]).shape))
            }
            for (number, run) in try vector["runs"].items.enumerated() {
                let what = "\(strategy), run \(number)"
                let plan = try Plan(json: run["plan"].dumped())
                let given = try run["sets"].sets
                let before = try run["state"]["tensors"].tensors
                let copies = try run["state"]["copies"].sets
                let state = before.isEmpty ? nil : PersonalState(tensors: before, copies: copies)
                let trainer = try LocalTrainer(Toy(), plan: plan, tensors: table, initial: initial, sets: given)
                let report = try trainer.personalize(train, holdout: holdout, state: state)
                let trained = try #require(report.trained, "\(what)")
                #expect(try report.status.rawValue == run["status"].text, "\(what)")
                try expectLosses(try run["losses"], report.losses, what)
                expectBits(try run["tensors"].tensors, trained.tensors, what)
                let made = try run["copies"].sets
                #expect(made.keys.sorted() == trained.copies.keys.sorted(), "\(what)")
                for (copy, values) in made { expectBits(values, trained.copies[copy] ?? [:], "\(what): \(copy)") }
                let kept = try run["kept"]
                if !kept.isNull { #expect(try report.state?.copies.keys.sorted() == kept.texts, "\(what)") }
                for (name, want) in try run["reports"].fields {
                    try expectDouble(want, report.reports[name], "\(what): \(name)")
                }
                try expectDouble(try run["before"], report.before["loss"], "\(what): before")
                try expectDouble(try run["after"], report.after["loss"], "\(what): after")
                let sent = try change(
                    plan, table, before: initial.merging(given["global"] ?? [:]) { $1 },
                    copiesBefore: trained.copiesBefore, after: trained.tensors, copiesAfter: trained.copies)
                expectBits(try run["sent"].floatTensors, sent, "\(what): sent")
            }
        }
    }
}

@Suite struct WordsTests {
    let vectors: JSON
    let table: [DeviceTensor]
    let initial: TensorSet

    init() throws {
        vectors = try Vectors.read("words.json")
        table = try vectors["tensors"].table
        initial = try vectors["initial"].tensors
    }

    private func trainer(
        _ plan: String, encoder: (any ExampleEncoder)? = WordEncoder(), most: Most = Most()
    ) throws -> LocalTrainer {
        try LocalTrainer(
            WordToy(table), plan: Plan(json: plan), tensors: table, initial: initial, encoder: encoder, most: most)
    }

    @Test("texts, slots and the memory go Python's way")
    func runs() throws {
        for vector in try vectors["cases"].items {
            let name = try vector["name"].text
            var state: PersonalState?
            for run in try vector["runs"].items {
                let report = try trainer(vector["plan"].dumped()).personalize(
                    .texts(run["train"].texts), holdout: .texts(run["holdout"].texts), state: state)
                state = report.state
                #expect(try report.status.rawValue == run["status"].text, "\(name)")
                #expect(try report.words == run["words"].texts, "\(name)")
                try expectLosses(try run["losses"], report.losses, name)
                expectBits(try run["tensors"].tensors, state?.tensors ?? initial, name)
                for (moment, found) in [("before", report.before), ("after", report.after)] {
                    let metrics = try run[moment].fields
                    #expect(metrics.keys.sorted() == found.keys.sorted(), "\(name)")
                    for (metric, want) in metrics {
                        try expectDouble(want, found[metric], "\(name): \(metric) \(moment)")
                    }
                }
            }
        }
    }

    @Test("texts need an encoder, and slots need texts")
    func needs() throws {
        let vector = try #require(try vectors["cases"].items.first)
        let plan = try vector["plan"].dumped()
        let texts = Examples.texts(["see you", "you see"])
        expectError(.config) { _ = try trainer(plan, encoder: nil).personalize(texts, holdout: texts) }
        let rows = Examples.arrays(WordEncoder().encode(["see you", "you see"], dropUnknown: true))
        expectError(.config) { _ = try trainer(plan).personalize(rows, holdout: rows) }
    }

    @Test("rows that count only once words have a slot are within the limit too")
    func limit() throws {
        let train = "{\"kind\": \"train\", \"epochs\": 1, \"optimizer\": {\"kind\": \"sgd\", \"lr\": 0.1}}"
        let plan = "{\"phases\": [{\"kind\": \"assign_slots\"}, \(train)]}"
        // Without a slot frob is unknown.
        let texts = [String](repeating: "see you home", count: 4) + [String](repeating: "frob frob frob", count: 4)
        expectError(.tooManySteps) {
            _ = try trainer(plan, most: Most(steps: 1)).personalize(.texts(texts), holdout: .texts(["see"]))
        }
    }
}

@Suite struct MemoryTests {
    @Test("entries lie where Python puts them")
    func entries() throws {
        let vectors = try Vectors.read("memory.json")
        let tokens = try #require(try vectors["tokens"].tensor.long)
        let labels = try #require(try vectors["labels"].tensor.long)
        let weight = try #require(try vectors["weight"].tensor.float)
        for vector in try vectors["cases"].items {
            let found = try memorize(
                tokens, labels, weight, capacity: vector["capacity"].int, context: vector["context_length"].int)
            expectBits(try vector["next"].tensor, .long(found.next), "next")
            expectBits(try vector["context"].tensor, .long(found.context), "context")
            #expect(try found.count == vector["count"].int)
        }
        expectError(.data) {
            _ = try memorize(tokens, LongTensor([0, 0, 0], [3]), weight, capacity: 4, context: 2)
        }
    }
}

@Suite struct GuardTests {
    private func number(_ json: JSON) throws -> Double {
        switch json.string {
        case "nan": return .nan
        case "inf": return .infinity
        case .some(let text): return try #require(Double(text))
        case nil: return try json.double
        }
    }

    @Test("decisions are Python's")
    func decisions() throws {
        for vector in try Vectors.read("guard.json")["decide"].items {
            let report = try Guard.read(vector["guard"], "guard").decide(
                before: try number(try vector["before"]), after: try number(try vector["after"]),
                examples: try vector["examples"].int)
            #expect(try report.adopted == vector["adopted"].truth, "\(vector.dumped())")
            #expect(try report.reason.rawValue == vector["reason"].text, "\(vector.dumped())")
        }
    }

    @Test("it stops training for Python's reasons")
    func beforeTraining() throws {
        for vector in try Vectors.read("guard.json")["before_training"].items {
            let stop = try Guard.read(vector["guard"], "guard").beforeTraining(
                try vector["value"].number, shipped: try vector["shipped"].number, examples: try vector["examples"].int)
            #expect(try stop?.reason.rawValue == vector["stop"].string, "\(vector.dumped())")
        }
    }
}

@Suite struct PartsTests {
    @Test("the newest are tested on, the next newest are the guard's")
    func cut() throws {
        func texts(_ range: Range<Int>) -> [String] { range.map(String.init) }
        let found = try parts(.texts(texts(0..<100)), most: 50)
        guard case .texts(let train) = found.train, case .texts(let holdout) = found.holdout,
            case .texts(let test) = found.test
        else { return }
        #expect(train == texts(30..<70) && holdout == texts(70..<80) && test == texts(80..<100))
        #expect(found.older == 30)
        expectError(.noExamples) { _ = try parts(.texts(["a"])) }
        expectError(.config) { _ = try parts(.texts(["a", "b"]), test: 1) }
    }
}
