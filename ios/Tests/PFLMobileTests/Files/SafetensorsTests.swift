import Foundation
import Testing

@testable import PFLMobile

@Suite struct SafetensorsTests {
    @Test("Python's file is written again byte for byte")
    func python() throws {
        for name in ["state.safetensors", "updates/valid.safetensors"] {
            let path = "\(Vectors.folder)/\(name)"
            let file = try Safetensors.read(try map(path), name)
            let again = try Safetensors.write(file.tensors, metadata: file.metadata)
            if name.hasPrefix("state") { #expect(try again == readBytes(path)) }
            #expect(try Safetensors.read(again, name).metadata == file.metadata)
        }
    }

    @Test("every dtype comes back")
    func everyType() throws {
        var tensors: TensorSet = [
            "scalar": .float(FloatTensor([7], [])), "empty": .float(FloatTensor([], [0, 2])),
        ]
        for type in DType.allCases {
            switch type {
            case .float32: tensors["float32"] = .float(FloatTensor([1, -0.0, .leastNonzeroMagnitude, 3.4e38], [2, 2]))
            case .int64: tensors["int64"] = .long(LongTensor([.min, -1], [2, 1]))
            default:
                let bytes = (0..<3 * type.bytes).map { UInt8($0 % 2) }
                tensors[type.rawValue] = .raw(RawTensor(type, bytes, [3]))
            }
        }
        expectBits(tensors, try Safetensors.read(try Safetensors.write(tensors), "it").tensors, "all")
    }

    @Test("damage that conformance's updates show is refused")
    func damaged() throws {
        let refused = try Vectors.read("updates.json")["refused"].items.map { try $0["file"].text }
        let damaged = refused.filter { (try? Safetensors.read(try map("\(Vectors.folder)/\($0)"), $0)) == nil }
        let want: Set = [
            "a-tensor-missing", "a-tensor-twice", "another-dtype", "cut-short", "header-length-of-another-file",
            "longer-than-its-tensors", "nested-too-deep", "not-json", "not-utf8", "offsets-leave-a-gap",
            "offsets-overlap",
        ]
        #expect(Set(damaged.map { String($0.dropFirst("updates/".count).dropLast(".safetensors".count)) }) == want)
    }

    @Test("headers that do not fit their tensors are refused")
    func headers() throws {
        let good = #""dtype":"U8","shape":[1],"data_offsets":[0,1]"#
        _ = try Safetensors.read(file("{\"a\":{\(good)}}"), "good")
        let bad = [
            "[]", "{} x", "{\"a\":{\(good)},\"a\":{\(good)}}", "{\"a\":1}", "{\"a\":{\(good)},\"b\":{\(good)}}", "{}",
            #"{"a":{"dtype":"U9","shape":[1],"data_offsets":[0,1]}}"#,
            #"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#,
            #"{"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}}"#,
            #"{"a":{"dtype":"U8","shape":[-1,-1],"data_offsets":[0,1]}}"#,
            #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#,
            #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}"#,
            #"{"a":{"dtype":"U8","shape":[9223372036854775807,9223372036854775807,2],"data_offsets":[0,1]}}"#,
            #"{"a":{"dtype":"U8","shape":[1]}}"#,
            "{\"__metadata__\":{\"n\":1},\"a\":{\(good)}}", "{\"__metadata__\":null,\"a\":{\(good)}}",
        ]
        for header in bad { expectError(.tensorFile, header) { _ = try Safetensors.read(file(header), "bad") } }
        expectError(.tensorFile) { _ = try Safetensors.read([UInt8](repeating: 0, count: 7), "short") }
        expectError(.tensorFile) { _ = try Safetensors.read([UInt8](repeating: 255, count: 8), "a negative length") }
    }

    @Test("names that Swift cannot tell apart are refused, not merged")
    func equivalentNames() throws {
        let one = "\"\u{e9}\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}"
        let other = "\"e\u{301}\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}"
        expectError(.tensorFile) { _ = try Safetensors.read(file("{\(one),\(other)}") + [0], "two names") }
    }

    @Test("NaN and infinity are refused where asked")
    func finite() throws {
        let bad: TensorSet = ["w": .float(FloatTensor([1, .nan, -.infinity], [3]))]
        _ = try Safetensors.write(bad)
        expectError(.nonFinite) { _ = try Safetensors.write(bad, finite: true) }
        let half: TensorSet = ["h": .raw(RawTensor(.float16, [0, 0x7c], [1]))]
        expectError(.nonFinite) { _ = try Safetensors.write(half, finite: true) }
        expectError(.tensorFile) { _ = try Safetensors.write(["__metadata__": .float(FloatTensor([1], [1]))]) }
    }

    private func file(_ header: String) -> [UInt8] {
        withUnsafeBytes(of: UInt64(header.utf8.count).littleEndian) { Array($0) } + Array(header.utf8) + [0]
    }
}
