package io.pflmobile.core.local

import io.pflmobile.core.plan.Guard

/** Why the guard decided as it did; [wireName] is the word in reports. */
public enum class Reason(
    internal val wireName: String,
) {
    BETTER("better"),
    NOT_BETTER("not_better"),
    WITHIN_TOLERANCE("within_tolerance"),
    TOO_FEW_EXAMPLES("too_few_examples"),
    GOOD_ENOUGH("good_enough"),
    NOT_FINITE("not_finite"),
}

/**
 * What the guard decided: a trained state is adopted only if it is better on the device's own newest examples. It holds no data and may
 * be sent.
 *
 * @property metric the measured quantity
 * @property before its value with the state that served until now; null when it was not measured
 * @property after its value with the trained state; null when nothing was trained
 * @property examples held-out examples
 * @property adopted whether the trained state replaces the old one
 * @property reason why
 */
public class GuardReport internal constructor(
    public val metric: String,
    public val before: Double?,
    public val after: Double?,
    public val examples: Int,
    public val adopted: Boolean,
    public val reason: Reason,
)

/**
 * The report when nothing should be trained, else null.
 *
 * @param value the metric of the state that serves now (null when there was nothing to measure it on)
 * @param shipped the metric of the shipped model (or the aggregator's latest), which the appeal looks at
 */
internal fun Guard.beforeTraining(
    value: Double?,
    shipped: Double?,
    examples: Int,
): GuardReport? {
    fun stop(reason: Reason) = GuardReport(metric, value, null, examples, adopted = false, reason)
    if (examples < minExamples || value == null) return stop(Reason.TOO_FEW_EXAMPLES)
    if (appeal == null || shipped == null) return null
    val enough = if (lowerIsBetter) shipped <= appeal else shipped >= appeal
    return if (enough) stop(Reason.GOOD_ENOUGH) else null
}

/**
 * Compare before and after, in float64: gain = before - after where lower is better, after - before otherwise; adopted if gain > 0, or
 * if gain > -tolerance. A value that is not finite is never adopted.
 */
internal fun Guard.decide(
    before: Double,
    after: Double,
    examples: Int,
): GuardReport {
    val gain = if (lowerIsBetter) before - after else after - before
    val reason =
        when {
            examples < minExamples -> Reason.TOO_FEW_EXAMPLES
            !after.isFinite() -> Reason.NOT_FINITE
            gain > 0 || !before.isFinite() -> Reason.BETTER
            gain > -tolerance -> Reason.WITHIN_TOLERANCE
            else -> Reason.NOT_BETTER
        }
    val adopted = reason == Reason.BETTER || reason == Reason.WITHIN_TOLERANCE
    return GuardReport(metric, before, after, examples, adopted, reason)
}
