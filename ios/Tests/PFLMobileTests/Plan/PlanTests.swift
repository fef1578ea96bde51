import Testing

@testable import PFLMobile

@Suite struct PlanTests {
    let vectors: JSON
    let valid: [JSON]

    init() throws {
        vectors = try Vectors.read("plan.json")
        valid = try vectors["valid"].items
    }

    private func plan(_ json: JSON) throws -> Plan { try Plan(json: json["plan"].dumped()) }

    @Test("valid plans get Python's defaults and unroll alike")
    func defaults() throws {
        for vector in valid {
            let name = try vector["name"].text
            let plan = try plan(vector)
            #expect(try parseJSON(plan.dump()) == vector["full"], "\(name)")
            #expect(try Plan(json: plan.dump()).dump() == plan.dump(), "\(name)")
            #expect(try plan.steps.map(\.phase.kind) == vector["unrolled"].texts, "\(name)")
        }
    }

    @Test("plans read in the same words")
    func words() throws {
        for vector in valid {
            #expect(try plan(vector).words == vector["words"].texts)
            #expect(try plan(vector).reports == vector["reports"].texts)
        }
    }

    @Test("phases say the same of themselves")
    func asks() throws {
        for vector in valid {
            let steps = try plan(vector).distinctSteps
            let asks = try vector["asks"].items
            #expect(steps.count == asks.count)
            for (step, want) in zip(steps, asks) {
                let phase = step.phase
                let who = "\(try vector["name"].text): \(phase.kind)"
                #expect(try phase.kind == want["kind"].text, "\(who)")
                #expect(try phase.reads == want["reads"].texts, "\(who)")
                #expect(try phase.stepReads == want["step_reads"].texts, "\(who)")
                #expect(try phase.writes == want["writes"].string, "\(who)")
                #expect(try phase.makesCopy == want["makes_copy"].string, "\(who)")
                #expect(try phase.changes == want["changes"].string, "\(who)")
                #expect(try phase.takesOver == want["takes_over"].string, "\(who)")
                #expect(try phase.reported == want["reported"].string, "\(who)")
                #expect(try phase.examples?.rawValue == want["examples"].string, "\(who)")
                #expect(try phase.remembers == want["remembers"].truth, "\(who)")
                #expect(try phase.programs == want["programs"].texts, "\(who)")
                #expect(try phase.metrics == want["metrics"].texts, "\(who)")
                #expect(try phase.leavesRate == want["leaves_rate"].truth, "\(who)")
                #expect(try phase.needsRate == want["needs_rate"].truth, "\(who)")
                for steps in try want["optimizer_steps"].items {
                    let numbers = try steps.items.map { try $0.int }
                    #expect(phase.optimizerSteps(rows: numbers[0], batch: numbers[1]) == numbers[2], "\(who)")
                }
            }
        }
    }

    @Test("invalid plans are refused")
    func invalid() throws {
        for vector in try vectors["invalid"].items {
            expectError(.config, try vector["name"].text) { _ = try plan(vector) }
        }
    }

    @Test(
        "what is not JSON is refused",
        arguments: [
            "", "{", "{\"phases\": }", "[1,]", "{\"seed\": 1, \"seed\": 1}", String(repeating: "[", count: 200),
            "{\"seed\": NaN}",
        ])
    func notJSON(_ text: String) {
        expectError(.config, text) { _ = try Plan(json: text) }
    }

    @Test("plans that do not fit a model are refused by the same errors")
    func fit() throws {
        let fit = try vectors["fit"]
        let table = try fit["tensors"].table
        let sets = try fit["sets"].texts
        for vector in try fit["cases"].items {
            var refused: String?
            do {
                try checkPlan(try plan(vector), table, sets: sets, copies: [])
            } catch let error as PFLError {
                refused = error.code.rawValue
            }
            let name = try vector["name"].text
            #expect(try refused == vector["refused"].string, "\(name)")
        }
    }

    @Test("patterns select the same tensors")
    func patterns() throws {
        let model = try Vectors.read("model.json")
        let table = try model["tensors"].table
        for (pattern, names) in try model["patterns"].fields {
            #expect(try table.filter { matches(pattern, $0) }.map(\.name) == names.texts, "\(pattern)")
        }
    }

    @Test("a pattern of many stars is matched at once")
    func manyStars() {
        let long = trainedTensor(String(repeating: "a", count: 200), .shared, [])
        #expect(!matches(String(repeating: "*a", count: 99) + "*b", long))
    }

    @Test(
        "numbers are printed as Python prints them",
        arguments: [
            (0.1, "0.1"), (5.0, "5"), (1e-8, "1e-08"), (123456.0, "123456"), (1_234_567.0, "1.23457e+06"),
            (1e30, "1e+30"),
            (-2.5e-5, "-2.5e-05"), (0.0001, "0.0001"), (0.0, "0"), (1.0 / 3, "0.333333"), (.infinity, "inf"),
        ] as [(Double, String)])
    func numbers(_ value: Double, _ text: String) {
        #expect(general(value) == text)
    }
}
