import Testing

@testable import PFLMobile

/// Fails unless shape and every bit agree.
func expectBits(
    _ want: Tensor, _ found: Tensor?, _ what: String, _ location: SourceLocation = #_sourceLocation
) {
    guard let found else {
        Issue.record("\(what) is missing", sourceLocation: location)
        return
    }
    let values = "\(want.doubles.prefix(9)) but found \(found.doubles.prefix(9))"
    #expect(want.sameBits(found), "\(what): wanted \(want.signature) \(values)", sourceLocation: location)
}

/// Fails unless names, shapes and every bit agree.
func expectBits(
    _ want: TensorSet, _ found: TensorSet, _ what: String, _ location: SourceLocation = #_sourceLocation
) {
    #expect(want.keys.sorted() == found.keys.sorted(), "\(what)", sourceLocation: location)
    for (name, tensor) in want { expectBits(tensor, found[name], "\(what): \(name)", location) }
}

/// Fails unless names, shapes and every bit agree.
func expectBits(
    _ want: [String: FloatTensor], _ found: [String: FloatTensor], _ what: String,
    _ location: SourceLocation = #_sourceLocation
) {
    expectBits(want.mapValues(Tensor.float), found.mapValues(Tensor.float), what, location)
}

/// Fails unless an error of this kind is thrown.
func expectError(
    _ code: PFLError.Code, _ what: String = "", _ location: SourceLocation = #_sourceLocation, _ body: () throws -> Void
) {
    do {
        try body()
        Issue.record("nothing was refused: \(what)", sourceLocation: location)
    } catch let error as PFLError {
        #expect(error.isA(code), "\(what): \(error)", sourceLocation: location)
    } catch {
        Issue.record("\(what): \(error)", sourceLocation: location)
    }
}

/// Fails unless an error of this kind is thrown; gives the error.
///
/// - Parameter says: what stands in its message
@discardableResult
func expectRefused(
    _ code: PFLError.Code, _ says: String = "", _ location: SourceLocation = #_sourceLocation,
    _ body: () async throws -> Void
) async -> PFLError? {
    do {
        try await body()
        Issue.record("nothing was refused", sourceLocation: location)
    } catch let error as PFLError {
        #expect(error.isA(code) && (says.isEmpty || error.message.contains(says)), "\(error)", sourceLocation: location)
        return error
    } catch {
        Issue.record("\(error)", sourceLocation: location)
    }
    return nil
}
