import Foundation

/// Characters that a name may have.
let mostName = 200

/// Checks of single fields of a plan; all throw `Malformed`.
enum Check {
    static func name(_ field: String, _ name: String?) throws {
        guard let name else { return }
        if name.isEmpty || name.unicodeScalars.count > mostName {
            throw Malformed("\(field): a name has 1 to \(mostName) characters")
        }
    }

    static func patterns(_ field: String, _ patterns: [String]) throws {
        if patterns.isEmpty { throw Malformed("\(field): at least one pattern is needed") }
        for pattern in patterns { try name(field, pattern) }
    }

    static func whole(_ field: String, _ value: Int?) throws {
        if let value, value < 1 { throw Malformed("\(field): \(value) is less than 1") }
    }

    static func positive(_ field: String, _ value: Double?) throws {
        if let value, !(value > 0 && value.isFinite) {
            throw Malformed("\(field): \(general(value)) is not a number above 0")
        }
    }

    static func notNegative(_ field: String, _ value: Double, most: Double = .greatestFiniteMagnitude) throws {
        if !(value >= 0 && value <= most) {
            throw Malformed("\(field): \(general(value)) is not a number from 0 to \(general(most))")
        }
    }

    static func fraction(_ field: String, _ value: Double) throws {
        if !(value >= 0 && value < 1) { throw Malformed("\(field): \(general(value)) is not from 0 to below 1") }
    }

    /// Refuses the name of a set that is not the device's to write.
    static func ownName(_ field: String, _ name: String) throws {
        if ["initial", "global", "start", "zero"].contains(name) {
            throw Malformed("\(field): '\(name)' is the name of a fixed set; choose another name")
        }
    }
}

/// A number in at most so many digits, as C and Python print it with `%g`.
func general(_ value: Double, _ digits: Int = 6) -> String {
    String(format: "%.\(digits)g", value)
}
