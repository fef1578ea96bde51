package io.pflmobile.core.plan

import io.pflmobile.core.errors.ConfigException
import java.math.BigDecimal
import java.math.MathContext

/** Characters that a name may have. */
internal const val MOST_NAME: Int = 200

internal fun invalid(message: String): Nothing =
    throw ConfigException("the plan is invalid: $message", mend = "compare it with plan.schema.json")

internal fun checkName(
    field: String,
    name: String?,
) {
    if (name != null && (name.isEmpty() || name.codePointCount(0, name.length) > MOST_NAME)) {
        invalid("$field: a name has 1 to $MOST_NAME characters")
    }
}

internal fun checkPatterns(
    field: String,
    patterns: List<String>,
) {
    if (patterns.isEmpty()) invalid("$field: at least one pattern is needed")
    patterns.forEach { checkName(field, it) }
}

internal fun checkWhole(
    field: String,
    value: Long?,
) {
    if (value != null && value < 1) invalid("$field: $value is less than 1")
}

internal fun checkPositive(
    field: String,
    value: Double?,
) {
    if (value != null && !(value > 0 && value.isFinite())) invalid("$field: ${general(value)} is not a number above 0")
}

internal fun checkNotNegative(
    field: String,
    value: Double,
    most: Double = Double.MAX_VALUE,
) {
    if (!(value >= 0 && value <= most)) invalid("$field: ${general(value)} is not a number from 0 to ${general(most)}")
}

internal fun checkFraction(
    field: String,
    value: Double,
) {
    if (!(value >= 0 && value < 1)) invalid("$field: ${general(value)} is not from 0 to below 1")
}

/** Refuse the name of a set that is not the device's to write. */
internal fun checkOwnName(
    field: String,
    name: String,
) {
    if (name in FIXED) invalid("$field: '$name' is the name of a fixed set; choose another name")
}

private val FIXED = setOf("initial", "global", "start", "zero")

/** A number in at most six digits, as C and Python print it with `%g`. */
internal fun general(value: Double): String {
    if (value.isNaN()) return "nan"
    if (value.isInfinite()) return if (value > 0) "inf" else "-inf"
    if (value == 0.0) return if (1 / value < 0) "-0" else "0"
    val rounded = BigDecimal(value).round(MathContext(6)).stripTrailingZeros()
    val exponent = rounded.precision() - rounded.scale() - 1
    if (exponent in -4..5) return rounded.toPlainString()
    val digits = rounded.unscaledValue().abs().toString()
    val mantissa = if (digits.length > 1) "${digits[0]}.${digits.substring(1)}" else digits
    val power =
        kotlin.math
            .abs(exponent)
            .toString()
            .padStart(2, '0')
    return "${if (value < 0) "-" else ""}${mantissa}e${if (exponent < 0) "-" else "+"}$power"
}
