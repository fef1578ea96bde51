/// Something that `StateStore.load` repaired and the app should tell or report.
public struct StateWarning: Sendable, Equatable {
    /// The version that could not be used.
    public let version: Int
    /// What is wrong with it.
    public let message: String
    /// The version used in its place; 0 = the shipped values.
    public let used: Int
}

/// A state as it was loaded.
public struct LoadedState: Sendable {
    /// Nil while the shipped values serve.
    public let state: PersonalState?
    /// Its number; 0 for the shipped values.
    public let version: Int
    /// What had to be repaired.
    public var warnings: [StateWarning] = []
}

/// Where a trainer takes the personal state from and puts a better one: numbered versions, one of them current.
public protocol StateStore {
    /// Keeps others from changing the state while `body` runs.
    ///
    /// - Throws: `.state`: another is changing it, and does not end soon; what `body` throws
    func hold<Result>(_ body: () throws -> Result) throws -> Result

    /// The current state.
    ///
    /// - Throws: `.state`: it cannot be used, nor can one before it
    func load() throws -> LoadedState

    /// Writes a state as a new version and makes it current; returns its number.
    ///
    /// - Throws: `.storageFull`: the disk is full, and the last good state stays; `.nonFinite`: a tensor is NaN or infinite,
    ///   and nothing is written; `.state` as `write`
    func save(_ state: PersonalState) throws -> Int

    /// Writes a state as a new version without making it current; returns its number.
    ///
    /// - Throws: `.state`: it holds a word that was forgotten while this state was trained, or as `hold`; `.storageFull` and
    ///   `.nonFinite` as `save`
    func write(_ state: PersonalState) throws -> Int

    /// Words that must not be learned again.
    ///
    /// - Throws: `.state`: the list is damaged; it is never taken for empty
    func blocked() throws -> BlockList
}
