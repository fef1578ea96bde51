/// The optimizers that a train phase can name.
enum Optimizer: Sendable, Equatable {
    /// theta <- theta - lr * (d + weightDecay * theta), as `torch.optim.SGD`.
    case sgd(SGD)
    /// SGD with heavy-ball or Nesterov momentum, as `torch.optim.SGD(momentum=...)`; momentum 0 is SGD.
    case momentum(Momentum)
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW`.
    case adamW(AdamW)

    struct SGD: Sendable, Equatable {
        let lr: Double
        var weightDecay = 0.0
    }

    struct Momentum: Sendable, Equatable {
        let lr: Double
        var momentum = 0.9
        var nesterov = false
        var weightDecay = 0.0
    }

    struct AdamW: Sendable, Equatable {
        let lr: Double
        var beta1 = 0.9
        var beta2 = 0.999
        var eps = 1e-8
        var weightDecay = 0.01
    }

    var lr: Double {
        switch self {
        case .sgd(let optimizer): optimizer.lr
        case .momentum(let optimizer): optimizer.lr
        case .adamW(let optimizer): optimizer.lr
        }
    }

    var weightDecay: Double {
        switch self {
        case .sgd(let optimizer): optimizer.weightDecay
        case .momentum(let optimizer): optimizer.weightDecay
        case .adamW(let optimizer): optimizer.weightDecay
        }
    }

    /// Its name in JSON.
    var kind: String {
        switch self {
        case .sgd: "sgd"
        case .momentum: "momentum"
        case .adamW: "adamw"
        }
    }

    /// - Throws: `Malformed`
    static func read(_ json: JSON, _ path: String) throws -> Optimizer {
        var fields = try Fields(json, path)
        let kind = try fields.required("kind", Fields.text)
        let lr = try fields.required("lr", Fields.finite)
        try Check.positive("lr", lr)
        let found: Optimizer
        switch kind {
        case "sgd":
            found = .sgd(SGD(lr: lr, weightDecay: try fields.field("weight_decay", Fields.finite, default: 0)))
        case "momentum":
            let momentum = Momentum(
                lr: lr, momentum: try fields.field("momentum", Fields.finite, default: 0.9),
                nesterov: try fields.field("nesterov", Fields.truth, default: false),
                weightDecay: try fields.field("weight_decay", Fields.finite, default: 0))
            try Check.fraction("momentum", momentum.momentum)
            found = .momentum(momentum)
        case "adamw":
            let betas = try fields.field("betas", Fields.list(Fields.finite), default: [0.9, 0.999])
            if betas.count != 2 { throw Malformed("betas: two numbers are needed") }
            for beta in betas { try Check.fraction("betas", beta) }
            let eps = try fields.field("eps", Fields.finite, default: 1e-8)
            try Check.positive("eps", eps)
            let decay = try fields.field("weight_decay", Fields.finite, default: 0.01)
            found = .adamW(AdamW(lr: lr, beta1: betas[0], beta2: betas[1], eps: eps, weightDecay: decay))
        default:
            throw Malformed("\(path): no optimizer is called '\(kind)'. \(near(kind, ["sgd", "momentum", "adamw"]))")
        }
        try Check.notNegative("weight_decay", found.weightDecay)
        try fields.done()
        return found
    }

    var json: JSON {
        switch self {
        case .sgd(let o):
            object(("kind", .string(kind)), ("lr", .double(o.lr)), ("weight_decay", .double(o.weightDecay)))
        case .momentum(let o):
            object(
                ("kind", .string(kind)), ("lr", .double(o.lr)), ("momentum", .double(o.momentum)),
                ("nesterov", .bool(o.nesterov)), ("weight_decay", .double(o.weightDecay)))
        case .adamW(let o):
            object(
                ("kind", .string(kind)), ("lr", .double(o.lr)),
                ("betas", .array([.double(o.beta1), .double(o.beta2)])),
                ("eps", .double(o.eps)), ("weight_decay", .double(o.weightDecay)))
        }
    }
}

/// An object of JSON with these fields.
func object(_ fields: (key: String, value: JSON)...) -> JSON {
    .object(JSONObject(fields))
}

extension JSON {
    static func texts(_ texts: [String]) -> JSON { .array(texts.map(JSON.string)) }

    static func maybe(_ text: String?) -> JSON { text.map(JSON.string) ?? .null }

    static func maybe(_ value: Int?) -> JSON { value.map(JSON.integer) ?? .null }

    static func maybe(_ value: Double?) -> JSON { value.map(JSON.double) ?? .null }
}
