import Testing

@testable import PFLMobile

@Suite struct ServeNotesTests {
    private let temporary: TemporaryFolder

    init() throws { temporary = try TemporaryFolder() }

    private var path: String { temporary("serves.json") }

    @Test("what is served of a version is noted as long as the version is kept")
    func noted() throws {
        let notes = ServeNotes(path)
        let mix = Serve.mix(one: "own", other: "theta", alpha: 0.25)
        #expect(notes.of(1) == nil)
        try notes.put(1, .named("own"), there: [1])
        try notes.put(2, mix, there: [1, 2])
        #expect(ServeNotes(path).of(1) == .named("own") && ServeNotes(path).of(2) == mix)
        try notes.put(4, .named("theta"), there: [2, 4])
        #expect(notes.of(1) == nil && notes.of(2) == mix && notes.of(4) == .named("theta"))
        try notes.keep([4])
        #expect(notes.of(2) == nil && notes.of(4) == .named("theta"))
    }

    @Test(
        "a damaged file counts as none, and is written anew", arguments: ["", "[]", "{\"one\":\"own\"}", "{\"1\":7}"])
    func damaged(_ text: String) throws {
        try AtomicFiles().write(path, Array(text.utf8))
        let notes = ServeNotes(path)
        #expect(notes.of(1) == nil)
        try notes.put(2, .named("own"), there: [2])
        #expect(notes.of(2) == .named("own"))
    }
}
