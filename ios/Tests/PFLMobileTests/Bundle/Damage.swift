import Foundation
import Testing

@testable import PFLMobile

/// The steps of `conformance/bundles.json` and `states.json`.
enum Damage {
    /// Files of `conformance/bundles/small.pflb` in a folder.
    static func unpackSmall(_ folder: String) throws {
        let archive = try ZipArchive(try openRegular("\(Vectors.folder)/bundles/small.pflb"))
        for item in archive.items {
            var data: [UInt8] = []
            try archive.read(item) {
                data += $0
                return true
            }
            try write("\(folder)/\(item.name)", data)
        }
    }

    static func write(_ path: String, _ data: [UInt8]) throws {
        try FileManager.default.createDirectory(
            atPath: PFLMobile.folder(of: path), withIntermediateDirectories: true)
        try Data(data).write(to: URL(fileURLWithPath: path))
    }

    static func apply(_ step: JSON, _ base: String) throws {
        let name = try step["file"].text
        let file = name.isEmpty ? base : "\(base)/\(name)"
        func change(_ change: ([UInt8]) throws -> [UInt8]) throws { try write(file, try change(try readBytes(file))) }
        switch try step["op"].text {
        case "remove": try FileManager.default.removeItem(atPath: file)
        case "folder": try FileManager.default.createDirectory(atPath: file, withIntermediateDirectories: true)
        case "link": try FileManager.default.createSymbolicLink(atPath: file, withDestinationPath: try step["to"].text)
        case "write": try write(file, Array(try step["text"].text.utf8))
        case "cut": try change { Array($0.prefix(try step["keep"].int)) }
        case "drop": try change { Array($0.dropLast(try step["bytes"].int)) }
        case "replace":
            try change { data in
                let value = try #require(fromHex(try step["hex"].text))
                let at = try step["at"].int
                return Array(data[..<at]) + value + data[(at + value.count)...]
            }
        case "insert":
            try change { data in
                let value = try #require(fromHex(try step["hex"].text))
                let at = try step["at"].int
                let place = at < 0 ? data.count : at
                return Array(data[..<place]) + value + data[place...]
            }
        case "text":
            try change { data in
                let old = Data(try step["old"].text.utf8)
                let found = try #require(Data(data).range(of: old))
                return Array(data[..<found.lowerBound]) + Array(try step["new"].text.utf8) + data[found.upperBound...]
            }
        case "json":
            try change { data in
                let path = try step["path"].items
                return Array(pythonJSON(try edit(try parseJSON(bytes: data), path[...], step.maybe("value"))).utf8)
            }
        case "list": try list(base, name)
        default: Issue.record("no step \(step)")
        }
    }

    private static func edit(_ json: JSON, _ path: ArraySlice<JSON>, _ value: JSON?) throws -> JSON {
        let key = try #require(path.first)
        func changed(_ inner: JSON?) throws -> JSON? {
            if path.count == 1 { return value }
            let inner = try #require(inner)
            return try edit(inner, path.dropFirst(), value)
        }
        switch json {
        case .object(var fields):
            let name = try key.text
            fields[name] = try changed(fields[name])
            return .object(fields)
        case .array(var items):
            let at = try key.int
            if let new = try changed(items[at]) { items[at] = new } else { items.remove(at: at) }
            return .array(items)
        default:
            throw Malformed("no field \(key)")
        }
    }

    private static func list(_ base: String, _ file: String) throws {
        let data = try readBytes("\(base)/\(file)")
        let entry = object(("sha256", .string(Sha256.hex(data))), ("bytes", .integer(data.count)))
        let manifest = "\(base)/manifest.json"
        let listed = try edit(try parseJSON(bytes: try readBytes(manifest)), [.string("files"), .string(file)], entry)
        let total = try listed["files"].fields.reduce(0) { try $0 + $1.value["bytes"].int }
        let whole = try edit(listed, [.string("measured"), .string("total_bytes")], .integer(total))
        try write(manifest, Array(pythonJSON(whole).utf8))
    }
}
