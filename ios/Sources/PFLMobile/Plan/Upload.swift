/// Names and shapes of everything that the plan sends, in order.
///
/// - Throws: `.config`: an upload pattern matches nothing, or personal tensors only
func updateShapes(_ plan: Plan, _ table: [DeviceTensor]) throws -> [(name: String, shape: [Int])] {
    let shapes = Dictionary(table.map { ($0.name, $0.shape) }) { first, _ in first }
    let sent = try uploaded(plan.upload, table).map { (name: $0, shape: shapes[$0] ?? []) }
    return sent
        + plan.uploadCopies.flatMap { copy in sent.map { (name: copyKey(copy, $0.name), shape: $0.shape) } }
}

/// Refuses a plan whose update would hold nothing, or nothing but zeros.
///
/// - Throws: `.config`: nothing is uploaded, or no phase changes what is; or a pattern matches nothing
func checkSends(_ plan: Plan, _ table: [DeviceTensor]) throws {
    let sets = Set(plan.uploadCopies + ["theta"])
    var changed: Set<String> = []
    for step in plan.distinctSteps {
        if let set = step.phase.changes, sets.contains(set) { changed.formUnion(try step.phase.tensors(table)) }
    }
    if try !uploaded(plan.upload, table).contains(where: changed.contains) {
        let what = plan.upload.isEmpty ? "sends nothing" : "changes nothing of what it sends"
        throw PFLError(
            .config, "the plan \(what), so no update can come of it",
            mend: "train shared tensors and name them in upload; `pfl serve --strategy NAME` does so")
    }
}

/// After minus before, float32, of what the plan sends, by name; personal tensors are never among it.
///
/// - Parameters:
///   - before: values that the aggregator sent
///   - copiesBefore: copies before training; a missing one was zero
///   - after: tensors after training
///   - copiesAfter: copies after training
func change(
    _ plan: Plan, _ table: [DeviceTensor], before: TensorSet, copiesBefore: [String: TensorSet], after: TensorSet,
    copiesAfter: [String: TensorSet]
) throws -> [String: FloatTensor] {
    var result: [String: FloatTensor] = [:]
    let sent = try uploaded(plan.upload, table)
    for name in sent { result[name] = try minus(after[name], before[name], name) }
    for copy in plan.uploadCopies {
        for name in sent {
            guard let value = copiesAfter[copy]?[name] else { continue }
            result[copyKey(copy, name)] = try minus(value, copiesBefore[copy]?[name], name)
        }
    }
    return result
}

private func minus(_ after: Tensor?, _ before: Tensor?, _ name: String) throws -> FloatTensor {
    guard case .float(var now) = after else {
        throw PFLError(.tensorMismatch, "'\(name)' is no float32 after training", mend: "export the bundle again")
    }
    guard let then = before?.float else { return now }
    for i in now.values.indices { now.values[i] -= then.values[i] }
    return now
}
