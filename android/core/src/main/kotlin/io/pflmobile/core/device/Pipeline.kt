package io.pflmobile.core.device

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.NoExamplesException
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.errors.TooManyStepsException
import io.pflmobile.core.errors.TooSlowException
import io.pflmobile.core.local.Checkpoints
import io.pflmobile.core.local.Examples
import io.pflmobile.core.local.LocalTrainer
import io.pflmobile.core.local.Parts
import io.pflmobile.core.local.Programs
import io.pflmobile.core.local.Progress
import io.pflmobile.core.local.Reason
import io.pflmobile.core.local.Status
import io.pflmobile.core.local.TrainReport
import io.pflmobile.core.local.Trained
import io.pflmobile.core.local.Work
import io.pflmobile.core.local.metricSums
import io.pflmobile.core.local.parts
import io.pflmobile.core.local.served
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.plan.Serve
import io.pflmobile.core.plan.UpdateLayout
import io.pflmobile.core.plan.change
import io.pflmobile.core.plan.checkSends
import io.pflmobile.core.privacy.Noise
import io.pflmobile.core.protocol.DeclineReason
import io.pflmobile.core.protocol.EvaluationReport
import io.pflmobile.core.protocol.MetricSum
import io.pflmobile.core.protocol.RoundTask
import io.pflmobile.core.protocol.TaskPrivacy
import io.pflmobile.core.protocol.UpdateFile
import io.pflmobile.core.protocol.UpdateHead
import io.pflmobile.core.state.PersonalState
import io.pflmobile.core.state.PersonalStateStore
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.Tensor
import java.nio.file.Path

/** Sum and weight of metrics by name. */
internal typealias MetricSums = Map<String, Pair<Double, Double>>

/**
 * A finished task.
 *
 * @property update the update file
 * @property protection its values, norm, and whether they were clipped
 * @property evaluation the report; null where none is asked for or may be sent
 * @property adopts the version of the personal state that is to serve now; null where the old one stays
 * @property copies names of the copies whose change is in the update
 * @property report of the trainer
 */
internal class TaskResult(
    val update: ByteArray,
    val protection: Protected,
    val evaluation: EvaluationReport?,
    val adopts: Int?,
    val copies: List<String>,
    val report: TrainReport,
)

/** No update comes of this task: one of the protocol's reasons, and why in words. */
internal class DeclineTask(
    val reason: DeclineReason,
    val why: String,
) : Exception(why)

/**
 * One task, from the values that were downloaded to an update that may be sent; nothing here uses the network.
 *
 *     task -> may it be done? -> train by its plan -> guard -> change -> clip, noise -> update file
 *
 * What is sent is the change that training made, whatever the guard decided: the guard is about the personal state, which stays here, and
 * an aggregator that got only changes that helped would learn from lucky devices alone. Training that diverged, or that was not done at
 * all, sends nothing.
 *
 * @param model checked programs
 * @param examples of the user, oldest first; the newest part is for testing and nothing else
 * @param store the personal state
 * @param sent what left the device under its own noise
 * @property policy what must protect updates
 * @param test share of the examples to test on
 * @param checkpointEvery steps between checkpoints of training; null for none
 * @param noise of the device; null for the secure source
 * @param checkpoint where training under way is kept
 * @param spent what the aggregators promised; null where it is not counted
 * @param serves where it is noted what is served of the versions that tasks make; null for nowhere
 * @param device id of the membership
 */
internal class Pipeline(
    private val model: Model,
    private val examples: Examples,
    private val store: PersonalStateStore,
    private val sent: SentNoise,
    val policy: PrivacyPolicy = PrivacyPolicy(),
    private val test: Double = 0.2,
    private val checkpointEvery: Long? = 20,
    private val noise: Noise? = null,
    private val checkpoint: Path = store.checkpoint,
    private val spent: Spent? = null,
    private val serves: ServeNotes? = null,
    private val device: () -> String? = { null },
) {
    /** How many there are to train on, rounded down to two digits, as a check-in tells it. */
    fun trainingExamples(): Long {
        if (examples.size < 2) return 0
        val count = parts(examples, test, most = model.most).train.size
        var unit = 1L
        while (count / unit >= TWO_DIGITS) unit *= 10
        return count / unit * unit
    }

    /**
     * Look at a task before anything is downloaded for it.
     *
     * @throws DeclineTask it must not be done, or cannot
     */
    fun accept(task: RoundTask): Pair<Plan, UpdateLayout> {
        refusal(task.privacy, task.reports)?.let { throw DeclineTask(DeclineReason.PRIVACY, it) }
        val (plan, layout) =
            try {
                val plan = Plan.load(task.plan.toString())
                checkSends(plan, model.tensors)
                plan to UpdateFile.layoutOf(plan, model.tensors) // never a personal tensor
            } catch (error: ConfigException) {
                throw DeclineTask(DeclineReason.PLAN, error.message)
            }
        val asked = task.layout.map { tensor -> tensor.name to tensor.shape }
        if (asked.isEmpty() || asked != layout.shapes.map { (name, shape) -> name to shape.map { it.toLong() } }) {
            throw DeclineTask(DeclineReason.PLAN, "the task asks for other tensors than its plan sends")
        }
        return plan to layout
    }

    /**
     * Train, and make the update; null when stopped.
     *
     * The store then holds the new personal state, which serves once `store.adopt(done.adopts)` is called: after the update is safe, so
     * that a crash repeats both or none.
     *
     * @param stop asked after each step
     * @throws DeclineTask there is no update to send
     * @throws io.pflmobile.core.errors.EngineException the engine failed; this device cannot train
     */
    suspend fun carryOut(
        task: RoundTask,
        sets: Map<String, Map<String, Tensor>>,
        stop: () -> Boolean = { false },
        onProgress: (Progress) -> Unit = {},
    ): TaskResult? {
        val (plan, layout) = accept(task)
        return declining {
            val cut = parts(examples, test, plan.holdout, model.most)
            val trainer = LocalTrainer(model.session, plan, model.tensors, model.initial, model.encoder, sets, model.work)
            val checkpoints = checkpointEvery?.let { Checkpoints(checkpoint, model.id, it) }
            val report =
                trainer.personalize(
                    cut.train,
                    cut.holdout,
                    store = store,
                    checkpoints = checkpoints,
                    publish = false,
                    stop = stop,
                    onProgress = onProgress,
                )
            if (report.status == Status.CANCELLED) null else finish(task, plan, layout, cut, trainer, report)
        }
    }

    private inline fun <T> declining(work: () -> T): T =
        try {
            work()
        } catch (error: NoExamplesException) {
            throw DeclineTask(DeclineReason.NO_EXAMPLES, error.message)
        } catch (error: NonFiniteException) {
            throw DeclineTask(DeclineReason.DIVERGED, error.message)
        } catch (error: ConfigException) {
            throw DeclineTask(DeclineReason.PLAN, error.message)
        } catch (error: TooManyStepsException) {
            throw DeclineTask(DeclineReason.PLAN, error.message)
        } catch (error: TooSlowException) {
            throw DeclineTask(DeclineReason.TOO_SLOW, error.message)
        } catch (error: StorageFullException) {
            throw DeclineTask(DeclineReason.STORAGE, error.message)
        } catch (_: OutOfMemoryError) {
            throw DeclineTask(DeclineReason.OUT_OF_MEMORY, "there is not enough memory to train")
        }

    private fun finish(
        task: RoundTask,
        plan: Plan,
        layout: UpdateLayout,
        cut: Parts,
        trainer: LocalTrainer,
        report: TrainReport,
    ): TaskResult {
        val trained = sendable(task, report)
        val before = trainer.sets.getValue("global")
        val found = change(plan, model.tensors, before, trained.copiesBefore, trained.tensors, trained.copies)
        val protection = protect(layout.pack(found), task.privacy, noise)
        val head =
            UpdateHead(
                task = task.id,
                round = task.round,
                version = task.version,
                examples = countTrained(cut.train),
                steps = report.steps,
                // Where the device hides its update itself, this bit of the update before the noise stays here too.
                clipped = protection.clipped && task.privacy.localNoiseMultiplier == 0.0,
                reports = task.reports.associateWith { report.reports.getValue(it) },
            )
        val update = UpdateFile.encode(head, layout.unpack(protection.flat), layout)
        val evaluation =
            if (task.evaluate && policy.mayReport(task.privacy)) {
                val (shared, own) = measure(plan, trainer, cut.test, report.state)
                evaluationReport(shared, own, report.status == Status.ADOPTED)
            } else {
                null
            }
        return TaskResult(update, protection, evaluation, adopts(plan, report, trained), plan.uploadCopies, report)
    }

    /** What training gave, where something may be sent of it. */
    private fun sendable(
        task: RoundTask,
        report: TrainReport,
    ): Trained {
        val guard = report.guard
        val trained = report.trained
        val missing = task.reports.firstOrNull { it !in report.reports }
        return when {
            trained == null -> {
                val enough = guard?.reason == Reason.GOOD_ENOUGH
                throw DeclineTask(
                    if (enough) DeclineReason.GOOD_ENOUGH else DeclineReason.NO_EXAMPLES,
                    "nothing was trained: ${guard?.reason?.wireName ?: report.status.name.lowercase()}",
                )
            }

            report.steps == 0L -> {
                throw DeclineTask(DeclineReason.PLAN, "the plan trains nothing, so there is nothing to send")
            }

            guard?.reason == Reason.NOT_FINITE -> {
                throw DeclineTask(DeclineReason.DIVERGED, "${guard.metric} is not finite after training")
            }

            missing != null -> {
                throw DeclineTask(DeclineReason.PLAN, "the plan measures no '$missing', which the task asks for")
            }

            else -> {
                trained
            }
        }
    }

    /**
     * The version that is to serve.
     *
     * Copies that are sent (control variates) are kept also where the guard keeps the old state: the aggregator counts on them. They do
     * not serve, or they would be the guard's business. [takeBack] undoes it.
     */
    private fun adopts(
        plan: Plan,
        report: TrainReport,
        trained: Trained,
    ): Int? {
        if (report.status == Status.ADOPTED) return report.version?.also { note(it, plan.serve) }
        val sent = plan.uploadCopies - plan.servedNames().toSet()
        if (sent.isEmpty()) return null
        val old = report.state ?: PersonalState(emptyMap())
        val copies = old.copies + sent.associateWith { trained.copies.getValue(it) }
        val version = store.write(PersonalState(old.tensors, copies, old.words, old.metrics))
        serves?.of(store.current)?.let { note(version, it) }
        return version
    }

    private fun note(
        version: Int,
        serve: Serve,
    ) = serves?.put(version, serve, store.numbers())

    /** Why an update must not be sent, with all that was given before; see [PrivacyPolicy.refusal]. */
    fun refusal(
        privacy: TaskPrivacy,
        reports: Collection<String>,
        counted: Boolean = false,
    ): String? = policy.refusal(privacy, reports, sent, counted, spent, device())

    /** Gives copies the values of an earlier version again; see [io.pflmobile.core.device.takeBack]. */
    fun takeBack(
        copies: List<String>,
        before: Int,
    ): Unit = takeBack(store, copies, before, serves)

    /**
     * Sums of the aggregator's values on the test part.
     *
     * @throws NoExamplesException there is nothing to measure on
     */
    fun measureShared(values: Map<String, Tensor>): MetricSums {
        val programs = Programs(model.session, model.tensors.mapTo(HashSet()) { it.name })
        val tested = parts(examples, test, most = model.most).test
        return metricSums(programs, model.initial + values, tested, model.encoder, known = emptyList())
    }

    /**
     * Sums on the test part: of the values as sent, and of what serves with this personal state. A device without a personal state of its
     * own serves the values as sent.
     */
    private fun measure(
        plan: Plan,
        trainer: LocalTrainer,
        tested: Examples,
        state: PersonalState?,
    ): Pair<MetricSums, MetricSums> {
        val shared = served(plan.serve, Work(LinkedHashMap(trainer.sets.getValue("global"))), trainer.sets)
        val first = metricSums(trainer.programs, shared, tested, model.encoder, known = emptyList())
        if (state == null || state.tensors.isEmpty()) return first to first
        val own = served(plan.serve, Work.of(state, trainer.initial), trainer.sets)
        return first to metricSums(trainer.programs, own, tested, model.encoder, state.words, known = emptyList())
    }

    private companion object {
        const val TWO_DIGITS = 100
    }
}

/**
 * Give copies the values of an earlier version again, as the aggregator did not get their change.
 *
 * @param copies their names; the rest of the personal state stays
 * @param before the version; 0 where there was none
 * @param serves where it is noted what is served of the state, which stays what it is
 */
internal fun takeBack(
    store: PersonalStateStore,
    copies: List<String>,
    before: Int,
    serves: ServeNotes? = null,
) {
    if (copies.isEmpty()) return
    val now = store.load().state ?: return
    val old =
        try {
            if (before == 0) emptyMap() else store.read(before).copies
        } catch (_: StateException) {
            emptyMap() // the version is gone: without a copy the plan begins from zero
        }
    val kept = now.copies - copies.toSet() + old.filterKeys { it in copies }
    store.hold().use {
        val serve = serves?.of(store.current)
        val version = store.write(PersonalState(now.tensors, kept, now.words, now.metrics))
        if (serve != null) serves.put(version, serve, store.numbers())
        store.adopt(version)
    }
}

/**
 * The report of two measurements; null where no metric is finite in both. Labels are counted whole, and at least one: where examples
 * have weights their sum may be anything.
 */
internal fun evaluationReport(
    shared: MetricSums,
    own: MetricSums,
    adopted: Boolean,
): EvaluationReport? {
    val names = shared.keys.filter { name -> listOf(shared[name], own[name]).all { it != null && it.first.isFinite() && it.second > 0 } }
    if (names.isEmpty()) return null

    fun sums(of: MetricSums) = names.associateWith { whole(of.getValue(it)) }
    return EvaluationReport(sums(shared), sums(own), adopted)
}

private fun whole(sum: Pair<Double, Double>): MetricSum {
    val (total, weight) = sum
    val labels = maxOf(Math.rint(weight), 1.0)
    return MetricSum(if (labels == weight) total else total / weight * labels, labels)
}

private fun countTrained(examples: Examples): Long =
    when (examples) {
        is Examples.Texts -> {
            examples.size.toLong()
        }

        is Examples.Arrays -> {
            val weight = examples.rows.getValue("weight") as FloatTensor
            val width = if (examples.size == 0) 1 else weight.size / examples.size
            (0 until examples.size).count { row -> (0 until width).sumOf { weight.values[row * width + it].toDouble() } > 0 }.toLong()
        }
    }
