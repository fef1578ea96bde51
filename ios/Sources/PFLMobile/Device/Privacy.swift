/// What must protect an update before it leaves the device. Fail closed: without protection nothing is sent.
public struct PrivacyPolicy: Sendable {
    /// False sends updates also where nothing protects them; only the device's user can say so.
    public let require: Bool
    /// True trusts no aggregator: nothing that was trained or measured leaves the device but updates under its own noise, no
    /// evaluation reports either, whatever mechanism the task names; counts of examples and steps do leave.
    public let onlyLocal: Bool
    /// With `onlyLocal`, the smallest noise multiplier (relative to the clip norm) of that noise.
    public let minNoise: Double
    /// Largest epsilon. Where the aggregator adds the noise, and is trusted to, that which the task names for the time when the
    /// update is in a model; else that which the device computes from its own noise and its own count of updates under it. What
    /// was given before is added: under the own noise, and to other memberships against a promise. Neither evaluation reports
    /// nor the numbers that go along with an update are in any epsilon, nor what was sent with `require: false`.
    public let maxEpsilon: Double
    /// Largest delta of the aggregator's guarantee, and that at which the device computes the epsilon of its own noise, where
    /// the task's statement does not make it smaller.
    public let maxDelta: Double
    /// Whether sums that no noise hides may be sent: evaluation reports on the user's own test examples, and the numbers that a
    /// task asks for along with its update; false refuses such a task.
    public let report: Bool

    /// By default something must protect updates, with an epsilon of at most 10.
    public init() {
        self.init(
            unchecked: true, onlyLocal: false, minNoise: 0, maxEpsilon: Limits.deviceEpsilon,
            maxDelta: Limits.deviceDelta, report: true)
    }

    /// A policy.
    ///
    /// - Throws: `.config`: a number is out of range, or some settings contradict each other
    public init(
        require: Bool = true, onlyLocal: Bool = false, minNoise: Double = 0, maxEpsilon: Double? = nil,
        maxDelta: Double? = nil, report: Bool = true
    ) throws {
        let epsilon = maxEpsilon ?? Limits.deviceEpsilon
        let delta = maxDelta ?? Limits.deviceDelta
        func refuse(_ bad: Bool, _ message: String, _ mend: String) throws {
            if bad { throw PFLError(.config, message, mend: mend) }
        }
        try refuse(
            !(epsilon > 0 && epsilon <= Limits.mostEpsilon), "the largest epsilon is \(general(epsilon))",
            "give one above 0 and up to \(general(Limits.mostEpsilon)); with more nothing is protected, and there is "
                + "require: false for that")
        try refuse(
            !(Limits.leastDelta...Limits.mostDelta).contains(delta), "the largest delta is \(general(delta))",
            "give one from \(general(Limits.leastDelta)) to \(general(Limits.mostDelta)), well below 1 / number of devices"
        )
        try refuse(
            !(minNoise >= 0 && minNoise.isFinite), "the smallest noise is \(general(minNoise))", "give 0 or more")
        try refuse(
            onlyLocal && !require, "updates cannot need this device's own noise and be sent without any",
            "decide for one")
        try refuse(
            minNoise > 0 && !onlyLocal, "a smallest noise is about this device's own, which is not asked for",
            "ask for it too (onlyLocal)")
        self.init(
            unchecked: require, onlyLocal: onlyLocal, minNoise: minNoise, maxEpsilon: epsilon, maxDelta: delta,
            report: report)
    }

    private init(
        unchecked require: Bool, onlyLocal: Bool, minNoise: Double, maxEpsilon: Double, maxDelta: Double, report: Bool
    ) {
        self.require = require
        self.onlyLocal = onlyLocal
        self.minNoise = minNoise
        self.maxEpsilon = maxEpsilon
        self.maxDelta = maxDelta
        self.report = report
    }

    /// Why an update must not be sent; nil when it may.
    ///
    /// - Parameters:
    ///   - privacy: of its task, as the aggregator gave it
    ///   - reports: names of the numbers that go along
    ///   - sent: what left this device under its own noise so far
    ///   - counted: whether this update is in `sent` already
    ///   - spent: what other memberships promised, where that is counted: all is one budget then
    ///   - device: this membership's
    func refusal(
        _ privacy: TaskPrivacy, _ reports: [String], _ sent: SentNoise, counted: Bool = false, spent: Spent? = nil,
        device: String? = nil
    ) -> String? {
        let local = privacy.localNoiseMultiplier
        let more = counted || privacy.clipNorm == nil || !(local > 0) ? [] : [local]
        if !report && !reports.isEmpty {
            return
                "the numbers \(reports.joined(separator: ", ")) are asked for, which no noise protects, and reports are not "
                + "allowed here"
        }
        if !require { return nil }
        if !own(privacy) {
            return unprotected(privacy) ?? untold(privacy) ?? contradiction(privacy)
                ?? spent.flatMap {
                    above(
                        $0.promisedElsewhere(device) + sent.epsilon(delta: delta(privacy), more)
                            + (privacy.epsilonAfter ?? 0))
                }
        }
        if let why = unprotected(privacy) { return why }
        if !reports.isEmpty {
            return
                "the numbers \(reports.joined(separator: ", ")) are asked for, which no noise protects from the aggregator"
        }
        return above(sent.epsilon(delta: delta(privacy), more) + (spent?.promised.epsilon ?? 0))
    }

    /// Why no noise hides the update; nil where some may.
    private func unprotected(_ privacy: TaskPrivacy) -> String? {
        let own = own(privacy)
        let local = privacy.localNoiseMultiplier
        let mechanism = privacy.mechanism.rawValue
        if !privacy.guarantees { return "nothing protects the updates (mechanism 'none')" }
        guard let clipNorm = privacy.clipNorm, Limits.clipNorms.contains(clipNorm) else {
            let said = privacy.clipNorm.map(pythonFloat) ?? "None"
            return "updates are not clipped (clip norm \(said)), so noise could not hide one"
        }
        if !(local.isFinite && privacy.noiseMultiplier.isFinite) {
            return "noise of \(privacy.noiseMultiplier) and \(local) clip norms is none"
        }
        if own && !(local > 0) { return "this device adds no noise of its own (mechanism '\(mechanism)')" }
        if !(local > 0 || privacy.noiseMultiplier > 0) { return "the mechanism '\(mechanism)' adds no noise" }
        if local < minNoise {
            return "this device's own noise is \(general(local, 4)), the least that is accepted here is "
                + general(minNoise, 4)
        }
        return nil
    }

    /// Whether the evaluation report may be sent: not to an aggregator that is not trusted with updates either.
    func mayReport(_ privacy: TaskPrivacy) -> Bool { report && !(require && own(privacy)) }

    /// Whether only the device's own noise counts.
    private func own(_ privacy: TaskPrivacy) -> Bool { onlyLocal || !privacy.trustsAggregator }

    private func above(_ epsilon: Double) -> String? {
        epsilon <= maxEpsilon
            ? nil
            : "epsilon is \(general(epsilon, 4)), the most that is accepted here is \(general(maxEpsilon, 4))"
    }

    /// What the aggregator's guarantee lacks, by its own words; nil where it is enough.
    private func untold(_ privacy: TaskPrivacy) -> String? {
        let told = privacy.statement
        if told["private"]?.bool != true { return "the aggregator's statement does not say that anything is private" }
        guard let delta = statedNumber(told["delta"]), delta > 0 else {
            return "the aggregator's statement names no delta (\(said(told["delta"])))"
        }
        if delta > maxDelta * (1 + rounding) {
            return "delta is \(general(delta)), the most that is accepted here is \(general(maxDelta))"
        }
        guard let after = privacy.epsilonAfter else { return "the task names no epsilon for after its round" }
        return above(after)
    }

    /// What in a guarantee that is enough by its own words cannot be true; nil where nothing shows it.
    ///
    /// The sampling is believed, as it happens where a device does not see it. But no sampling makes noise hide an update that
    /// hides nothing from those who know that it is there, and no number of rounds costs less than one.
    private func contradiction(_ privacy: TaskPrivacy) -> String? {
        let told = privacy.statement
        let after = privacy.epsilonAfter ?? 0
        let noise = privacy.noiseMultiplier
        let delta = max(statedNumber(told["delta"]) ?? 0, Limits.leastDelta)
        let known = noise > leastNoise ? LocalNoise.releaseEpsilon(mu: 1 / noise, delta: delta) : .infinity
        if known > Limits.mostEpsilon {
            return "the noise is too small: to those who know that it is in the round this update alone costs epsilon "
                + "\(general(known, 4)), the most that is private is \(general(Limits.mostEpsilon))"
        }
        let claimed = told["noise_multiplier"] ?? .double(noise)
        guard let number = statedNumber(claimed), abs(number - noise) <= rounding * noise else {
            return "the statement is of a noise multiplier of \(said(claimed)), the task's is \(general(noise))"
        }
        guard let before = statedNumber(told["epsilon"]), before >= 0, before <= after * (1 + rounding) else {
            return
                "the statement names epsilon \(said(told["epsilon"])) before the round, and the task \(general(after)) "
                + "after it"
        }
        return oneRound(privacy, after, noise, delta)
    }

    /// What is wrong with the sampling, or with an epsilon below that of one round under it.
    private func oneRound(_ privacy: TaskPrivacy, _ after: Double, _ noise: Double, _ delta: Double) -> String? {
        func stated(_ name: String) -> JSON? { privacy.statement[name].flatMap { $0.isNull ? nil : $0 } }
        let sampling = stated("sampling")
        let given = stated("sampling_rate")
        let rate: Double
        switch sampling?.string {
        case "none": rate = 1
        case "poisson", "fixed":
            guard let number = statedNumber(given), number > 0, number <= 1 else {
                return "the statement names no sampling rate (\(said(given)))"
            }
            rate = number
        default:
            if sampling == nil && given == nil { return nil }  // an aggregator that does not tell
            return "the statement names a sampling that is not known here (\(said(sampling)))"
        }
        let least = LocalNoise.sampledEpsilon(mu: 1 / noise, rate: rate, delta: delta)
        if after >= least * (1 - rounding) { return nil }
        return
            "the task names epsilon \(general(after, 4)) for after its round, but one round with a noise multiplier of "
            + "\(general(noise)) and the sampling \(said(sampling)) costs \(general(least, 4))"
    }

    /// The statement's where it is stricter.
    private func delta(_ privacy: TaskPrivacy) -> Double {
        guard let told = statedNumber(privacy.statement["delta"]), told > 0, told < maxDelta else { return maxDelta }
        return max(told, Limits.leastDelta)
    }

    /// Whether an aggregator's guarantee can be true, however little it is.
    static func believes(_ privacy: TaskPrivacy) -> Bool {
        privacy.trustsAggregator && widest.unprotected(privacy) == nil && widest.untold(privacy) == nil
            && widest.contradiction(privacy) == nil
    }

    private static let widest = PrivacyPolicy(
        unchecked: true, onlyLocal: false, minNoise: 0, maxEpsilon: Limits.mostEpsilon, maxDelta: Limits.mostDelta,
        report: true)
}

/// Share by which numbers of a statement may differ from those computed here: they are rounded, and computed otherwise.
private let rounding = 1e-3
private let leastNoise = 1e-100

/// An update as it may leave the device.
struct Protected: Sendable {
    /// Float32 [P].
    let flat: [Float]
    /// L2 norm before clipping.
    let norm: Double
    /// Whether clipping shortened it.
    let clipped: Bool
}

/// Clips a whole update, all tensors together, and adds the device's own noise where the task asks for it.
///
/// - Parameters:
///   - flat: the change, float32 [P]
///   - noise: nil for the secure source
/// - Throws: `.nonFinite`: a value is NaN or infinite
func protect(_ flat: [Float], _ privacy: TaskPrivacy, noise: (any Noise)? = nil) throws -> Protected {
    let norm = try Clipping.norm(flat)
    guard let clipNorm = privacy.clipNorm else { return Protected(flat: flat, norm: norm, clipped: false) }
    let sent = try LocalNoise.privateUpdate(
        flat, clipNorm: clipNorm, noiseMultiplier: privacy.localNoiseMultiplier, source: noise ?? SecureNoise())
    return Protected(flat: sent, norm: norm, clipped: try Clipping.factor(norm, clipNorm: clipNorm) < 1)
}

/// Delta of the aggregator's guarantee; nil where its statement names none.
func statedDelta(_ privacy: TaskPrivacy) -> Double? {
    statedNumber(privacy.statement["delta"]).flatMap { $0 > 0 ? $0 : nil }
}

/// A finite number of a statement; nil for anything else.
private func statedNumber(_ json: JSON?) -> Double? {
    json?.number.flatMap { $0.isFinite ? $0 : nil }
}

/// What an aggregator said, in words as Python has them.
private func said(_ json: JSON?) -> String {
    switch json {
    case nil, .null: "None"
    case .bool(let value): value ? "True" : "False"
    case .integer(let value): "\(value)"
    case .big(let digits): digits
    case .double(let value): pythonFloat(value)
    case .string(let text): "'\(String(String.UnicodeScalarView(text.unicodeScalars.prefix(mostSaid))))'"
    case .points: "'...'"
    case .array(let items): "[\(items.map { said($0) }.joined(separator: ", "))]"
    case .object(let fields): "{\(fields.map { "'\($0.key)': \(said($0.value))" }.joined(separator: ", "))}"
    }
}

private let mostSaid = 100
