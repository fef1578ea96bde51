/*
 * The one update rule, over float32 tensors by name.
 *
 *     g  = clip(gradients)
 *     d  = g + mu * (theta - anchor) + control
 *     theta <- theta - lr * M (*) opt(d)
 *
 * It repeats Python's `local/update.py` operation by operation and gets the same bits (conformance/). So:
 *
 * - Every elementwise operation is one IEEE float32 operation, rounded at once; nothing is fused, which the JVM and ART never do.
 *   Expressions are evaluated in the order written here.
 * - Scalars are computed in float64 and cast to float32 just before they meet an array.
 * - The global norm is one float64 accumulator over all tensors in order of name (by Unicode code point), each in C order.
 * - A power is computed by `integerPower` (multiplications only), because pow() differs between libraries.
 *
 * This is the hot path: a step allocates no array, values and optimizer state change in place.
 */
package io.pflmobile.core.local

import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.plan.AdamW
import io.pflmobile.core.plan.Momentum
import io.pflmobile.core.plan.Optimizer
import io.pflmobile.core.plan.Sgd
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.NameOrder
import io.pflmobile.core.tensors.Tensor
import kotlin.math.sqrt

/** Tensors by name: what a plan calls a set. */
internal typealias TensorSet = Map<String, Tensor>

/** What the optimizer remembers of a phase's earlier steps; its arrays change in place. */
internal class OptimizerState(
    var step: Long = 0,
    private val slots: MutableMap<String, FloatTensor> = HashMap(),
) {
    /** `step` int64 [1], `m.<tensor>` and `v.<tensor>`; empty before the first step. */
    fun tensors(): Map<String, Tensor> = if (step == 0L) emptyMap() else slots + ("step" to LongTensor(longArrayOf(step), listOf(1)))

    /** The array of a slot, zeros at first. */
    fun slot(
        key: String,
        like: FloatTensor,
    ): FloatArray = slots.getOrPut(key) { FloatTensor(FloatArray(like.size), like.shape) }.values

    companion object {
        /** The state that [tensors] gave; its arrays are taken over. */
        fun of(tensors: Map<String, Tensor>): OptimizerState {
            val step = (tensors["step"] as? LongTensor)?.values?.firstOrNull() ?: 0
            val slots = HashMap<String, FloatTensor>()
            for ((key, value) in tensors) if (value is FloatTensor) slots[key] = value
            return OptimizerState(step, slots)
        }
    }
}

/**
 * What is added to the plain step.
 *
 * @property clipNorm largest global norm of the gradients
 * @property anchor where the proximal term pulls to
 * @property mu strength of the pull
 * @property muSet instead of [mu], one array per tensor (its shape, or one element)
 * @property implicit apply the pull as an exact proximal step after the optimizer, not through the gradient
 * @property control added to the gradient
 * @property mask multiplied into the change, weight decay and pull included; 0 keeps an entry bit for bit
 */
internal class Terms(
    val clipNorm: Double? = null,
    val anchor: TensorSet? = null,
    val mu: Double = 0.0,
    val muSet: TensorSet? = null,
    val implicit: Boolean = false,
    val control: TensorSet? = null,
    val mask: TensorSet? = null,
)

/**
 * Gradient of the mean loss: sums / f32(weight), written [into] arrays of the same names and shapes.
 *
 * @throws NonFiniteException the weight is not positive, or a sum is NaN or infinite
 */
internal fun meanGradients(
    sums: Map<String, FloatTensor>,
    weight: Double,
    into: Map<String, FloatTensor>,
) {
    if (!(weight.isFinite() && weight > 0)) {
        throw NonFiniteException(
            "the batch has total weight $weight",
            mend = "check the weights of the examples: one must be positive",
        )
    }
    val divisor = weight.toFloat()
    for (name in sums.keys.sortedWith(NameOrder)) {
        val sum = sums.getValue(name)
        checkFinite(name, sum, "the gradient of")
        val from = sum.values
        val to = into.getValue(name).values
        for (i in from.indices) to[i] = from[i] / divisor
    }
}

/** L2 norm over all tensors together, in float64 and in order of name. */
internal fun globalNorm(tensors: Map<String, FloatTensor>): Double {
    var total = 0.0
    for (name in tensors.keys.sortedWith(NameOrder)) {
        for (x in tensors.getValue(name).values) {
            val wide = x.toDouble()
            total += wide * wide
        }
    }
    return sqrt(total)
}

/** Scale all tensors in place by f32(limit / norm) when their global norm is above [limit]. */
internal fun clip(
    tensors: Map<String, FloatTensor>,
    limit: Double?,
) {
    if (limit == null) return
    val norm = globalNorm(tensors)
    if (norm <= limit) return
    val scale = (limit / norm).toFloat()
    for (tensor in tensors.values) {
        val values = tensor.values
        for (i in values.indices) values[i] = values[i] * scale
    }
}

/** base to the power of exponent in float64 by squaring, lowest bit of the exponent first. */
internal fun integerPower(
    base: Double,
    exponent: Long,
): Double {
    var result = 1.0
    var square = base
    var left = exponent
    while (left != 0L) {
        if (left and 1L == 1L) result *= square
        square *= square
        left = left shr 1
    }
    return result
}

/**
 * One step, in place.
 *
 * @param theta float32 values of the trained group; they get their new values
 * @param gradients of the mean loss, same names and shapes; they are overwritten
 * @param state what earlier steps of the phase left
 * @param lr learning rate of this step, which a schedule may change
 * @throws NonFiniteException a new value is NaN or infinite; theta and state are of no more use then
 * @throws TensorMismatchException a set lacks a tensor or has another shape
 */
internal fun update(
    theta: Map<String, FloatTensor>,
    gradients: Map<String, FloatTensor>,
    optimizer: Optimizer,
    state: OptimizerState,
    lr: Double = optimizer.lr,
    terms: Terms = Terms(),
) {
    for ((name, x) in theta) same(gradients, name, x, "gradients")
    clip(gradients, terms.clipNorm)
    state.step++
    for (name in theta.keys.sortedWith(NameOrder)) {
        step(name, theta.getValue(name), gradients.getValue(name).values, optimizer, state, lr, terms)
    }
}

private fun step(
    name: String,
    theta: FloatTensor,
    d: FloatArray,
    optimizer: Optimizer,
    state: OptimizerState,
    lr: Double,
    terms: Terms,
) {
    val x = theta.values
    val anchor = terms.anchor?.let { apart(same(it, name, theta, "anchor"), theta) }
    val pull = if (anchor == null) NO_PULL else strength(terms, name, theta)
    val mask = terms.mask?.let { apart(same(it, name, theta, "mask"), theta) }
    if (anchor != null && !terms.implicit) {
        if (pull.size == 1) {
            val strength = pull[0]
            for (i in d.indices) d[i] = d[i] + strength * (x[i] - anchor[i])
        } else {
            for (i in d.indices) d[i] = d[i] + pull[i] * (x[i] - anchor[i])
        }
    }
    if (terms.control != null) {
        val control = same(terms.control, name, theta, "control").values
        for (i in d.indices) d[i] = d[i] + control[i]
    }
    when (optimizer) {
        is AdamW -> adamW(name, theta, d, optimizer, state, lr, mask)
        is Momentum -> momentum(name, theta, d, optimizer, state, lr)
        is Sgd -> sgd(x, d, optimizer, lr)
    }
    subtract(x, d, mask)
    if (anchor != null && terms.implicit) {
        val rate = lr.toFloat()
        for (i in x.indices) {
            val strength = rate * (if (pull.size == 1) pull[0] else pull[i])
            d[i] = (strength / (1f + strength)) * (x[i] - anchor[i])
        }
        subtract(x, d, mask)
    }
    checkFinite(name, theta, "after this step")
}

/** x - M * change. */
private fun subtract(
    x: FloatArray,
    change: FloatArray,
    mask: FloatArray?,
) {
    if (mask == null) {
        for (i in x.indices) x[i] = x[i] - change[i]
    } else {
        for (i in x.indices) x[i] = x[i] - mask[i] * change[i]
    }
}

/** d becomes lr * d. */
private fun sgd(
    x: FloatArray,
    d: FloatArray,
    optimizer: Sgd,
    lr: Double,
) {
    decayIntoGradient(x, d, optimizer.weightDecay)
    val rate = lr.toFloat()
    for (i in d.indices) d[i] = rate * d[i]
}

private fun decayIntoGradient(
    x: FloatArray,
    d: FloatArray,
    weightDecay: Double,
) {
    if (weightDecay == 0.0) return
    val decay = weightDecay.toFloat()
    for (i in d.indices) d[i] = d[i] + decay * x[i]
}

/** d becomes lr * (the momentum, or what Nesterov makes of it). */
private fun momentum(
    name: String,
    theta: FloatTensor,
    d: FloatArray,
    optimizer: Momentum,
    state: OptimizerState,
    lr: Double,
) {
    decayIntoGradient(theta.values, d, optimizer.weightDecay)
    val m = state.slot("m.$name", theta)
    val factor = optimizer.momentum.toFloat()
    val rate = lr.toFloat()
    for (i in d.indices) {
        val now = factor * m[i] + d[i]
        m[i] = now
        d[i] = rate * (if (optimizer.nesterov) d[i] + factor * now else now)
    }
}

/** d becomes lr * opt(d); the decoupled weight decay is subtracted at once. */
private fun adamW(
    name: String,
    theta: FloatTensor,
    d: FloatArray,
    optimizer: AdamW,
    state: OptimizerState,
    lr: Double,
    mask: FloatArray?,
) {
    val m = state.slot("m.$name", theta)
    val v = state.slot("v.$name", theta)
    val (beta1, beta2) = optimizer.betas
    val new1 = (1 - beta1).toFloat()
    val old2 = beta2.toFloat()
    val new2 = (1 - beta2).toFloat()
    val rate = (lr / (1 - integerPower(beta1, state.step))).toFloat()
    val correction2 = sqrt(1 - integerPower(beta2, state.step)).toFloat()
    val eps = optimizer.eps.toFloat()
    for (i in d.indices) {
        val g = d[i]
        val first = m[i] + (g - m[i]) * new1
        val second = v[i] * old2 + (g * g) * new2
        m[i] = first
        v[i] = second
        d[i] = rate * (first / (sqrt(second) / correction2 + eps))
    }
    if (optimizer.weightDecay == 0.0) return
    val x = theta.values
    val decay = (lr * optimizer.weightDecay).toFloat()
    if (mask == null) {
        for (i in x.indices) x[i] = x[i] - decay * x[i]
    } else {
        for (i in x.indices) x[i] = x[i] - mask[i] * (decay * x[i])
    }
}

/** f32(alpha) * one + f32(1 - alpha) * other, written [into] arrays if given; exactly `one` at 1 and `other` at 0. */
internal fun mix(
    one: Map<String, FloatTensor>,
    other: TensorSet,
    alpha: Double,
    into: Map<String, FloatTensor>? = null,
): Map<String, FloatTensor> {
    if (alpha == 1.0) return one
    val a = alpha.toFloat()
    val b = (1 - alpha).toFloat()
    return one.mapValues { (name, x) ->
        val y = same(other, name, x, "mix")
        if (alpha == 0.0) y else x.combined(y, into?.get(name)) { here, there -> a * here + b * there }
    }
}

/** x - f32(rate) * (x - y); exactly y at rate 1. */
internal fun toward(
    x: Map<String, FloatTensor>,
    y: TensorSet,
    rate: Double,
): Map<String, FloatTensor> {
    val r = rate.toFloat()
    return x.mapValues { (name, value) ->
        val goal = same(y, name, value, "toward")
        if (rate == 1.0) goal else value.combined(goal, null) { here, there -> here - r * (here - there) }
    }
}

/**
 * f32(times_1) * set_1 + f32(times_2) * set_2 + ..., added in order, of the tensors that [like] names.
 *
 * @throws NonFiniteException a new value is NaN or infinite
 * @throws TensorMismatchException a set lacks a tensor or has another shape
 */
internal fun combine(
    like: Map<String, FloatTensor>,
    terms: List<Pair<TensorSet, Double>>,
): Map<String, FloatTensor> =
    like.mapValues { (name, x) ->
        val total = FloatArray(x.size)
        terms.forEachIndexed { number, (values, times) ->
            val part = same(values, name, x, "a combined set").values
            val factor = times.toFloat()
            if (number == 0) {
                for (i in total.indices) total[i] = factor * part[i]
            } else {
                for (i in total.indices) total[i] = total[i] + factor * part[i]
            }
        }
        FloatTensor(total, x.shape).also { checkFinite(name, it, "the combination for") }
    }

/** x - f32(rate) * gradients, written [into] arrays if given: the lookahead point. */
internal fun minus(
    x: Map<String, FloatTensor>,
    gradients: Map<String, FloatTensor>,
    rate: Double,
    into: Map<String, FloatTensor>? = null,
): Map<String, FloatTensor> {
    val r = rate.toFloat()
    return x.mapValues { (name, value) -> value.combined(gradients.getValue(name), into?.get(name)) { here, g -> here - r * g } }
}

private inline fun FloatTensor.combined(
    other: FloatTensor,
    into: FloatTensor?,
    operation: (Float, Float) -> Float,
): FloatTensor {
    val one = values
    val two = other.values
    val made = into ?: FloatTensor(FloatArray(one.size), shape)
    val out = made.values
    for (i in out.indices) out[i] = operation(one[i], two[i])
    return made
}

/**
 * Refuse values of which any is NaN or infinite.
 *
 * @throws NonFiniteException naming the tensor
 */
internal fun checkFinite(
    name: String,
    tensor: FloatTensor,
    what: String,
) {
    var bad = 0
    for (x in tensor.values) if (x - x != 0f) bad++ // infinity - infinity is NaN too
    if (bad > 0) {
        throw NonFiniteException(
            "$what '$name': $bad of ${tensor.size} values are NaN or infinite",
            mend = "lower the learning rate or set clip; the state before training is kept",
        )
    }
}

private fun same(
    values: TensorSet,
    name: String,
    like: FloatTensor,
    what: String,
): FloatTensor {
    val value = values[name] ?: throw TensorMismatchException("$what has no tensor '$name'", mend = "give a value for every trained tensor")
    if (value !is FloatTensor || value.shape != like.shape) {
        throw TensorMismatchException(
            "$what '$name' is ${value.signature}, the tensor ${like.signature}",
            mend = "give float32 of the tensor's shape",
        )
    }
    return value
}

/** The set's values; those of theta itself as they are before the step changes them. */
private fun apart(
    value: FloatTensor,
    theta: FloatTensor,
): FloatArray = if (value.values === theta.values) value.values.copyOf() else value.values

private fun strength(
    terms: Terms,
    name: String,
    like: FloatTensor,
): FloatArray {
    val set = terms.muSet ?: return floatArrayOf(terms.mu.toFloat())
    val value = set[name]
    return when {
        value is FloatTensor && value.size == 1 -> floatArrayOf(value.values[0])
        value is LongTensor && value.size == 1 -> floatArrayOf(value.values[0].toFloat())
        else -> apart(same(set, name, like, "mu"), like)
    }
}

private val NO_PULL = floatArrayOf(0f)
