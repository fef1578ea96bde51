package io.pflmobile.core.local

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.bundle.TensorUpdate
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.DataException
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.errors.UnknownNameException
import io.pflmobile.core.errors.near
import io.pflmobile.core.plan.AssignSlotsPhase
import io.pflmobile.core.plan.ChoosePhase
import io.pflmobile.core.plan.CombinePhase
import io.pflmobile.core.plan.EvaluateAt
import io.pflmobile.core.plan.Lookahead
import io.pflmobile.core.plan.MeasurePhase
import io.pflmobile.core.plan.MemorizePhase
import io.pflmobile.core.plan.Mix
import io.pflmobile.core.plan.MovePhase
import io.pflmobile.core.plan.Mu
import io.pflmobile.core.plan.Per
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.plan.Prox
import io.pflmobile.core.plan.Schedule
import io.pflmobile.core.plan.Serve
import io.pflmobile.core.plan.ServeMix
import io.pflmobile.core.plan.Step
import io.pflmobile.core.plan.TrainPhase
import io.pflmobile.core.plan.select
import io.pflmobile.core.rows.Rows
import io.pflmobile.core.rows.counting
import io.pflmobile.core.rows.epochOrder
import io.pflmobile.core.rows.take
import io.pflmobile.core.rows.weightedRows
import io.pflmobile.core.state.PersonalState
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.Tensor
import kotlin.time.TimeMark
import kotlin.time.TimeSource

/**
 * Everything that training changes; a checkpoint holds all of it. Its maps are its own. Arrays are shared with where they came from and
 * never change, but for those of the group that a train phase trains, which are copied when the phase begins.
 *
 * @property phase index into the unrolled phases
 * @property step steps done in this phase
 * @property done steps done in all phases
 * @property start trained values at the start of this phase
 * @property losses mean loss of every step so far
 * @property rate sum of the learning rates of the last train phase's steps
 * @property reports what phases measured
 */
internal class Work(
    val tensors: MutableMap<String, Tensor>,
    val copies: MutableMap<String, Map<String, Tensor>> = LinkedHashMap(),
    var words: List<String> = emptyList(),
    var phase: Int = 0,
    var step: Long = 0,
    var done: Long = 0,
    var optimizer: OptimizerState = OptimizerState(),
    var start: Map<String, FloatTensor> = emptyMap(),
    val losses: MutableList<Double> = ArrayList(),
    var rate: Double = 0.0,
    val reports: MutableMap<String, Double> = LinkedHashMap(),
) {
    companion object {
        /** A working copy; shipped values for what the state lacks. */
        fun of(
            state: PersonalState?,
            initial: TensorSet,
        ): Work =
            if (state == null) {
                Work(LinkedHashMap(initial))
            } else {
                Work(LinkedHashMap(initial + state.tensors), LinkedHashMap(state.copies), state.words)
            }
    }
}

/**
 * Runs the phases of a plan on a working copy of the state.
 *
 * @property table the device tensors
 * @property sets named sets that the host gives
 * @property rows the training examples
 * @property encoder for [texts], with the words that have a slot
 * @property afterStep told of each step: all steps of the plan, the mean loss and seconds; false stops the run
 */
internal class PhaseRunner(
    private val plan: Plan,
    private val programs: Programs,
    private val table: List<DeviceTensor>,
    private val sets: Map<String, TensorSet>,
    private var rows: Rows,
    private var encoder: Encoder? = null,
    private val texts: List<String>? = null,
    private val clock: TimeSource = TimeSource.Monotonic,
    private val afterStep: (Work, Long, Double, Double) -> Boolean = { _, _, _, _ -> true },
) {
    private val steps = plan.steps()
    private var counted: Pair<Rows, Long>? = null

    /** Optimizer steps of the whole plan on the present rows; 0 when no row counts. */
    fun totalSteps(): Long {
        counted?.let { (rows, total) -> if (rows === this.rows) return total }
        val count = counting(rows.getValue("weight") as FloatTensor).size
        var total = 0L
        for (phase in steps) total = maxOf(total, total + phase.optimizerSteps(count, programs.batchSize)) // no overflow to below
        counted = rows to total
        return total
    }

    /** Run the phases from where [work] stands; false if stopped. */
    fun run(work: Work): Boolean {
        for ((name, start) in plan.copies) {
            val source = namedSet(start.of, work, sets)
            val fresh = select(start.group, table).associateWith { source.tensor(it, start.of) }
            work.copies[name] = fresh + work.copies[name].orEmpty()
        }
        while (work.phase < steps.size) {
            if (!run(steps[work.phase], work)) return false
            work.phase++
            work.step = 0
            work.optimizer = OptimizerState()
            work.start = emptyMap()
        }
        return true
    }

    /** Run again the phases that remember examples: the plan's `remember_holdout`. */
    fun remember(work: Work) {
        for (phase in plan.distinctSteps()) if (phase.remembers) run(phase, work)
    }

    /** Run one phase, a train phase from where the work's step stands; false if stopped. */
    private fun run(
        phase: Step,
        work: Work,
    ): Boolean {
        when (phase) {
            is TrainPhase -> return train(phase, work)
            is MovePhase -> move(phase, work)
            is CombinePhase -> combine(phase, work)
            is MeasurePhase -> work.reports[phase.report] = measure(phase.at, phase.metric, work)
            is ChoosePhase -> choose(phase, work)
            is AssignSlotsPhase -> assign(phase, work)
            is MemorizePhase -> memorize(phase, work)
        }
        return true
    }

    private fun train(
        phase: TrainPhase,
        work: Work,
    ): Boolean {
        val group = select(phase.group, table)
        val rows = weightedRows(rows, "training rows")
        val steps = phase.optimizerSteps(rows.getValue("weight").shape[0], programs.batchSize)
        if (work.step == 0L) begin(phase, group, work)
        // The phase's own arrays: the ones they are copied from may be the shipped values, another set or the old state.
        val theta = namedSet(phase.trains, work, sets).floats(group, phase.trains).mapValues { it.value.copy() }
        store(phase.trains, theta, work)
        val batches = GradientBatches(phase, rows, programs.batchSize, plan.seed, work.phase)
        batches.skip(work.step * phase.gradientsPerStep)
        val descent = Descent(phase, theta, work, batches)
        while (work.step < steps) {
            val began = clock.markNow()
            val loss = descent.step(if (phase.schedule == Schedule.LINEAR) 1 - work.step.toDouble() / steps else 1.0)
            if (!stepped(work, loss, began)) return false
        }
        return true
    }

    private fun begin(
        phase: TrainPhase,
        group: List<String>,
        work: Work,
    ) {
        // A copy is made from theta; one from an earlier run may hold fewer tensors than this group.
        val own = if (phase.trains == "theta") emptyMap() else work.copies[phase.trains].orEmpty()
        val now = (work.tensors + own).floats(group, phase.trains)
        work.start = if (phase.startFrom == null) now else toward(now, namedSet(phase.startFrom, work, sets), 1.0)
        work.rate = 0.0
        store(phase.trains, work.start, work)
    }

    private fun stepped(
        work: Work,
        loss: Double,
        began: TimeMark,
    ): Boolean {
        work.step++
        work.done++
        work.losses += loss
        return afterStep(work, totalSteps(), loss, began.elapsedNow().inWholeNanoseconds / NANOS)
    }

    /** The steps of one train phase; what they need anew each time they allocate once. */
    private inner class Descent(
        private val phase: TrainPhase,
        private val theta: Map<String, FloatTensor>,
        private val work: Work,
        private val batches: GradientBatches,
    ) {
        private val outputs = theta.keys.associateWith { "grad.$it" }
        private val gradient = theta.mapValues { (_, x) -> FloatTensor(FloatArray(x.size), x.shape) }
        private val elsewhere =
            if (phase.evaluateAt == EvaluateAt.Theta) emptyMap() else theta.mapValues { (_, x) -> FloatTensor(FloatArray(x.size), x.shape) }
        private val other = (phase.evaluateAt as? Mix)?.let { namedSet(it.other, work, sets) }.orEmpty()
        private val terms =
            Terms(
                clipNorm = phase.clip,
                anchor = phase.anchor?.let { namedSet(it, work, sets) },
                mu = (phase.mu as? Mu.Number)?.value ?: 0.0,
                muSet = (phase.mu as? Mu.Named)?.let { namedSet(it.set, work, sets) },
                implicit = phase.prox == Prox.IMPLICIT,
                control = phase.control?.let { namedSet(it, work, sets) },
                mask = phase.mask?.let { namedSet(it, work, sets) },
            )

        /** One step; returns the mean loss before it. The learning rate is multiplied by [share]. */
        fun step(share: Double): Double {
            val point =
                when (val at = phase.evaluateAt) {
                    EvaluateAt.Theta -> {
                        theta
                    }

                    is Mix -> {
                        mix(theta, other, at.alpha, elsewhere)
                    }

                    is Lookahead -> {
                        gradientAt(theta)
                        minus(theta, gradient, at.step, elsewhere)
                    }
                }
            val loss = gradientAt(point)
            val lr = phase.optimizer.lr * share
            work.rate += lr
            update(theta, gradient, phase.optimizer, work.optimizer, lr, terms)
            return loss
        }

        /**
         * Gradient of the mean loss over the next batches together, and that loss. Gradient sums are added in float32 in batch order,
         * loss and weight in float64.
         */
        private fun gradientAt(point: Map<String, FloatTensor>): Double {
            var loss = 0.0
            var weight = 0.0
            var sums: Map<String, FloatTensor>? = null
            for (batch in batches.next()) {
                val out = programs.gradients(batch, point, work.tensors)
                loss += scalar(out, "loss_sum")
                weight += scalar(out, "weight_sum")
                val found = outputs.mapValues { (name, key) -> gradientOf(out[key], name) }
                sums = if (sums == null) found else add(sums, found)
            }
            meanGradients(checkNotNull(sums) { "a gradient has a batch" }, weight, gradient)
            return loss / weight
        }

        private fun add(
            sums: Map<String, FloatTensor>,
            found: Map<String, FloatTensor>,
        ): Map<String, FloatTensor> {
            for ((name, sum) in sums) {
                val one = sum.values
                val two = found.getValue(name).values
                val total = gradient.getValue(name).values
                for (i in total.indices) total[i] = one[i] + two[i]
            }
            return gradient
        }

        private fun gradientOf(
            output: Tensor?,
            name: String,
        ): FloatTensor {
            if (output !is FloatTensor || output.size != theta.getValue(name).size) {
                throw TensorMismatchException(
                    "the program gives ${output?.signature ?: "nothing"} as the gradient of '$name'",
                    mend = "export the bundle again",
                )
            }
            return output
        }
    }

    private fun move(
        phase: MovePhase,
        work: Work,
    ) {
        val x = namedSet(phase.moves, work, sets).floats(select(phase.group, table), phase.moves)
        store(phase.moves, toward(x, namedSet(phase.toward, work, sets), phase.rate), work)
    }

    private fun combine(
        phase: CombinePhase,
        work: Work,
    ) {
        val terms = phase.terms.map { namedSet(it.of, work, sets) to if (it.per == Per.RATE) it.times / work.rate else it.times }
        store(phase.makes, combine(work.tensors.floats(select(phase.group, table), "theta"), terms), work)
    }

    /** A metric of the training rows, gradient-trained tensors taken from the set [at]. */
    private fun measure(
        at: String,
        metric: String,
        work: Work,
    ): Double {
        val values = namedSet(at, work, sets)
        val names = table.filter { it.update == TensorUpdate.GRADIENT }.mapTo(HashSet()) { it.name }
        val tensors = work.tensors.mapValues { (name, value) -> if (name in names) values[name] ?: value else value }
        val metrics = programs.evaluate(weightedRows(rows, "training rows"), tensors)
        val found =
            metrics[metric]
                ?: throw UnknownNameException("the plan measures '$metric', which the bundle does not", mend = near(metric, metrics.keys))
        if (!found.isFinite()) {
            throw NonFiniteException(
                "the $metric of the set '$at' is $found",
                mend = "check the examples and that set; the state before training is kept",
            )
        }
        return found
    }

    private fun choose(
        phase: ChoosePhase,
        work: Work,
    ) {
        val losses = phase.among.map { measure(it, "loss", work) }
        val best = losses.indexOf(losses.min())
        val now = work.tensors.floats(select(phase.group, table), "theta")
        store("theta", toward(now, namedSet(phase.among[best], work, sets), 1.0), work)
        work.reports[phase.report] = best.toDouble()
    }

    private fun assign(
        phase: AssignSlotsPhase,
        work: Work,
    ) {
        val given = encoder
        if (given == null || texts == null) {
            throw ConfigException(
                "the plan assigns vocabulary slots but the examples are arrays",
                mend = "give texts and an encoder, or leave the assign_slots phase out",
            )
        }
        val before = given.withWords(work.words)
        for (tensor in phase.own(table)) {
            val size = tensor.shape[0]
            work.words = before.chooseWords(texts, phase.minCount).take(size)
            work.tensors[tensor.name] = active(work.words.size, size)
        }
        val now = before.withWords(work.words)
        encoder = now
        rows = now.encode(texts, dropUnknown = true)
    }

    private fun memorize(
        phase: MemorizePhase,
        work: Work,
    ) {
        val (following, before) = phase.memory(table)
        val tokens = rows["tokens"] as? LongTensor
        val labels = rows["labels"] as? LongTensor
        val weight = rows["weight"] as? FloatTensor
        if (tokens == null || labels == null || weight == null) {
            throw DataException("the rows have no tokens, labels and weight", mend = "memorize needs rows of tokens")
        }
        val made = memorize(tokens, labels, weight, following.shape[0], before.shape[1])
        work.tensors[following.name] = made.next
        work.tensors[before.name] = made.context
    }

    private companion object {
        const val NANOS = 1e9
    }
}

/** The batches of each gradient, epoch after epoch; each epoch has an order of its own. */
private class GradientBatches(
    private val phase: TrainPhase,
    private val rows: Rows,
    private val size: Int,
    private val seed: Long,
    private val index: Int,
) {
    private val count = rows.getValue("weight").shape[0]
    private val batches = -(-count).floorDiv(size)
    private val each = phase.batchesPerGradient(batches)
    private val perEpoch = -(-batches).floorDiv(each)
    private val held = ArrayList<List<Rows>>()
    private var number = 0L
    private var epoch = -1L
    private var order = IntArray(0)

    /** Leave out the batches of so many gradients. */
    fun skip(gradients: Long) {
        number = gradients
    }

    fun next(): List<Rows> {
        val now = number++
        if (!phase.holdBatch) return made(now)
        val place = (now % phase.gradientsPerStep).toInt()
        while (held.size <= place) held += made(held.size.toLong())
        return held[place]
    }

    private fun made(gradient: Long): List<Rows> {
        if (gradient / perEpoch != epoch) {
            epoch = gradient / perEpoch
            order = epochOrder(count, seed, index, epoch)
        }
        val first = (gradient % perEpoch).toInt() * each
        return (first until minOf(first + each, batches)).map { take(rows, order, it * size, minOf((it + 1) * size, count), size) }
    }
}

/**
 * The arrays that a plan calls [name].
 *
 * @throws UnknownNameException there are none
 */
internal fun namedSet(
    name: String,
    work: Work,
    sets: Map<String, TensorSet>,
): TensorSet =
    when (name) {
        "theta" -> {
            work.tensors
        }

        "start" -> {
            work.start
        }

        "zero" -> {
            zeros(work.tensors)
        }

        else -> {
            work.copies[name] ?: sets[name] ?: (listOf("theta", "start", "zero") + work.copies.keys + sets.keys).let { known ->
                throw UnknownNameException("the plan names a set '$name' that is not there", mend = near(name, known))
            }
        }
    }

private fun zeros(like: TensorSet): TensorSet =
    like.filterValues { it is FloatTensor }.mapValues { (_, value) -> FloatTensor(FloatArray(value.size), value.shape) }

private fun store(
    name: String,
    values: TensorSet,
    work: Work,
) {
    if (name == "theta") work.tensors.putAll(values) else work.copies[name] = work.copies[name].orEmpty() + values
}

private fun TensorSet.tensor(
    name: String,
    what: String,
): Tensor = this[name] ?: throw TensorMismatchException("$what has no tensor '$name'", mend = "give a value for every trained tensor")

/** Tensors of a group, in its order. */
private fun TensorSet.floats(
    group: List<String>,
    what: String,
): Map<String, FloatTensor> =
    group.associateWith { name ->
        tensor(name, what) as? FloatTensor
            ?: throw TensorMismatchException("$what '$name' is no float32", mend = "only float32 tensors are trained by gradients")
    }

/** The copies that the personal state keeps. */
internal fun keptCopies(
    plan: Plan,
    work: Work,
): Map<String, Map<String, Tensor>> = work.copies.filterKeys { plan.keep == null || it in plan.keep }

/**
 * The device tensors that predictions use under [serve] of a plan. Only gradient-trained tensors have copies; a copy not yet made
 * stands for theta.
 */
internal fun served(
    serve: Serve,
    work: Work,
    sets: Map<String, TensorSet>,
): TensorSet {
    fun resolve(name: String): TensorSet = work.copies[name] ?: sets[name] ?: work.tensors
    return when (serve) {
        is Serve.Named -> {
            work.tensors + resolve(serve.set)
        }

        is ServeMix -> {
            val other = resolve(serve.other)
            val one = resolve(serve.one).filterKeys { it in other && work.tensors[it] is FloatTensor }
            work.tensors + mix(one.mapValues { it.value as FloatTensor }, other, serve.alpha)
        }
    }
}
