/// What a device counts in a file of its folder. A file that is damaged or was lost is no count of nothing: it is refused.
struct CountFile<Count: Body> {
    private let path: String
    private let files: AtomicFiles
    /// What is counted, as it is on the disk.
    private(set) var now: Count

    /// - Parameters:
    ///   - path: of the file; where there is none, nothing was counted
    ///   - begun: whether it must be there, so that one that is missing was lost
    ///   - nothing: a count of nothing
    ///   - what: is not known where the file is damaged
    ///   - mend: what can be done then
    /// - Throws: `.deviceFolder`: the file is damaged or was lost, or of a newer version
    init(
        _ path: String, begun: Bool, nothing: Count, files: AtomicFiles, unknown what: String, mend: String
    ) throws {
        self.path = path
        self.files = files
        func damaged(_ why: String, _ cause: any Error) -> PFLError {
            var found = PFLError(
                .deviceFolder, "\(path) is damaged (\(why)), so it is not known \(what)", mend: mend, cause: cause)
            found.damaged = (cause as? SystemError)?.isMissing ?? true
            return found
        }
        do {
            let json = try parseJSON(bytes: try readBytes(path))
            if let schema = json.object?["schema_version"]?.integer, schema != DeviceFolder.schemaVersion {
                throw PFLError(
                    .deviceFolder, "\(path) has schema \(schema), this version reads \(DeviceFolder.schemaVersion)",
                    mend: "update the app")
            }
            now = try Bodies.read(Count.self, json)
        } catch let error as PFLError {
            throw error
        } catch let error as SystemError where error.isMissing {
            if begun { throw damaged("it is missing", error) }
            now = nothing
        } catch {
            throw damaged("\(error)", error)
        }
    }

    /// Has the file, so that a loss of it is seen.
    func begin() throws {
        if try diskErrors(path, { try status(path) }) == nil { try put(now) }
    }

    /// Counts more; it is on the disk when this returns.
    mutating func write(_ more: Count) throws {
        try put(more)
        now = more
    }

    private func put(_ count: Count) throws { try files.write(path, Array((pythonJSON(count.json) + "\n").utf8)) }
}
