/// JSON documents of bundles that say their kind and schema: the manifest, schedules.
struct Documents {
    /// The document, as messages name it.
    let what: String
    /// What its field `kind` says.
    let kind: String
    /// The newest schema that this version reads.
    let newest: Int
    /// Numbers, texts, lists and so on that it may have.
    let values: Int

    private static let again = "obtain the bundle again, or export it again"

    /// What `read` makes of a document.
    ///
    /// - Throws: `.schemaVersion`: it is of a newer schema, and nothing else of it is looked at; `.invalidManifest`: it is not
    ///   JSON, or breaks the schema, and the first fault is named
    func parse<Found>(_ data: [UInt8], _ read: (JSON, JSONObject) throws -> Found) throws -> Found {
        let raw: JSON
        do {
            raw = try parseJSON(bytes: data, values: values)
        } catch let error as Malformed {
            throw PFLError(
                .invalidManifest, "\(what) is not valid JSON: \(error)", mend: Documents.again, cause: error)
        }
        let version = raw.object?["schema_version"]
        var isNumber = false
        switch version {
        case .integer(let number):
            isNumber = true
            if number > newest { throw newer("\(number)") }
        case .big(let digits):
            isNumber = true
            if !digits.hasPrefix("-") { throw newer(digits) }
        default: break
        }
        guard isNumber, let fields = raw.object, fields["kind"]?.string == kind else {
            throw PFLError(
                .invalidManifest, "\(what) is of another kind: it needs an integer schema_version and kind '\(kind)'",
                mend: Documents.again)
        }
        do {
            if let first = data.first, first != UInt8(ascii: "{"), ![0x20, 0x09, 0x0d, 0x0a].contains(first) {
                throw Malformed("it is not plain UTF-8")
            }
            if !Documents.isWhole(raw) { throw Malformed("it has a half of a surrogate pair") }
            return try read(raw, fields)
        } catch let error as Malformed {
            throw PFLError(
                .invalidManifest, "\(what) is not valid:\n  \(error)", mend: Documents.again, cause: error)
        }
    }

    private func newer(_ number: String) -> PFLError {
        PFLError(
            .schemaVersion, "\(what) has schema version \(number); this version reads up to \(newest)",
            mend: "update the app, or export the bundle with the version in use here")
    }

    /// Whether all its text can be written in UTF-8.
    private static func isWhole(_ json: JSON) -> Bool {
        switch json {
        case .points: false
        case .array(let items): items.allSatisfy(isWhole)
        case .object(let fields): fields.allSatisfy { isWhole($0.value) }
        default: true
        }
    }
}
