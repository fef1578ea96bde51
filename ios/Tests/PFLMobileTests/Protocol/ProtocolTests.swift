import Testing

@testable import PFLMobile

@Suite struct ProtocolTests {
    let vectors: JSON

    init() throws {
        vectors = try Vectors.read("protocol.json")
    }

    /// Reads a body of a form, and writes it again.
    private func again(_ name: String, _ body: JSON) throws -> JSON {
        func read<Form: Body>(_ form: Form.Type) throws -> JSON {
            let bytes = Array(pythonJSON(body).utf8)
            let written = Bodies.encode(try Bodies.decode(form, bytes, name))
            let found = try Bodies.decode(form, written, name)
            return found.json
        }
        switch name {
        case "FederationInfo": return try read(FederationInfo.self)
        case "Challenge": return try read(Challenge.self)
        case "Enrolment": return try read(Enrolment.self)
        case "Enrolled": return try read(Enrolled.self)
        case "CheckIn": return try read(CheckIn.self)
        case "CheckedIn": return try read(CheckedIn.self)
        case "LatestVersion": return try read(LatestVersion.self)
        case "UploadState": return try read(UploadState.self)
        case "Decline": return try read(Decline.self)
        case "EvaluationReport": return try read(EvaluationReport.self)
        case "ProblemBody": return try read(ProblemBody.self)
        case "UpdateHead":
            // A part of an update file, which says what is wrong with it in its own way.
            do {
                return try UpdateHead(try UpdateHead(body).json).json
            } catch let error as Malformed {
                throw PFLError(.protocol, "\(error)", mend: "")
            }
        default: throw Malformed("the form \(name) is not known here")
        }
    }

    /// Numbers alike whether they are written whole or not, as in Python's own reading.
    private func same(_ one: JSON, _ other: JSON?) -> Bool {
        guard let other else { return false }
        if let a = one.number, let b = other.number { return a == b }
        if let a = one.array, let b = other.array { return a.count == b.count && zip(a, b).allSatisfy { same($0, $1) } }
        if let a = one.object, let b = other.object { return a.allSatisfy { same($0.value, b[$0.key]) } }
        return one == other
    }

    @Test("bodies are read and written alike")
    func valid() throws {
        for (name, several) in try vectors["valid"].fields {
            for body in try several.items {
                let found = try again(name, body)
                #expect(same(body, found), "\(name): \(pythonJSON(found)) of \(pythonJSON(body))")
            }
        }
    }

    @Test("bad bodies are refused")
    func refused() throws {
        var count = 0
        for (name, several) in try vectors["refused"].fields {
            for body in try several.items {
                expectError(.protocol, "\(name) \(pythonJSON(body))") { _ = try again(name, body) }
                count += 1
            }
        }
        #expect(count > 10)
        #expect(throws: Malformed.self) { try Bodies.decode(Decline.self, Array("{\"reason\"".utf8), "x") }
    }

    @Test("a server may say more than is known, at any depth, but not less")
    func lenient() throws {
        let body = Array(#"{"device": "\#(String(repeating: "d", count: 32))", "credential": "c", "more": 1}"#.utf8)
        expectError(.protocol) { _ = try Bodies.decode(Enrolled.self, body, "x") }
        #expect(try Bodies.answer(Enrolled.self, body, "x").credential == "c")
        var info = try #require(try vectors["valid"]["FederationInfo"].items.first?.object)
        var bundle = try #require(info["bundle"]?.object)
        bundle["more"] = .integer(1)
        info["bundle"] = .object(bundle)
        let deeper = Array(pythonJSON(.object(info)).utf8)
        expectError(.protocol) { _ = try Bodies.decode(FederationInfo.self, deeper, "x") }
        #expect(try Bodies.answer(FederationInfo.self, deeper, "x").bundle.name == "keyboard")
        expectError(.protocol) { _ = try Bodies.answer(Enrolled.self, Array("{}".utf8), "x") }
    }

    @Test("a problem may say more than is known, and what is no problem is none")
    func problems() throws {
        var known = try #require(try vectors["valid"]["ProblemBody"].items.first?.object)
        known["trace"] = known["code"]
        #expect(Bodies.fields(Array(pythonJSON(.object(known)).utf8))["code"] == "round-closed")
        #expect(Bodies.fields(Array("<html>".utf8)).isEmpty)
        #expect(Bodies.fields(Array("[]".utf8)).isEmpty)
    }

    @Test("answers are judged as written")
    func answers() throws {
        for answer in try vectors["answers"].items {
            var headers: [String: String] = [:]
            for (name, value) in try answer["headers"].fields { headers[name] = try value.text }
            let head = AnswerHead(status: try answer["status"].int, headers: headers)
            let verdict = judge(head.status, head.header)
            #expect(try verdict.answer.rawValue == answer["is"].text, "\(answer.dumped())")
            #expect(try verdict.then.rawValue == answer["then"].text, "\(answer.dumped())")
        }
    }

    @Test("an aggregator's problem keeps its own code, and is one of its kind")
    func kinds() {
        let problem = PFLError(PFLError.Code(rawValue: "ConfigError"), "m", mend: "m", status: 503)
        #expect(problem.isA(.serverProblem) && problem.isA(.device) && !problem.isA(.unreachable) && problem.passing)
        let other = PFLError(.certificate, "m", mend: "m")
        #expect(other.isA(.notTheAggregator) && other.isA(.device) && !other.passing && !other.isA(.serverProblem))
        #expect(PFLError(.otherProtocol, "m", mend: "m").isA(.protocol))
    }
}
