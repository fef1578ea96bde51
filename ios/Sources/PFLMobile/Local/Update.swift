// The one update rule, over float32 tensors by name.
//
//     g  = clip(gradients)
//     d  = g + mu * (theta - anchor) + control
//     theta <- theta - lr * M (*) opt(d)
//
// It repeats Python's `local/update.py` operation by operation and gets the same bits (conformance/). So:
//
// - Every elementwise operation is one IEEE float32 operation, rounded at once; nothing is fused, which Swift never does by
//   itself. Expressions are evaluated in the order written here.
// - Scalars are computed in float64 and cast to float32 just before they meet an array.
// - The global norm is one float64 accumulator over all tensors in order of name (by Unicode code point), each in C order.
// - A power is computed by `integerPower` (multiplications only), because pow() differs between libraries.
//
// This is the hot path: values and optimizer state change in place, as long as nobody else holds the same arrays.

/// What the optimizer remembers of a phase's earlier steps.
struct OptimizerState: Sendable {
    var step = 0
    var slots: [String: FloatTensor] = [:]

    init() {}

    /// The state that `tensors` gave.
    init(_ tensors: TensorSet) {
        step = Int(tensors["step"]?.long?.values.first ?? 0)
        slots = tensors.compactMapValues(\.float)
    }

    /// `step` int64 [1], `m.<tensor>` and `v.<tensor>`; empty before the first step.
    var tensors: TensorSet {
        if step == 0 { return [:] }
        var found = slots.mapValues(Tensor.float)
        found["step"] = .long(LongTensor([Int64(step)], [1]))
        return found
    }

    /// Makes the slot, of zeros, where it is not there.
    fileprivate mutating func prepare(_ key: String, _ like: FloatTensor) {
        if slots[key] == nil { slots[key] = .zeros(like: like) }
    }
}

/// What is added to the plain step.
struct Terms: Sendable {
    /// Largest global norm of the gradients.
    var clipNorm: Double?
    /// Where the proximal term pulls to.
    var anchor: TensorSet?
    /// Strength of the pull.
    var mu = 0.0
    /// Instead of `mu`, one array per tensor (its shape, or one element).
    var muSet: TensorSet?
    /// Apply the pull as an exact proximal step after the optimizer, not through the gradient.
    var implicit = false
    /// Added to the gradient.
    var control: TensorSet?
    /// Multiplied into the change, weight decay and pull included; 0 keeps an entry bit for bit.
    var mask: TensorSet?
}

/// Gradient of the mean loss: sums / f32(weight).
///
/// - Throws: `.nonFinite`: the weight is not positive, or a sum is NaN or infinite
func meanGradients(_ sums: [String: FloatTensor], weight: Double) throws -> [String: FloatTensor] {
    if !(weight.isFinite && weight > 0) {
        throw PFLError(
            .nonFinite, "the batch has total weight \(weight)",
            mend: "check the weights of the examples: one must be positive")
    }
    let divisor = Float(weight)
    var means = sums
    for name in sums.keys.sorted(by: nameOrder) {
        guard let sum = sums[name] else { continue }
        try checkFinite(name, sum.values, "the gradient of")
        means[name]?.values.change { values in
            for i in values.indices { values[i] = values[i] / divisor }
        }
    }
    return means
}

/// L2 norm over all tensors together, in float64 and in order of name.
func globalNorm(_ tensors: [String: FloatTensor]) -> Double {
    var total = 0.0
    for (_, tensor) in tensors.sorted(by: { nameOrder($0.key, $1.key) }) {
        tensor.values.withUnsafeBufferPointer { values in
            for x in values {
                let wide = Double(x)
                total += wide * wide
            }
        }
    }
    return total.squareRoot()
}

/// Scales all tensors by f32(limit / norm) when their global norm is above the limit.
func clip(_ tensors: inout [String: FloatTensor], _ limit: Double?) {
    guard let limit else { return }
    let norm = globalNorm(tensors)
    if norm <= limit { return }
    let scale = Float(limit / norm)
    for name in tensors.keys {
        tensors[name]?.values.change { values in
            for i in values.indices { values[i] = values[i] * scale }
        }
    }
}

/// base to the power of exponent in float64 by squaring, lowest bit of the exponent first.
func integerPower(_ base: Double, _ exponent: Int) -> Double {
    var result = 1.0
    var square = base
    var left = exponent
    while left != 0 {
        if left & 1 == 1 { result *= square }
        square *= square
        left >>= 1
    }
    return result
}

/// One step, in place.
///
/// - Parameters:
///   - theta: float32 values of the trained group; they get their new values
///   - gradients: of the mean loss, same names and shapes
///   - state: what earlier steps of the phase left
///   - lr: learning rate of this step, which a schedule may change
/// - Throws: `.nonFinite`: a new value is NaN or infinite, and theta and state are of no more use; `.tensorMismatch`: a set
///   lacks a tensor or has another shape
func update(
    _ theta: inout [String: FloatTensor], _ gradients: [String: FloatTensor], _ optimizer: Optimizer,
    _ state: inout OptimizerState, lr: Double? = nil, terms: Terms = Terms()
) throws {
    let names = theta.keys.sorted(by: nameOrder)
    var gradients = gradients
    for name in names {
        let shape = theta[name]?.shape ?? []
        guard let gradient = gradients[name], gradient.shape == shape else {
            throw PFLError(
                .tensorMismatch,
                "gradients '\(name)' is \(gradients[name].map { "\($0.shape)" } ?? "missing"), the tensor \(shape)",
                mend: "give float32 of the tensor's shape")
        }
    }
    clip(&gradients, terms.clipNorm)
    state.step += 1
    for name in names {
        guard var x = theta.removeValue(forKey: name), var d = gradients.removeValue(forKey: name) else { continue }
        defer { theta[name] = x }
        try step(name, &x, &d.values, optimizer, &state, lr ?? optimizer.lr, terms)
    }
}

private func step(
    _ name: String, _ theta: inout FloatTensor, _ d: inout [Float], _ optimizer: Optimizer,
    _ state: inout OptimizerState, _ lr: Double, _ terms: Terms
) throws {
    let anchor = try terms.anchor.map { try same($0, name, theta, "anchor") }
    let pull = anchor == nil ? [0] : try strength(terms, name, theta)
    let mask = try terms.mask.map { try same($0, name, theta, "mask") }
    if let anchor, !terms.implicit {
        change(&d, theta.values, anchor) { d, x, anchor in
            if pull.count == 1 {
                let strength = pull[0]
                for i in d.indices { d[i] = d[i] + strength * (x[i] - anchor[i]) }
            } else {
                pull.withUnsafeBufferPointer { pull in
                    for i in d.indices { d[i] = d[i] + pull[i] * (x[i] - anchor[i]) }
                }
            }
        }
    }
    if let set = terms.control {
        change(&d, try same(set, name, theta, "control")) { d, control in
            for i in d.indices { d[i] = d[i] + control[i] }
        }
    }
    switch optimizer {
    case .adamW(let optimizer): adamW(name, &theta, &d, optimizer, &state, lr, mask)
    case .momentum(let optimizer): momentum(name, theta, &d, optimizer, &state, lr)
    case .sgd(let optimizer): sgd(theta.values, &d, optimizer, lr)
    }
    subtract(&theta.values, d, mask)
    if let anchor, terms.implicit {
        let rate = Float(lr)
        change(&d, theta.values, anchor) { d, x, anchor in
            for i in d.indices {
                let strength = rate * (pull.count == 1 ? pull[0] : pull[i])
                d[i] = (strength / (1 + strength)) * (x[i] - anchor[i])
            }
        }
        subtract(&theta.values, d, mask)
    }
    try checkFinite(name, theta.values, "after this step")
}

/// x - M * change.
private func subtract(_ x: inout [Float], _ d: [Float], _ mask: [Float]?) {
    if let mask {
        change(&x, d, mask) { x, d, mask in
            for i in x.indices { x[i] = x[i] - mask[i] * d[i] }
        }
    } else {
        change(&x, d) { x, d in
            for i in x.indices { x[i] = x[i] - d[i] }
        }
    }
}

/// d becomes lr * d.
private func sgd(_ x: [Float], _ d: inout [Float], _ optimizer: Optimizer.SGD, _ lr: Double) {
    decayIntoGradient(x, &d, optimizer.weightDecay)
    let rate = Float(lr)
    d.change { d in
        for i in d.indices { d[i] = rate * d[i] }
    }
}

private func decayIntoGradient(_ x: [Float], _ d: inout [Float], _ weightDecay: Double) {
    if weightDecay == 0 { return }
    let decay = Float(weightDecay)
    change(&d, x) { d, x in
        for i in d.indices { d[i] = d[i] + decay * x[i] }
    }
}

/// d becomes lr * (the momentum, or what Nesterov makes of it).
private func momentum(
    _ name: String, _ theta: FloatTensor, _ d: inout [Float], _ optimizer: Optimizer.Momentum,
    _ state: inout OptimizerState, _ lr: Double
) {
    decayIntoGradient(theta.values, &d, optimizer.weightDecay)
    let factor = Float(optimizer.momentum)
    let rate = Float(lr)
    let nesterov = optimizer.nesterov
    state.prepare("m.\(name)", theta)
    state.slots["m.\(name)"]?.values.change { m in
        d.change { d in
            for i in d.indices {
                let now = factor * m[i] + d[i]
                m[i] = now
                d[i] = rate * (nesterov ? d[i] + factor * now : now)
            }
        }
    }
}

/// d becomes lr * opt(d); the decoupled weight decay is subtracted at once.
private func adamW(
    _ name: String, _ theta: inout FloatTensor, _ d: inout [Float], _ optimizer: Optimizer.AdamW,
    _ state: inout OptimizerState, _ lr: Double, _ mask: [Float]?
) {
    state.prepare("m.\(name)", theta)
    state.prepare("v.\(name)", theta)
    let new1 = Float(1 - optimizer.beta1)
    let old2 = Float(optimizer.beta2)
    let new2 = Float(1 - optimizer.beta2)
    let rate = Float(lr / (1 - integerPower(optimizer.beta1, state.step)))
    let correction2 = Float((1 - integerPower(optimizer.beta2, state.step)).squareRoot())
    let eps = Float(optimizer.eps)
    guard var first = state.slots.removeValue(forKey: "m.\(name)"),
        var second = state.slots.removeValue(forKey: "v.\(name)")
    else { return }
    first.values.change { m in
        second.values.change { v in
            d.change { d in
                for i in d.indices {
                    let g = d[i]
                    let mean = m[i] + (g - m[i]) * new1
                    let square = v[i] * old2 + (g * g) * new2
                    m[i] = mean
                    v[i] = square
                    d[i] = rate * (mean / (square.squareRoot() / correction2 + eps))
                }
            }
        }
    }
    state.slots["m.\(name)"] = first
    state.slots["v.\(name)"] = second
    if optimizer.weightDecay == 0 { return }
    let decay = Float(lr * optimizer.weightDecay)
    if let mask {
        change(&theta.values, mask) { x, mask in
            for i in x.indices { x[i] = x[i] - mask[i] * (decay * x[i]) }
        }
    } else {
        theta.values.change { x in
            for i in x.indices { x[i] = x[i] - decay * x[i] }
        }
    }
}

/// f32(alpha) * one + f32(1 - alpha) * other; exactly `one` at 1 and `other` at 0.
func mix(_ one: [String: FloatTensor], _ other: TensorSet, _ alpha: Double) throws -> [String: FloatTensor] {
    if alpha == 1 { return one }
    let a = Float(alpha)
    let b = Float(1 - alpha)
    return try combined(one, other, "mix") { alpha == 0 ? $1 : a * $0 + b * $1 }
}

/// x - f32(rate) * (x - y); exactly y at rate 1.
func toward(_ x: [String: FloatTensor], _ y: TensorSet, _ rate: Double) throws -> [String: FloatTensor] {
    let r = Float(rate)
    return try combined(x, y, "toward") { rate == 1 ? $1 : $0 - r * ($0 - $1) }
}

/// x - f32(rate) * gradients: the lookahead point.
func minus(
    _ x: [String: FloatTensor], _ gradients: [String: FloatTensor], _ rate: Double
) throws -> [String: FloatTensor] {
    let r = Float(rate)
    return try combined(x, gradients.mapValues(Tensor.float), "gradients") { $0 - r * $1 }
}

private func combined(
    _ one: [String: FloatTensor], _ other: TensorSet, _ what: String, _ operation: (Float, Float) -> Float
) throws -> [String: FloatTensor] {
    var made = one
    for (name, x) in one {
        let y = try same(other, name, x, what)
        var values = x.values
        change(&values, y) { values, y in
            for i in values.indices { values[i] = operation(values[i], y[i]) }
        }
        made[name] = FloatTensor(values, x.shape)
    }
    return made
}

/// f32(times_1) * set_1 + f32(times_2) * set_2 + ..., added in order, of the tensors that `like` names.
///
/// - Throws: `.nonFinite`: a new value is NaN or infinite; `.tensorMismatch`: a set lacks a tensor or has another shape
func combine(
    _ like: [String: FloatTensor], _ terms: [(set: TensorSet, times: Double)]
) throws -> [String: FloatTensor] {
    var made = like
    for (name, x) in like {
        var total = [Float](repeating: 0, count: x.size)
        for (number, term) in terms.enumerated() {
            let part = try same(term.set, name, x, "a combined set")
            let factor = Float(term.times)
            change(&total, part) { total, part in
                for i in total.indices { total[i] = number == 0 ? factor * part[i] : total[i] + factor * part[i] }
            }
        }
        try checkFinite(name, total, "the combination for")
        made[name] = FloatTensor(total, x.shape)
    }
    return made
}

/// Refuses values of which any is NaN or infinite.
///
/// - Throws: `.nonFinite`, naming the tensor
func checkFinite(_ name: String, _ values: [Float], _ what: String) throws {
    var bad = 0
    values.withUnsafeBufferPointer { values in
        for x in values where x - x != 0 { bad += 1 }  // infinity - infinity is NaN too
    }
    if bad > 0 {
        throw PFLError(
            .nonFinite, "\(what) '\(name)': \(bad) of \(values.count) values are NaN or infinite",
            mend: "lower the learning rate or set clip; the state before training is kept")
    }
}

private func same(_ set: TensorSet, _ name: String, _ like: FloatTensor, _ what: String) throws -> [Float] {
    guard let value = set[name] else {
        throw PFLError(
            .tensorMismatch, "\(what) has no tensor '\(name)'", mend: "give a value for every trained tensor")
    }
    guard let float = value.float, float.shape == like.shape else {
        throw PFLError(
            .tensorMismatch, "\(what) '\(name)' is \(value.signature), the tensor float32\(like.shape)",
            mend: "give float32 of the tensor's shape")
    }
    return float.values
}

private func strength(_ terms: Terms, _ name: String, _ like: FloatTensor) throws -> [Float] {
    guard let set = terms.muSet else { return [Float(terms.mu)] }
    switch set[name] {
    case .float(let value) where value.size == 1: return value.values
    case .long(let value) where value.size == 1: return [Float(value.values[0])]
    default: return try same(set, name, like, "mu")
    }
}

extension [Float] {
    /// Calls `body` with the elements, to be changed in place.
    fileprivate mutating func change(_ body: (UnsafeMutableBufferPointer<Float>) -> Void) {
        withUnsafeMutableBufferPointer { body($0) }
    }
}

private func change(
    _ into: inout [Float], _ one: [Float],
    _ body: (UnsafeMutableBufferPointer<Float>, UnsafeBufferPointer<Float>) -> Void
) {
    into.change { into in one.withUnsafeBufferPointer { body(into, $0) } }
}

private func change(
    _ into: inout [Float], _ one: [Float], _ two: [Float],
    _ body: (UnsafeMutableBufferPointer<Float>, UnsafeBufferPointer<Float>, UnsafeBufferPointer<Float>) -> Void
) {
    into.change { into in
        one.withUnsafeBufferPointer { one in two.withUnsafeBufferPointer { body(into, one, $0) } }
    }
}
