/// What predictions use of the versions of a personal state that rounds made: a task's plan may serve a copy (Ditto) or a mix (APFL)
/// where the bundle's own plan serves something else. Versions that are not noted are served by the bundle's plan, so a file that is
/// damaged or was lost does no more than that.
final class ServeNotes: Sendable {
    private let path: String
    private let files: AtomicFiles
    /// Held by who reads or writes.
    private let turn = Locked(())

    /// - Parameter path: of the file
    init(_ path: String, files: AtomicFiles = AtomicFiles()) {
        self.path = path
        self.files = files
    }

    /// What is served of a version; nil where no round made it.
    func of(_ version: Int) -> Serve? { turn { _ in read()[version] } }

    /// Notes it before the version serves.
    ///
    /// - Parameter there: the versions that are kept beside it
    func put(_ version: Int, _ serve: Serve, there: [Int]) throws {
        try turn { _ in
            var now = read().filter { there.contains($0.key) }
            now[version] = serve
            try write(now)
        }
    }

    /// Forgets versions that are gone, whose numbers may be given anew.
    func keep(_ there: [Int]) throws {
        try turn { _ in
            let now = read()
            let kept = now.filter { there.contains($0.key) }
            if kept.count != now.count { try write(kept) }
        }
    }

    private func read() -> [Int: Serve] {
        guard let bytes = try? readBytes(path), let all = try? parseJSON(bytes: bytes),
            let found = try? Fields.named(Serve.read)(all, "")
        else { return [:] }
        let numbers = found.compactMap { entry in Int(entry.name).map { ($0, entry.value) } }
        return numbers.count == found.count ? Dictionary(numbers) { $1 } : [:]
    }

    private func write(_ all: [Int: Serve]) throws {
        let entries = all.sorted { $0.key < $1.key }.map { (key: String($0.key), value: $0.value.json) }
        try files.write(path, Array((pythonJSON(.object(JSONObject(entries))) + "\n").utf8))
    }
}
