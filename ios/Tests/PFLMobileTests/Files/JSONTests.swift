import Testing

@testable import PFLMobile

@Suite struct JSONTests {
    @Test("values are what they say")
    func values() throws {
        let found = try parseJSON(#" {"a": [1, -0, 2.5, 1e3, true, null], "\u00e9\n": "\ud83d\ude00"} "#)
        #expect(try found.fields.keys == ["a", "é\n"])
        #expect(
            try found["a"].items == [.integer(1), .integer(0), .double(2.5), .double(1000), .bool(true), .null])
        #expect(try found["é\n"] == .string("😀"))
    }

    @Test(
        "what is no JSON is refused",
        arguments: [
            "", "{", "[1,]", "{\"a\":1,}", "{\"a\" 1}", "{a:1}", "[1 2]", "01", "1.", ".5", "-", "+1", "1e", "tru",
            "True",
            "nul", "'a'", "\"a", "\"\u{1}\"", "\"\\x\"", "\"\\u12g4\"", "\"\\u１２３４\"", "{\"a\":1,\"a\":2}",
            "{\"a\":1,\"\\u0061\":2}", "NaN", "Infinity", "-Infinity", "1e999",
            "12345678901234567890123456789012345678901",
            "1 1", "\u{a0}1", "[1]\0", "//a\n1",
        ])
    func refused(_ text: String) {
        #expect(throws: Malformed.self) { try parseJSON(text) }
    }

    @Test("names that differ only in how an accent is written are two names")
    func exactNames() throws {
        let found = try parseJSON("{\"\u{e9}\": 1, \"e\u{301}\": 2, \"\u{212a}\": 3, \"K\": 4}").fields
        #expect(found.count == 4)
        #expect(found["K"] == .integer(4))
        #expect(found["\u{212a}"] == .integer(3))
        #expect(JSON.string("\u{e9}") != .string("e\u{301}"))
    }

    @Test("halves of surrogate pairs are kept where a text is only passed on")
    func halves() throws {
        let found = try parseJSON(#"["a\ud800b", "\ude00\ud83d"]"#)
        #expect(found == .array([.points([0x61, 0xd800, 0x62]), .points([0xde00, 0xd83d])]))
        #expect(pythonJSON(found) == #"["a\ud800b", "\ude00\ud83d"]"#)
        #expect(throws: Malformed.self) { try parseJSON(#"{"\ud800": 1}"#) }
    }

    @Test("what Python writes for other numbers is read where it is allowed")
    func notFinite() throws {
        let found = try parseJSON("[NaN, Infinity, -Infinity, 1e999]", finite: false)
        #expect(pythonJSON(found) == "[NaN, Infinity, -Infinity, Infinity]")
    }

    @Test("depth and size have bounds")
    func bounds() throws {
        func nested(_ depth: Int) -> String {
            String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
        }
        _ = try parseJSON(nested(JSONLimits.depth))
        #expect(throws: Malformed.self) { try parseJSON(nested(JSONLimits.depth + 1)) }
        #expect(throws: Malformed.self) { try parseJSON(nested(100_000)) }
        #expect(throws: Malformed.self) { try parseJSON("[1,2,3,4]", values: 3) }
    }

    @Test("text may begin with a mark of its encoding")
    func encodings() throws {
        let text = "[\"ü\"]"
        let want = try parseJSON(text)
        let marked = "\u{feff}\(text)"
        let units = Array(marked.utf16)
        let scalars = marked.unicodeScalars.map(\.value)
        let encoded: [[UInt8]] = [
            Array(text.utf8), Array(marked.utf8),
            units.flatMap { [UInt8($0 & 0xff), UInt8($0 >> 8)] }, units.flatMap { [UInt8($0 >> 8), UInt8($0 & 0xff)] },
            scalars.flatMap { [UInt8($0 & 0xff), UInt8($0 >> 8), 0, 0] },
            scalars.flatMap { [0, 0, UInt8($0 >> 8), UInt8($0 & 0xff)] },
        ]
        for bytes in encoded { #expect(try parseJSON(bytes: bytes) == want) }
        #expect(throws: Malformed.self) { try parseJSON(bytes: [0x22, 0xff, 0x22]) }
        // Half of a surrogate pair in UTF-8.
        #expect(throws: Malformed.self) { try parseJSON(bytes: [34, 0xed, 0xa0, 0x80, 34]) }
    }
}

@Suite struct PythonJSONTests {
    @Test(
        "floats are written as Python writes them",
        arguments: [
            (0.25, "0.25"), (1.7e9, "1700000000.0"), (1e15, "1000000000000000.0"), (1e16, "1e+16"), (1.5e22, "1.5e+22"),
            (1e-4, "0.0001"), (1e-5, "1e-05"), (-1.25e-7, "-1.25e-07"), (0.1, "0.1"), (-0.0, "-0.0"),
            (.leastNonzeroMagnitude, "5e-324"),
            (1.7976931348623157e308, "1.7976931348623157e+308"), (2e-3, "0.002"), (123456.789, "123456.789"),
            (1764467469.125, "1764467469.125"), (9007199254740994.0, "9007199254740994.0"), (3.0, "3.0"),
        ] as [(Double, String)])
    func floats(_ value: Double, _ want: String) {
        #expect(pythonFloat(value) == want)
    }

    @Test("floats come back as they were")
    func roundTrip() {
        for index in 0..<2000 {
            let value = Double(bitPattern: SplitMix64.output(1, UInt64(index)))
            if value.isFinite { #expect(Double(pythonFloat(value)) == value) }
        }
    }

    @Test("keys are sorted and text is ASCII")
    func keys() throws {
        let text = #"{"b":[1,2.0,null,true],"a":"\u00ef\n\"\u0001\u007f","\ud83d\ude00":{},"\uff5a":[]}"#
        let want = #"{"a": "\u00ef\n\"\u0001\u007f", "b": [1, 2.0, null, true], "\uff5a": [], "\ud83d\ude00": {}}"#
        #expect(pythonJSON(try parseJSON(text)) == want)
    }
}
