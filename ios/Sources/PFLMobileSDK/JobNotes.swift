import Foundation
import PFLMobile

/// How the last job of a model ended. A job that the phone took back before its end is none.
public struct JobOutcome: Sendable, Equatable, Codable {
    /// Seconds since 1970.
    public let began: Double
    /// Likewise.
    public let ended: Double
    /// A word for how it ended (`adopted`, `kept`, `not-enough-examples`, ...); of a failure the code of its `PFLError`, or the name
    /// of the error's type.
    public let code: String
    /// Whether it failed; the next one tries again.
    public let failed: Bool

    /// When what was done last began: a long job must not push the next one further and further away.
    func since(_ last: Double?) -> Double? {
        if let last, (began...max(began, ended)).contains(last) { began } else { last }
    }
}

/// What jobs keep in a model's folder: how they ended. A damaged file counts as none.
struct JobNotes: Sendable {
    enum Kind: String, Sendable, CaseIterable {
        case personalization
        case rounds
    }

    private let folder: URL

    /// - Parameter folder: of the model
    init(_ folder: URL) {
        self.folder = folder
    }

    func outcome(_ kind: Kind) -> JobOutcome? { read(file(kind)) }

    /// A full disk keeps no job from having ended.
    func ended(_ kind: Kind, _ outcome: JobOutcome) {
        // where the model was erased there is nothing to note
        if FileManager.default.fileExists(atPath: folder.path) { try? write(outcome, file(kind)) }
    }

    /// Forgets how jobs ended.
    func erase() {
        for kind in Kind.allCases { try? FileManager.default.removeItem(at: file(kind)) }
    }

    private func file(_ kind: Kind) -> URL { folder.appendingPathComponent("job-\(kind.rawValue).json") }
}

/// Which jobs are scheduled, as that outlives the process; nothing in it is secret.
struct JobSchedule: Sendable {
    private let file: URL

    /// - Parameters:
    ///   - folder: of the app's schedules
    ///   - identifier: of the job
    init(_ folder: URL, _ identifier: String) {
        file = folder.appendingPathComponent("\(identifier).json")
    }

    /// Nil where it is not scheduled.
    var constraints: PersonalizationConstraints? { read(file) }

    /// - Throws: `.storageFull` or `.unwritable`: it cannot be kept
    func put(_ constraints: PersonalizationConstraints) throws {
        do {
            try FileManager.default.createDirectory(
                at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
            try write(constraints, file)
        } catch {
            let isFull = (error as? CocoaError)?.code == .fileWriteOutOfSpace
            throw PFLError(
                isFull ? .storageFull : .unwritable, "the schedule cannot be kept in \(file.path): \(error)",
                mend: "free some space, and schedule it again", cause: error)
        }
    }

    func remove() { try? FileManager.default.removeItem(at: file) }
}

private func read<Value: Decodable>(_ file: URL) -> Value? {
    (try? Data(contentsOf: file)).flatMap { try? JSONDecoder().decode(Value.self, from: $0) }
}

private func write(_ value: some Encodable, _ file: URL) throws {
    try JSONEncoder().encode(value).write(to: file, options: .atomic)
}
