/// Whether a pattern means a tensor: `role:<role>`, `module:<name>`, or a name with `*` (any run) and `?` (any one).
func matches(_ pattern: String, _ tensor: DeviceTensor) -> Bool {
    if pattern.hasPrefix("role:") { return tensor.role.rawValue == pattern.dropFirst(5) }
    if pattern.hasPrefix("module:") { return tensor.module.map { $0 == pattern.dropFirst(7) } ?? false }
    return fits(Array(pattern.unicodeScalars), Array(tensor.name.unicodeScalars))
}

/// Whether a name fits a pattern, in at most the product of their lengths in steps: a regular expression with many `.*` would
/// try their lengths against each other, without end.
private func fits(_ pattern: [Unicode.Scalar], _ name: [Unicode.Scalar]) -> Bool {
    var at = 0
    var place = 0
    var star: Int?  // the last * seen
    var behind = 0  // how far into the name it reaches so far
    while place < name.count {
        if at < pattern.count, pattern[at] == "*" {
            star = at
            at += 1
            behind = place
        } else if at < pattern.count, pattern[at] == "?" || pattern[at] == name[place] {
            at += 1
            place += 1
        } else if let star {
            at = star + 1
            behind += 1
            place = behind
        } else {
            return false
        }
    }
    return pattern[at...].allSatisfy { $0 == "*" }
}

/// Names of the gradient-trained tensors that any pattern matches, in order of name.
///
/// - Throws: `.unknownName`: a pattern matches no tensor at all; `.config`: a pattern matches only tensors that are not trained
///   by gradients
func select(_ patterns: [String], _ table: [DeviceTensor]) throws -> [String] {
    Set(try patterns.flatMap { try selectOne($0, table) }).sorted(by: nameOrder)
}

private func selectOne(_ pattern: String, _ table: [DeviceTensor]) throws -> [String] {
    let hit = table.filter { matches(pattern, $0) }
    guard let first = hit.first else {
        let known =
            table.map(\.name) + table.map { "role:\($0.role.rawValue)" }
            + table.compactMap(\.module).map { "module:\($0)" }
        throw PFLError(.unknownName, "the plan's pattern '\(pattern)' matches no tensor", mend: near(pattern, known))
    }
    let trained = hit.filter { $0.update == .gradient }.map(\.name)
    if trained.isEmpty {
        throw PFLError(
            .config,
            "the plan's pattern '\(pattern)' matches only '\(first.name)' and the like, which no gradient trains",
            mend: "leave it out of train phases; memorize and assign_slots phases write it")
    }
    return trained
}

/// Names of the tensors whose change is sent: those selected, less the personal ones, in order of name.
///
/// - Throws: as `select`; `.config` too where a pattern selects personal tensors only
func uploaded(_ patterns: [String], _ table: [DeviceTensor]) throws -> [String] {
    let personal = Set(table.filter { $0.role == .personal }.map(\.name))
    var names: Set<String> = []
    for pattern in patterns {
        let sent = try selectOne(pattern, table).filter { !personal.contains($0) }
        if sent.isEmpty {
            throw PFLError(
                .config,
                "the plan's upload pattern '\(pattern)' selects personal tensors only, which never leave a device",
                mend: "name shared tensors, for instance with 'role:shared'")
        }
        names.formUnion(sent)
    }
    return names.sorted(by: nameOrder)
}

/// The name of a copy's tensor in an update or a saved state: `copy:<copy>:<tensor>`.
func copyKey(_ copy: String, _ tensor: String) -> String {
    "copy:\(copy):\(tensor)"
}
