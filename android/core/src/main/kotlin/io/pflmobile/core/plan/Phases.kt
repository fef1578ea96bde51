@file:UseSerializers(StrictLong::class, StrictDouble::class, StrictBoolean::class)

package io.pflmobile.core.plan

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.bundle.TensorUpdate
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.UnknownNameException
import io.pflmobile.core.errors.near
import io.pflmobile.core.files.StrictBoolean
import io.pflmobile.core.files.StrictDouble
import io.pflmobile.core.files.StrictLong
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.UseSerializers

/** What a phase needs of a device's examples. */
internal enum class Needs {
    /** Rows, at least one with a positive weight, or the phase fails. */
    ROWS,

    /** The words of texts. */
    TEXTS,

    /** Rows of tokens, of which there may be none. */
    TOKENS,
}

/** A part of a plan: something that runs, or a repeat of such parts. */
@Serializable
internal sealed interface Phase {
    /** What it does in plain words, a line or more. */
    fun words(): List<String>
}

/** The given phases, several times in order. */
@Serializable
@SerialName("repeat")
internal data class RepeatPhase(
    val times: Long,
    val phases: List<Phase>,
) : Phase {
    init {
        if (times !in 1..MOST_PHASES) invalid("times: $times is not from 1 to $MOST_PHASES")
        if (phases.isEmpty()) invalid("phases: at least one is needed")
    }

    override fun words(): List<String> = listOf("$times times:") + phases.flatMap { it.words() }.map { "  $it" }
}

/**
 * What an executor runs; repeats are unrolled before. A phase describes itself, so that only executors ask of which kind it is.
 *
 * Sets are given by name ([Plan] lists them). Tensors that no gradient trains have no copies: a phase that writes them writes `theta`.
 */
@Serializable
internal sealed interface Step : Phase {
    /** Its name in JSON. */
    val kind: String

    /** Sets that it reads before it writes, in order; of each it reads the tensors that [tensors] names. */
    val reads: List<String>

    /** Sets that its optimizer steps read; by then `start` and the copy that it makes exist. */
    val stepReads: List<String> get() = emptyList()

    /** The set that it writes; null for a phase that changes nothing. */
    val writes: String?

    /** The copy that exists after the phase, even where it did not before. */
    val makesCopy: String? get() = null

    /** The set whose trained values it may make differ from the aggregator's; only such a change can be sent. */
    val changes: String? get() = writes

    /** The set whose values theta's tensors take, whatever they were; null where it does anything else. */
    val takesOver: String? get() = null

    /** The name of the number that it reports. */
    val reported: String? get() = null

    /** What it needs of the examples; null for nothing. */
    val examples: Needs?

    /** Whether it runs again on all examples, held-out ones too, where the plan says `remember_holdout`. */
    val remembers: Boolean get() = false

    /** Programs of the bundle that it calls: `gradients`, `evaluate`. */
    val programs: List<String> get() = emptyList()

    /** Metrics that it asks of the program `evaluate`. */
    val metrics: List<String> get() = emptyList()

    /** Whether it sums up learning rates, by which a later phase may divide. */
    val leavesRate: Boolean get() = false

    /** Whether it divides by the sum of learning rates of an earlier phase. */
    val needsRate: Boolean get() = false

    /** Its number of optimizer steps on [rows] rows of positive weight, in batches of [batch] rows. */
    fun optimizerSteps(
        rows: Int,
        batch: Int,
    ): Long = 0

    /**
     * Names of the tensors that it writes.
     *
     * @throws ConfigException the model has none that the phase means
     */
    fun tensors(table: List<DeviceTensor>): List<String>

    /**
     * Refuse a model whose tensors are not what the phase works on.
     *
     * @throws ConfigException naming it
     */
    fun check(table: List<DeviceTensor>) {
        tensors(table)
    }
}

/** Writes a group of the tensors that gradients train. */
internal sealed interface GroupStep : Step {
    val group: List<String>

    override fun tensors(table: List<DeviceTensor>): List<String> = select(group, table)
}

/** Fills tensors of one module that no gradient trains. */
internal sealed interface ModuleStep : Step {
    val module: String

    /** As their [DeviceTensor.update]. */
    val update: TensorUpdate
    override val reads: List<String> get() = emptyList()
    override val writes: String get() = "theta"
    override val changes: String? get() = null

    override fun tensors(table: List<DeviceTensor>): List<String> =
        own(table).map { it.name }.ifEmpty {
            throw UnknownNameException(
                "the plan's $kind phase is for module '$module', which has no such tensors",
                mend = near(module, table.filter { it.update == update }.mapNotNull { it.module }),
            )
        }

    fun own(table: List<DeviceTensor>): List<DeviceTensor> = table.filter { it.module == module && it.update == update }
}

/** Give free vocabulary slots to the user's most frequent unknown words. */
@Serializable
@SerialName("assign_slots")
internal data class AssignSlotsPhase(
    override val module: String = "slots",
    val minCount: Long = 2,
) : ModuleStep {
    init {
        checkName("module", module)
        checkWhole("min_count", minCount)
    }

    override val kind: String get() = "assign_slots"
    override val update: TensorUpdate get() = TensorUpdate.ASSIGN
    override val examples: Needs get() = Needs.TEXTS

    override fun words(): List<String> = listOf("give free slots of '$module' to unknown words seen $minCount times or more")
}

/** Write the training rows into the n-gram memory (rebuilt from empty every time). */
@Serializable
@SerialName("memorize")
internal data class MemorizePhase(
    override val module: String = "memory",
) : ModuleStep {
    init {
        checkName("module", module)
    }

    override val kind: String get() = "memorize"
    override val update: TensorUpdate get() = TensorUpdate.MEMORIZE
    override val examples: Needs get() = Needs.TOKENS
    override val remembers: Boolean get() = true

    override fun check(table: List<DeviceTensor>) {
        tensors(table)
        memory(table)
    }

    /**
     * The memory's tensors `next` and `context`.
     *
     * @throws ConfigException the module is no memory
     */
    fun memory(table: List<DeviceTensor>): Pair<DeviceTensor, DeviceTensor> {
        val following = own(table).find { it.name.endsWith(".next") }
        val before = own(table).find { it.name.endsWith(".context") }
        if (following == null || before == null) {
            throw ConfigException("module '$module' has no tensors 'next' and 'context'", mend = "use the memory module's name")
        }
        return following to before
    }

    override fun words(): List<String> = listOf("write the examples into the memory '$module'")
}

/** Where a train phase takes its gradients. */
internal sealed interface EvaluateAt {
    /** At the values that it trains. */
    data object Theta : EvaluateAt
}

/** A point other than the trained values themselves. */
@Serializable
internal sealed interface Point : EvaluateAt

/**
 * alpha * theta + (1 - alpha) * other: 1 is theta itself, 0 the other set. The gradient taken there is used as it is (not multiplied by
 * alpha); lr can absorb the factor.
 */
@Serializable
@SerialName("mix")
internal data class Mix(
    val other: String,
    val alpha: Double,
) : Point {
    init {
        checkName("other", other)
        checkNotNegative("alpha", alpha, most = 1.0)
    }
}

/** theta - step * g(B1), with the gradient then taken there on the next batch B2 (first-order MAML). */
@Serializable
@SerialName("lookahead")
internal data class Lookahead(
    val step: Double,
) : Point {
    init {
        checkNotNegative("step", step)
    }
}

@Serializable
internal enum class Prox {
    @SerialName("explicit")
    EXPLICIT,

    @SerialName("implicit")
    IMPLICIT,
}

@Serializable
internal enum class Schedule {
    @SerialName("constant")
    CONSTANT,

    @SerialName("linear")
    LINEAR,
}

/**
 * Gradient steps on a group of tensors.
 *
 * @property group patterns: tensor names with `*` and `?`, `role:<role>` or `module:<name>`
 * @property steps optimizer steps; exactly one of [steps] and [epochs] is given
 * @property epochs passes over the training rows
 * @property maxSteps with epochs, the most optimizer steps; a schedule then ends there
 * @property batchesPerStep batches whose gradients make one step; all of them is full-batch descent
 * @property holdBatch every step of the phase uses the phase's first batches again (pFedMe's inner steps)
 * @property trains `theta`, or the name of a copy of the group, kept in the personal state
 * @property startFrom set that the trained values are reset to first; null goes on from where they are (a new copy from theta)
 * @property evaluateAt where gradients are taken
 * @property anchor set that the proximal term mu * (theta - anchor) pulls to
 * @property mu its strength; 0 is none
 * @property prox explicit adds the term to the gradient, as in the papers, and is stable only while lr * mu < 2; implicit applies the
 *   exact proximal step after each optimizer step, stable for every mu
 * @property control set added to the gradient (SCAFFOLD's c - c_i)
 * @property mask set multiplied into every change; 0 keeps an entry exactly as it is
 * @property clip largest global L2 norm of the group's gradient; null is no limit
 * @property schedule constant, or linear: lr * (1 - step / steps)
 */
@Serializable
@SerialName("train")
internal data class TrainPhase(
    override val group: List<String> = listOf("*"),
    val steps: Long? = null,
    val epochs: Long? = null,
    val maxSteps: Long? = null,
    @Serializable(with = BatchesPerStepSerializer::class)
    val batchesPerStep: BatchesPerStep = BatchesPerStep.Count(1),
    val holdBatch: Boolean = false,
    val trains: String = "theta",
    val startFrom: String? = null,
    @Serializable(with = EvaluateAtSerializer::class)
    val evaluateAt: EvaluateAt = EvaluateAt.Theta,
    val anchor: String? = null,
    @Serializable(with = MuSerializer::class)
    val mu: Mu = Mu.Number(0.0),
    val prox: Prox = Prox.EXPLICIT,
    val control: String? = null,
    val mask: String? = null,
    val optimizer: Optimizer,
    val clip: Double? = null,
    val schedule: Schedule = Schedule.CONSTANT,
) : GroupStep {
    init {
        checkPatterns("group", group)
        checkWhole("steps", steps)
        checkWhole("epochs", epochs)
        checkWhole("max_steps", maxSteps)
        if (batchesPerStep is BatchesPerStep.Count) checkWhole("batches_per_step", batchesPerStep.value)
        for ((field, name) in listOf(
            "trains" to trains,
            "start_from" to startFrom,
            "anchor" to anchor,
            "control" to control,
            "mask" to mask,
        )) {
            checkName(field, name)
        }
        when (mu) {
            is Mu.Number -> checkNotNegative("mu", mu.value, most = MOST_STRENGTH)
            is Mu.Named -> checkName("mu", mu.set)
        }
        checkPositive("clip", clip)
        checkTogether()
        checkOwnName("trains", trains)
    }

    private fun checkTogether() {
        if ((steps == null) == (epochs == null)) invalid("give exactly one of steps and epochs")
        if (maxSteps != null && epochs == null) invalid("max_steps goes with epochs, not with steps")
        if (mu != Mu.Number(0.0) && anchor == null) invalid("mu needs an anchor, for instance 'global' or 'initial'")
        if (prox == Prox.EXPLICIT && mu is Mu.Number && optimizer !is AdamW && mu.value * optimizer.lr >= 2) {
            invalid("lr * mu is 2 or more, which diverges: lower one, or set prox to 'implicit'")
        }
        if (holdBatch && epochs != null) invalid("hold_batch goes with steps, not with epochs")
    }

    override val kind: String get() = "train"
    override val reads: List<String> get() = listOfNotNull(startFrom)
    override val stepReads: List<String>
        get() = listOfNotNull(anchor, control, mask, (mu as? Mu.Named)?.set, (evaluateAt as? Mix)?.other)
    override val writes: String get() = trains
    override val makesCopy: String? get() = trains.takeIf { it != "theta" }
    override val examples: Needs get() = Needs.ROWS
    override val programs: List<String> get() = listOf("gradients")
    override val leavesRate: Boolean get() = true

    /** Gradients that one optimizer step takes, each of other batches: two with a lookahead (B1, B2). */
    val gradientsPerStep: Int get() = if (evaluateAt is Lookahead) 2 else 1

    /** Batches that make one gradient, in an epoch of [batches] batches. */
    fun batchesPerGradient(batches: Int): Int =
        when (batchesPerStep) {
            BatchesPerStep.All -> batches
            is BatchesPerStep.Count -> minOf(batchesPerStep.value, batches.toLong()).toInt()
        }

    override fun optimizerSteps(
        rows: Int,
        batch: Int,
    ): Long {
        if (steps != null) return steps
        val batches = -(-rows).floorDiv(batch)
        val each = maxOf(batchesPerGradient(batches), 1).toLong() * gradientsPerStep
        val all = saturatedProduct(epochs ?: 0, -(-batches).toLong().floorDiv(each))
        return minOf(all, maxSteps ?: all)
    }

    override fun words(): List<String> {
        val words = mutableListOf(if (group == listOf("*")) "train all tensors" else "train ${group.joinToString()}")
        words += (if (steps == null) "for $epochs epochs" else "for $steps steps")
        if (maxSteps != null) words += "$maxSteps steps at most"
        words += "with ${optimizer.kind}"
        words += "lr ${general(optimizer.lr)}"
        if (schedule == Schedule.LINEAR) words += "falling to 0"
        if (optimizer.weightDecay != 0.0) words += "weight decay ${general(optimizer.weightDecay)}"
        if (clip != null) words += "gradients clipped to ${general(clip)}"
        if (batchesPerStep != BatchesPerStep.Count(1)) words += "$batchesPerStep batches a step"
        if (holdBatch) words += "all on the same batch"
        if (trains != "theta") words += "into the copy '$trains'"
        if (startFrom != null) words += "starting from $startFrom"
        if (anchor != null) words += "held near $anchor (mu $mu)"
        when (evaluateAt) {
            is Mix -> words += "gradients at a mix with ${evaluateAt.other}"
            is Lookahead -> words += "gradients one step of ${general(evaluateAt.step)} ahead"
            EvaluateAt.Theta -> Unit
        }
        if (control != null) words += "plus control '$control'"
        if (mask != null) words += "masked by '$mask'"
        return listOf(words.joinToString())
    }
}

/** x <- x - rate * (x - y), for x = theta or a copy and y another set (pFedMe's outer step, Reptile). */
@Serializable
@SerialName("move")
internal data class MovePhase(
    override val group: List<String> = listOf("*"),
    val moves: String = "theta",
    val toward: String,
    val rate: Double,
) : GroupStep {
    init {
        checkPatterns("group", group)
        checkName("moves", moves)
        checkName("toward", toward)
        checkNotNegative("rate", rate, most = 2.0)
    }

    override val kind: String get() = "move"
    override val reads: List<String> get() = listOf(moves, toward)
    override val writes: String get() = moves
    override val changes: String? get() = moves.takeIf { toward != "global" }
    override val takesOver: String? get() = toward.takeIf { moves == "theta" && rate == 1.0 }
    override val examples: Needs? get() = null

    override fun words(): List<String> = listOf("move $moves towards $toward by a factor of ${general(rate)}")
}

@Serializable
internal enum class Per {
    @SerialName("one")
    ONE,

    @SerialName("rate")
    RATE,
}

/**
 * One summand of a combination: times * of.
 *
 * @property of a set
 * @property times factor
 * @property per rate divides the factor by the sum of the learning rates of all steps of the last train phase before this one
 *   (SCAFFOLD's 1 / (K lr))
 */
@Serializable
internal data class Term(
    val of: String,
    val times: Double = 1.0,
    val per: Per = Per.ONE,
) {
    init {
        checkName("of", of)
    }
}

/** x <- f32(times_1) * set_1 + f32(times_2) * set_2 + ..., added in order (control variates). */
@Serializable
@SerialName("combine")
internal data class CombinePhase(
    override val group: List<String> = listOf("*"),
    val makes: String,
    val terms: List<Term>,
) : GroupStep {
    init {
        checkPatterns("group", group)
        checkName("makes", makes)
        if (terms.isEmpty()) invalid("terms: at least one is needed")
        checkOwnName("makes", makes)
    }

    override val kind: String get() = "combine"
    override val reads: List<String> get() = terms.map { it.of }
    override val writes: String get() = makes
    override val makesCopy: String? get() = makes.takeIf { it != "theta" }
    override val examples: Needs? get() = null
    override val needsRate: Boolean get() = terms.any { it.per == Per.RATE }

    override fun words(): List<String> {
        val parts = terms.map { "${general(it.times)} ${it.of}" + if (it.per == Per.RATE) " / learning rates" else "" }
        return listOf("set $makes to ${parts.joinToString(" + ")}")
    }
}

/**
 * Report a metric of the training examples, measured with the set [at] in the place of theta. What is reported is sent beside the
 * update: one number, which the aggregator weights or chooses by.
 */
@Serializable
@SerialName("measure")
internal data class MeasurePhase(
    val report: String,
    val at: String = "theta",
    val metric: String = "loss",
) : Step {
    init {
        checkName("report", report)
        checkName("at", at)
        checkName("metric", metric)
    }

    override val kind: String get() = "measure"
    override val reads: List<String> get() = listOf(at)
    override val writes: String? get() = null
    override val reported: String get() = report
    override val examples: Needs get() = Needs.ROWS
    override val programs: List<String> get() = listOf("evaluate")
    override val metrics: List<String> get() = listOf(metric)

    // What the set lacks is taken of theta.
    override fun tensors(table: List<DeviceTensor>): List<String> = emptyList()

    override fun words(): List<String> = listOf("measure the $metric of $at and report it as '$report'")
}

/**
 * theta's group becomes the set, of those named, with the least loss on the training examples (IFCA). The first of equals wins; its
 * index, counted from 0, is reported.
 */
@Serializable
@SerialName("choose")
internal data class ChoosePhase(
    override val group: List<String> = listOf("*"),
    val among: List<String>,
    val report: String,
) : GroupStep {
    init {
        checkPatterns("group", group)
        checkPatterns("among", among)
        checkName("report", report)
    }

    override val kind: String get() = "choose"
    override val reads: List<String> get() = among
    override val writes: String get() = "theta"
    override val reported: String get() = report
    override val examples: Needs get() = Needs.ROWS
    override val programs: List<String> get() = listOf("evaluate")
    override val metrics: List<String> get() = listOf("loss")

    override fun words(): List<String> = listOf("go on from what fits best of ${among.joinToString()}; report '$report'")
}

/** The phases in the order they run, repeats unrolled. */
internal fun unrolled(phases: List<Phase>): List<Step> =
    buildList {
        for (phase in phases) {
            when (phase) {
                is Step -> add(phase)
                is RepeatPhase -> unrolled(phase.phases).let { inner -> repeat(phase.times.toInt()) { addAll(inner) } }
            }
        }
    }

/** The length of [unrolled], computed without unrolling: repeats within repeats may make it astronomical. */
internal fun unrolledCount(phases: List<Phase>): Long =
    phases.fold(0L) { sum, phase ->
        val count = if (phase is RepeatPhase) saturatedProduct(phase.times, unrolledCount(phase.phases)) else 1
        if (sum > Long.MAX_VALUE - count) Long.MAX_VALUE else sum + count
    }

/** Each different phase once, in the order of their first runs. */
internal fun distinct(phases: List<Phase>): List<Step> =
    phases
        .flatMap { phase ->
            when (phase) {
                is Step -> listOf(phase)
                is RepeatPhase -> distinct(phase.phases)
            }
        }.distinct()

/** The product of numbers of 0 or more, or the largest number where it is larger. */
internal fun saturatedProduct(
    one: Long,
    other: Long,
): Long = if (other != 0L && one > Long.MAX_VALUE / other) Long.MAX_VALUE else one * other

/** The most phases a plan may run, repeats unrolled. */
internal const val MOST_PHASES: Long = 100_000
private const val MOST_STRENGTH = 1e30
