/// Why the guard decided as it did; the raw value is the word in reports.
public enum Reason: String, Sendable, CaseIterable {
    /// The metric became better.
    case better
    /// It did not.
    case notBetter = "not_better"
    /// It became worse by less than the plan allows.
    case withinTolerance = "within_tolerance"
    /// There were too few held-out examples.
    case tooFewExamples = "too_few_examples"
    /// The shipped model is good enough.
    case goodEnough = "good_enough"
    /// The metric is NaN or infinite.
    case notFinite = "not_finite"
}

/// What the guard decided: a trained state is adopted only if it is better on the device's own newest examples. It holds no
/// data and may be sent.
public struct GuardReport: Sendable, Equatable {
    /// The measured quantity.
    public let metric: String
    /// Its value with the state that served until now; nil when it was not measured.
    public let before: Double?
    /// Its value with the trained state; nil when nothing was trained.
    public let after: Double?
    /// Held-out examples.
    public let examples: Int
    /// Whether the trained state replaces the old one.
    public let adopted: Bool
    /// Why.
    public let reason: Reason
}

extension Guard {
    /// The report when nothing should be trained, else nil.
    ///
    /// - Parameters:
    ///   - value: the metric of the state that serves now (nil when there was nothing to measure it on)
    ///   - shipped: the metric of the shipped model (or the aggregator's latest), which the appeal looks at
    func beforeTraining(_ value: Double?, shipped: Double?, examples: Int) -> GuardReport? {
        func stop(_ reason: Reason) -> GuardReport {
            GuardReport(metric: metric, before: value, after: nil, examples: examples, adopted: false, reason: reason)
        }
        if examples < minExamples || value == nil { return stop(.tooFewExamples) }
        guard let appeal, let shipped else { return nil }
        let enough = lowerIsBetter ? shipped <= appeal : shipped >= appeal
        return enough ? stop(.goodEnough) : nil
    }

    /// Compares before and after, in float64: gain = before - after where lower is better, after - before otherwise; adopted
    /// if gain > 0, or if gain > -tolerance. A value that is not finite is never adopted.
    func decide(before: Double, after: Double, examples: Int) -> GuardReport {
        let gain = lowerIsBetter ? before - after : after - before
        let reason: Reason
        if examples < minExamples {
            reason = .tooFewExamples
        } else if !after.isFinite {
            reason = .notFinite
        } else if gain > 0 || !before.isFinite {
            reason = .better
        } else if gain > -tolerance {
            reason = .withinTolerance
        } else {
            reason = .notBetter
        }
        return GuardReport(
            metric: metric, before: before, after: after, examples: examples,
            adopted: reason == .better || reason == .withinTolerance, reason: reason)
    }
}
