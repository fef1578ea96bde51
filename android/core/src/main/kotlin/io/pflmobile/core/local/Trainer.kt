package io.pflmobile.core.local

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.engines.Session
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.NoExamplesException
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.errors.TooManyStepsException
import io.pflmobile.core.errors.TooSlowException
import io.pflmobile.core.errors.TrainingException
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.plan.Serve
import io.pflmobile.core.plan.Start
import io.pflmobile.core.plan.checkPlan
import io.pflmobile.core.rows.Rows
import io.pflmobile.core.rows.checkRows
import io.pflmobile.core.rows.joinRows
import io.pflmobile.core.state.Loaded
import io.pflmobile.core.state.PersonalState
import io.pflmobile.core.state.StateStore
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.Tensor
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.isActive
import kotlin.coroutines.CoroutineContext
import kotlin.time.TimeSource

/**
 * What training on a device must not exceed; null for no limit.
 *
 * @property steps optimizer steps of the whole plan
 * @property seconds of one call of [LocalTrainer.personalize], up to the step after which it ends
 */
public class Most(
    public val steps: Long? = null,
    public val seconds: Double? = null,
)

/**
 * Trains a personal state by a plan, on any engine, and adopts it only if the guard agrees. Killed or cancelled at any moment, the last
 * good state stays. With checkpoints a later call with the same plan and examples goes on from the last one, bit for bit as if never
 * stopped; without, or with other examples, training starts again from the last good state.
 *
 * @param session engine with `gradients` and `evaluate`
 * @param plan what to do
 * @param tensors the manifest's device tensors
 * @param initial their shipped values
 * @param encoder for examples given as texts
 * @param sets arrays that the plan names: `global` (the aggregator's latest values), controls, masks, ...
 * @param most what it must not exceed, as the bundle says
 * @throws ConfigException the plan does not fit the tensors
 * @throws TensorMismatchException [initial] does not fit the tensors
 */
public class LocalTrainer(
    session: Session,
    private val plan: Plan,
    private val tensors: List<DeviceTensor>,
    initial: Map<String, Tensor>,
    private val encoder: Encoder? = null,
    sets: Map<String, Map<String, Tensor>> = emptyMap(),
    private val most: Most = Most(),
) {
    internal val initial: TensorSet = tensors.associate { it.name to shipped(it, initial) }

    /** The sets that the plan reads, `initial` and `global` among them. */
    internal val sets: Map<String, TensorSet> =
        mapOf("initial" to this.initial) + sets + ("global" to this.initial + sets["global"].orEmpty())
    internal val programs: Programs = Programs(session, this.initial.keys)

    /** Measures the time of steps; tests set their own. */
    internal var clock: TimeSource = TimeSource.Monotonic

    /** What predictions use of the state that training begins with, where a task's plan made it; null for what [plan] says. */
    internal var servesBefore: Serve? = null

    init {
        checkPlan(plan, tensors, this.sets.keys, emptyList())
    }

    /**
     * Metrics of a state (null: the shipped values) on examples, as the guard measures them. With texts, labels outside the vocabulary
     * are left out where the guard compares a loss, and count as misses where it compares a recall.
     *
     * @throws NoExamplesException nothing in the examples counts
     */
    public fun evaluate(
        examples: Examples,
        state: PersonalState? = null,
    ): Map<String, Double> {
        val work = Work.of(state, initial)
        return measure(heldOut(examples, work.words, encoder), work)
    }

    /**
     * Metrics of a state (null: the shipped values) on examples, whatever the guard compares; see [metricSums].
     *
     * @param known slot words that were there when a comparison began; by default the state's own
     * @param serve what predictions use of the state
     * @throws NoExamplesException nothing in the examples counts
     */
    internal fun measure(
        examples: Examples,
        state: PersonalState?,
        known: List<String> = state?.words.orEmpty(),
        serve: Serve = plan.serve,
    ): Map<String, Double> {
        val work = Work.of(state, initial)
        val sums = metricSums(programs, served(serve, work, sets), examples, encoder, work.words, known)
        return sums.mapValues { (_, sum) -> sum.first / sum.second }
    }

    /**
     * Train, measure, and adopt the result if it is better. It runs on the caller's dispatcher; choose one for computing. A cancelled
     * coroutine stops within one step, after a checkpoint.
     *
     * @param train oldest first
     * @param holdout the newest examples, never trained on; memorized after adoption if the plan asks for it
     * @param state from which training goes on, where there is no [store]; null for the shipped values
     * @param store training goes on from its current version, and it gets the result
     * @param checkpoints where training under way is kept; needs a store
     * @param publish false writes an adopted state into the store, but leaves the old one current
     * @param stop asked after each step; true ends training with [Status.CANCELLED]
     * @param onProgress called after each step
     * @throws NonFiniteException training diverged; the old state stays
     * @throws NoExamplesException no training row has a positive weight
     * @throws TooManyStepsException the bundle's limit; the old state stays
     * @throws TooSlowException the bundle's limit; the old state stays
     */
    public suspend fun personalize(
        train: Examples,
        holdout: Examples,
        state: PersonalState? = null,
        store: StateStore? = null,
        checkpoints: Checkpoints? = null,
        publish: Boolean = true,
        stop: () -> Boolean = { false },
        onProgress: (Progress) -> Unit = {},
    ): TrainReport {
        val context = currentCoroutineContext()
        context.ensureActive()
        val held = store?.hold()
        try {
            val loaded = store?.load() ?: Loaded(state, 0)
            val own = if (store == null) encoder else encoder?.withBlocked(store.blocked())
            val run = Run(train, holdout, own, store, loaded, checkpoints.takeIf { store != null }, publish, context, stop, onProgress)
            val report = run.run()
            if (report.status == Status.CANCELLED) context.ensureActive()
            return report
        } finally {
            held?.close()
        }
    }

    private fun measure(
        rows: Rows,
        work: Work,
        serve: Serve = plan.serve,
    ): Map<String, Double> = programs.evaluate(rows, served(serve, work, sets))

    private fun encode(
        examples: Examples,
        words: List<String>,
        encoder: Encoder?,
        dropUnknown: Boolean,
        what: String,
    ): Rows {
        val rows =
            when (examples) {
                is Examples.Arrays -> {
                    examples.rows
                }

                is Examples.Texts -> {
                    encoder?.withWords(words)?.encode(examples.texts, dropUnknown)
                        ?: throw ConfigException("the $what examples are texts but there is no encoder", mend = "give an encoder")
                }
            }
        checkRows(rows, "$what rows")
        programs.check(rows)
        return rows
    }

    private fun heldOut(
        examples: Examples,
        words: List<String>,
        encoder: Encoder?,
    ): Rows = encode(examples, words, encoder, plan.guard.lowerIsBetter, "holdout")

    private fun metric(metrics: Map<String, Double>): Double =
        metrics[plan.guard.metric] ?: throw ConfigException(
            "the guard's metric '${plan.guard.metric}' is not one that the bundle measures",
            mend = "use one of ${metrics.keys.sorted().joinToString()}",
        )

    /** One call of [personalize]. */
    private inner class Run(
        private val train: Examples,
        private val holdout: Examples,
        private val encoder: Encoder?,
        private val store: StateStore?,
        private val loaded: Loaded,
        private val checkpoints: Checkpoints?,
        private val publish: Boolean,
        private val context: CoroutineContext,
        private val stop: () -> Boolean,
        private val onProgress: (Progress) -> Unit,
    ) {
        private val began = clock.markNow()
        private val seconds get() = began.elapsedNow().inWholeNanoseconds / NANOS
        private val times = ArrayList<Double>()
        private val notes = ArrayList<String>()
        private var resumedAt: Long? = null
        private var before = emptyMap<String, Double>()

        fun run(): TrainReport {
            val old = Work.of(loaded.state, initial)
            val rows = heldOut(holdout, old.words, encoder)
            var value: Double? = null
            var shipped: Double? = null
            if ((rows.getValue("weight") as FloatTensor).values.any { it > 0 }) {
                before = measure(rows, old, servesBefore ?: plan.serve)
                value = metric(before)
                shipped = if (plan.guard.appeal == null) value else shippedMetric()
            }
            plan.guard.beforeTraining(value, shipped, holdout.size)?.let { return report(Status.SKIPPED, it) }
            val (done, work) = trained(old)
            if (!done) return report(Status.CANCELLED, null, work)
            val after = measure(heldOutAfter(rows, work), work)
            val decision = plan.guard.decide(before.getValue(plan.guard.metric), metric(after), holdout.size)
            val trained = Trained(work.tensors.toMap(), work.copies.toMap(), loaded.state?.copies.orEmpty())
            if (!decision.adopted) {
                checkpoints?.discard()
                return report(Status.KEPT, decision, work, after, trained = trained)
            }
            rememberHoldout(work)
            val state = PersonalState(work.tensors.toMap(), keptCopies(plan, work), work.words, after)
            val version = store?.let { if (publish) it.save(state) else it.write(state) }
            checkpoints?.discard()
            return report(Status.ADOPTED, decision, work, after, state, version, trained)
        }

        private fun shippedMetric(): Double {
            val work = Work(LinkedHashMap(sets.getValue("global")))
            return metric(measure(heldOut(holdout, emptyList(), encoder), work))
        }

        /** Whether training ran to its end (false: stopped), and what it gave. */
        private fun trained(old: Work): Pair<Boolean, Work> {
            val start = if (plan.start == Start.CURRENT) old else Work.of(null, initial)
            var rows = encode(train, start.words, encoder, true, "training")
            val job = if (checkpoints == null) "" else job(rows)
            val work = resumed(job) ?: start
            if (work.words != start.words) rows = encode(train, work.words, encoder, true, "training")
            val texts = (train as? Examples.Texts)?.texts
            val runner =
                PhaseRunner(plan, programs, tensors, sets, rows, encoder?.withWords(work.words), texts, clock) { now, of, loss, took ->
                    afterStep(now, of, loss, took, job)
                }
            checkSteps(runner.totalSteps())
            if (stopping()) return false to work
            try {
                return runner.run(work) to work
            } catch (error: NonFiniteException) {
                checkpoints?.discard() // going on from it would only diverge again
                throw error
            }
        }

        private fun stopping() = !context.isActive || stop()

        private fun afterStep(
            work: Work,
            of: Long,
            loss: Double,
            took: Double,
            job: String,
        ): Boolean {
            times += took
            checkSteps(of) // words that got a slot may have brought more rows
            onProgress(Progress(work.done, of, loss, seconds))
            val stopping = stopping()
            val late = work.done < of && most.seconds != null && seconds > most.seconds
            if (checkpoints != null && (stopping || late || work.done % checkpoints.every == 0L)) checkpoints.save(work, job)
            if (late && !stopping) {
                throw TooSlowException(
                    "training was stopped at step ${work.done} of $of: it took longer than the ${most.seconds} seconds that the bundle " +
                        "allows",
                    mend = "go on later where the state is kept in a folder, or take another engine or a shorter plan",
                )
            }
            return !stopping
        }

        private fun checkSteps(steps: Long) {
            if (most.steps != null && steps > most.steps) {
                throw TooManyStepsException(
                    "the plan makes $steps steps on these examples, the bundle allows ${most.steps}",
                    mend = "give the plan's phases max_steps or fewer epochs, or export the bundle with another limit",
                )
            }
        }

        /** Run what remembers examples again with all of them, where the plan asks for it. */
        private fun rememberHoldout(work: Work) {
            if (!plan.rememberHoldout || plan.distinctSteps().none { it.remembers }) return
            val (older, newer) = listOf(train, holdout).map { encode(it, work.words, encoder, true, "training") }
            PhaseRunner(plan, programs, tensors, sets, joinRows(older, newer)).remember(work)
        }

        private fun resumed(job: String): Work? {
            val (work, why) = checkpoints?.load(job) ?: return null
            if (why != null) {
                notes += why
                checkpoints.discard()
            }
            resumedAt = work?.done
            return work
        }

        private fun job(rows: Rows): String {
            val texts = (train as? Examples.Texts)?.texts?.joinToString("\u0000").orEmpty()
            return checkNotNull(checkpoints).job(plan, loaded.version, rows, texts, sets)
        }

        /**
         * The held-out rows for the trained state. A loss is compared on the same labels as before, so words that have just got a slot
         * do not count.
         */
        private fun heldOutAfter(
            before: Rows,
            work: Work,
        ): Rows {
            if (holdout is Examples.Arrays) return before
            val rows = heldOut(holdout, work.words, encoder)
            if (!plan.guard.lowerIsBetter) return rows
            val weight = before.getValue("weight")
            if (rows.getValue("weight").shape != weight.shape) {
                throw TrainingException("the encoder gives other rows once slots have words", mend = "use an encoder of fixed rows")
            }
            return rows + ("weight" to weight)
        }

        private fun report(
            status: Status,
            decision: GuardReport?,
            work: Work? = null,
            after: Map<String, Double> = emptyMap(),
            state: PersonalState? = loaded.state,
            version: Int? = store?.let { loaded.version },
            trained: Trained? = null,
        ) = TrainReport(
            status = status,
            guard = decision,
            state = state,
            version = version,
            before = before,
            after = after,
            steps = work?.done ?: 0,
            losses = work?.losses.orEmpty(),
            seconds = seconds,
            msPerStep = if (times.isEmpty()) null else MILLIS * median(times),
            words = state?.words.orEmpty(),
            reports = work?.reports.orEmpty(),
            resumedAt = resumedAt,
            warnings = loaded.warnings,
            notes = notes,
            trained = trained,
        )
    }

    private companion object {
        const val NANOS = 1e9
        const val MILLIS = 1000

        fun shipped(
            tensor: DeviceTensor,
            initial: Map<String, Tensor>,
        ): Tensor {
            val value = initial[tensor.name]
            if (value == null || value.shape != tensor.shape || value.dtype != tensor.dtype) {
                throw TensorMismatchException(
                    "the initial value of '${tensor.name}' is ${value?.signature ?: "missing"}, not ${tensor.signature}",
                    mend = "take the initial values from the same bundle as the table of tensors",
                )
            }
            return value
        }

        fun median(numbers: List<Double>): Double {
            val sorted = numbers.sorted()
            return (sorted[(sorted.size - 1) / 2] + sorted[sorted.size / 2]) / 2
        }
    }
}
