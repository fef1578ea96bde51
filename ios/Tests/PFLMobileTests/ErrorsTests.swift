import Testing

@testable import PFLMobile

@Suite struct ErrorsTests {
    @Test("an error is of its kind and of those above it")
    func kinds() {
        let error = PFLError(.updateTensors, "it", mend: "do")
        #expect(error.isA(.updateTensors) && error.isA(.updateFile) && error.isA(.tensorFile) && !error.isA(.state))
        #expect("\(error)" == "UpdateTensorsError: it\n  mend: do")
        #expect(PFLError.Code(rawValue: "round-closed").parent == nil)
    }

    @Test("a mend names what is near, or all that is known")
    func nearNames() {
        #expect(near("gradient", ["evaluate", "gradients"]) == "did you mean 'gradients'?")
        #expect(near("x", ["alpha", "beta"]) == "known: alpha, beta")
        #expect(near("x", [String]()) == "none are known")
    }
}
