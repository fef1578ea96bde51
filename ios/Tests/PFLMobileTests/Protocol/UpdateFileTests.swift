import Testing

@testable import PFLMobile

@Suite struct UpdateFileTests {
    let vectors: JSON
    let layout: UpdateLayout
    let bytes: [UInt8]

    init() throws {
        vectors = try Vectors.read("updates.json")
        layout = UpdateLayout(
            shapes: try vectors["layout"].items.map { (try $0["name"].text, try $0["shape"].items.map { try $0.int }) })
        bytes = try readBytes("\(Vectors.folder)/\(try vectors["valid"]["file"].text)")
    }

    @Test("a valid update is read and written alike")
    func valid() throws {
        let (head, offset) = try UpdateFile.parsePrefix(bytes, layout, totalLength: bytes.count)
        #expect(try offset == vectors["valid"]["payload_offset"].int)
        #expect(try head.json == vectors["valid"]["head"])
        let values = try vectors["valid"]["values"].floats
        #expect(values.withUnsafeBytes { $0.elementsEqual(bytes[offset...]) })
        #expect(try UpdateFile.encode(head, layout.unpack(values), layout) == bytes)
        #expect(bytes.count <= UpdateFile.sizeLimit(layout))
    }

    @Test("other files are refused by their code")
    func refused() throws {
        let codes: [String: PFLError.Code] = ["wrong-tensors": .updateTensors, "malformed-update": .updateFile]
        for vector in try vectors["refused"].items {
            let name = try vector["file"].text
            let data = try readBytes("\(Vectors.folder)/\(name)")
            do {
                _ = try UpdateFile.parsePrefix(data, layout, totalLength: data.count)
                // Its header is fine.
                #expect(try vector["refused"].text == "update-not-finite", "\(name)")
            } catch let error as PFLError {
                #expect(try error.code == codes[vector["refused"].text], "\(name): \(error)")
            }
        }
    }

    @Test("what is not asked for is not written")
    func notAsked() throws {
        let head = try UpdateFile.parsePrefix(bytes, layout, totalLength: bytes.count).head
        let tensors = layout.unpack(try vectors["valid"]["values"].floats)
        var missing = tensors
        missing["Z"] = nil
        expectError(.tensorMismatch) { _ = try UpdateFile.encode(head, missing, layout) }
        var more = tensors
        more["more"] = tensors["Z"]
        expectError(.tensorMismatch) { _ = try UpdateFile.encode(head, more, layout) }
        var broken = tensors
        broken["Z"] = FloatTensor([1, .nan], [2])
        expectError(.nonFinite) { _ = try UpdateFile.encode(head, broken, layout) }
        let turned = UpdateLayout(shapes: layout.shapes.reversed())
        expectError(.updateFile) { _ = try UpdateFile.encode(head, tensors, turned) }
    }
}
