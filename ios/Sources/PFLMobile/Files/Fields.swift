/// Takes the fields of a JSON object, each of one type; at the end, what nobody took is refused. All errors are `Malformed`
/// and name the field.
struct Fields {
    let path: String
    /// Whether what nobody took is ignored, as newer servers may say more.
    let lenient: Bool
    private let object: JSONObject
    private var taken: Set<Exact> = []

    init(_ json: JSON, _ path: String = "", lenient: Bool = false) throws {
        guard let object = json.object else { throw Malformed("\(path.isEmpty ? "it" : path): an object is expected") }
        self.object = object
        self.path = path
        self.lenient = lenient
    }

    /// A reader of one value: the value, and where it stands.
    typealias Reader<Value> = (JSON, String) throws -> Value

    var names: [String] { object.keys }

    /// The value of a field; nil where it is missing.
    mutating func take(_ name: String) -> JSON? {
        taken.insert(Exact(name))
        return object[name]
    }

    /// A field that must be there.
    mutating func required<Value>(_ name: String, _ read: Reader<Value>) throws -> Value {
        guard let json = take(name) else { throw Malformed("\(place(name)) is missing") }
        return try read(json, place(name))
    }

    /// A field that may be missing, but not null.
    mutating func field<Value>(_ name: String, _ read: Reader<Value>, default value: Value) throws -> Value {
        guard let json = take(name) else { return value }
        return try read(json, place(name))
    }

    /// A field that may be missing or null.
    mutating func maybe<Value>(_ name: String, _ read: Reader<Value>) throws -> Value? {
        guard let json = take(name), !json.isNull else { return nil }
        return try read(json, place(name))
    }

    /// A field that must be there, but may be null.
    mutating func nullable<Value>(_ name: String, _ read: Reader<Value>) throws -> Value? {
        guard let json = take(name) else { throw Malformed("\(place(name)) is missing") }
        return json.isNull ? nil : try read(json, place(name))
    }

    /// Refuses fields that nobody took.
    func done() throws {
        if lenient { return }
        for name in object.keys where !taken.contains(Exact(name)) {
            throw Malformed("\(place(name)) is no field. \(near(name, taken.map(\.text)))")
        }
    }

    func place(_ name: String) -> String { path.isEmpty ? name : "\(path).\(name)" }

    /// A whole number; no string, and nothing with a point or exponent.
    static func whole(_ json: JSON, _ path: String) throws -> Int {
        guard let value = json.integer else { throw Malformed("\(path): a whole number below 2^63 is expected") }
        return value
    }

    /// A finite number.
    static func finite(_ json: JSON, _ path: String) throws -> Double {
        guard let value = json.number, value.isFinite else { throw Malformed("\(path): a finite number is expected") }
        return value
    }

    /// True or false.
    static func truth(_ json: JSON, _ path: String) throws -> Bool {
        guard let value = json.bool else { throw Malformed("\(path): true or false is expected") }
        return value
    }

    /// A text.
    static func text(_ json: JSON, _ path: String) throws -> String {
        guard let value = json.string else { throw Malformed("\(path): text is expected") }
        return value
    }

    /// A list of values of one type.
    static func list<Value>(_ read: @escaping Reader<Value>) -> Reader<[Value]> {
        { json, path in
            guard let items = json.array else { throw Malformed("\(path): a list is expected") }
            return try items.enumerated().map { try read($1, "\(path)[\($0)]") }
        }
    }

    /// Values of one type by name, in order.
    static func named<Value>(_ read: @escaping Reader<Value>) -> Reader<[(name: String, value: Value)]> {
        { json, path in
            guard let fields = json.object else { throw Malformed("\(path): an object is expected") }
            return try fields.map { ($0.key, try read($0.value, "\(path).\($0.key)")) }
        }
    }

    /// One of a few words.
    static func word<Value: RawRepresentable & CaseIterable>(_ type: Value.Type) -> Reader<Value>
    where Value.RawValue == String {
        { json, path in
            guard let text = json.string, let value = Value(rawValue: text) else {
                let words = Value.allCases.map { "'\($0.rawValue)'" }.joined(separator: ", ")
                throw Malformed("\(path): one of \(words) is expected")
            }
            return value
        }
    }
}
