import Testing

@testable import PFLMobile

@Suite struct UpdateTests {
    let vectors: JSON
    let theta: [String: FloatTensor]
    let gradients: [[String: FloatTensor]]
    let sets: [String: TensorSet]

    init() throws {
        vectors = try Vectors.read("update.json")
        theta = try vectors["theta"].floatTensors
        gradients = try vectors["gradients"].items.map { try $0.floatTensors }
        sets = try vectors["sets"].sets
    }

    private func terms(_ given: JSON) throws -> Terms {
        Terms(
            clipNorm: given.maybe("clip")?.number, anchor: given.maybe("anchor").flatMap { _ in sets["anchor"] },
            mu: given.maybe("mu")?.number ?? 0, muSet: given.maybe("mu") == .string("set") ? sets["mu"] : nil,
            implicit: given.maybe("implicit")?.bool ?? false,
            control: given.maybe("control").flatMap { _ in sets["control"] },
            mask: given.maybe("mask").flatMap { _ in sets["mask"] })
    }

    @Test("steps of every optimizer and term are Python's")
    func steps() throws {
        for vector in try vectors["steps"].items {
            let optimizer = try Optimizer.read(vector["optimizer"], "optimizer")
            let given = try vector["terms"]
            var x = theta
            var state = OptimizerState()
            for g in gradients {
                try update(&x, g, optimizer, &state, lr: given.maybe("lr")?.number, terms: try terms(given))
            }
            let name = try vector["name"].text
            expectBits(try vector["theta"].floatTensors, x, name)
            expectBits(try vector["state"].tensors, state.tensors, name)
            expectBits(state.tensors, OptimizerState(state.tensors).tensors, name)
        }
    }

    @Test("theta as its own anchor is theta before the step")
    func ownAnchor() throws {
        let anchor = theta.mapValues(Tensor.float)
        let sgd = Optimizer.sgd(Optimizer.SGD(lr: 0.1))
        for implicit in [false, true] {
            var moved = theta
            var state = OptimizerState()
            try update(&moved, gradients[0], sgd, &state, terms: Terms(anchor: anchor, mu: 3, implicit: implicit))
            var free = theta
            state = OptimizerState()
            try update(&free, gradients[0], sgd, &state)
            if !implicit { expectBits(free, moved, "a pull of length zero") }
            expectBits(anchor, theta.mapValues(Tensor.float), "the anchor stays")
        }
    }

    @Test("norms and powers are Python's")
    func norms() throws {
        for (values, want) in zip(gradients + [theta], try vectors["global_norm"].items) {
            #expect(try globalNorm(values).bitPattern == want.bits.bitPattern)
        }
        for vector in try vectors["integer_power"].items.map({ try $0.items }) {
            #expect(try integerPower(vector[0].double, vector[1].int).bitPattern == vector[2].bits.bitPattern)
        }
    }

    @Test("mean, mix, move and lookahead are Python's")
    func sums() throws {
        let mean = try vectors["mean_gradients"]
        let found = try meanGradients(gradients[0], weight: try mean["weight"].double)
        expectBits(try mean["result"].floatTensors, found, "mean")
        let anchor = try #require(sets["anchor"])
        for vector in try vectors["mix"].items {
            expectBits(try vector["result"].floatTensors, try mix(theta, anchor, try vector["alpha"].double), "mix")
        }
        for vector in try vectors["toward"].items {
            expectBits(
                try vector["result"].floatTensors, try toward(theta, anchor, try vector["rate"].double), "toward")
        }
        for vector in try vectors["minus"].items {
            expectBits(
                try vector["result"].floatTensors, try minus(theta, gradients[0], try vector["rate"].double), "minus")
        }
    }

    @Test("what is not finite or does not fit is named")
    func refused() {
        func one(_ values: Float...) -> [String: FloatTensor] { ["a": FloatTensor(values, [values.count])] }
        func step(_ theta: [String: FloatTensor], _ g: [String: FloatTensor], _ lr: Double, _ terms: Terms = Terms())
            throws
        {
            var x = theta
            var state = OptimizerState()
            try update(&x, g, .sgd(Optimizer.SGD(lr: lr)), &state, terms: terms)
        }
        expectError(.nonFinite) { try step(one(1), one(.greatestFiniteMagnitude), 1e10) }
        expectError(.nonFinite) { _ = try meanGradients(one(.nan), weight: 1) }
        expectError(.nonFinite) { _ = try meanGradients(one(1), weight: 0) }
        expectError(.tensorMismatch) { try step(one(1), one(1, 2), 1) }
        expectError(.tensorMismatch) { try step(one(1), [:], 1) }
        expectError(.tensorMismatch) { try step(one(1), one(1), 1, Terms(control: [:])) }
        expectError(.nonFinite) {
            _ = try combine(one(1), [(set: one(.greatestFiniteMagnitude).mapValues(Tensor.float), times: 2)])
        }
    }
}
