package io.pflmobile.core.local

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.engines.GoldenReport
import io.pflmobile.core.engines.Session
import io.pflmobile.core.engines.goldenCheck
import io.pflmobile.core.errors.EngineMismatchException
import io.pflmobile.core.errors.NoExamplesException
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.state.PersonalState
import io.pflmobile.core.state.StateStore
import io.pflmobile.core.tensors.Tensor

/**
 * What personalization did for the user. Recalls are fractions from 0 to 1, words outside the vocabulary are misses, and the loss is the
 * mean over the labels that were in the vocabulary before, so that it is of the same labels before and after.
 *
 * @property train how many examples were trained on
 * @property holdout how many the guard measured
 * @property test how many the metrics below are of; the newest, which neither training nor the guard saw
 * @property older how many there were beyond the newest that the bundle's limit keeps
 * @property before metrics with the state that served until now
 * @property after metrics with the state that serves now; equal to [before] unless adopted
 * @property report the trainer's own report
 */
public class UserResult internal constructor(
    public val train: Int,
    public val holdout: Int,
    public val test: Int,
    public val older: Int,
    public val before: Map<String, Double>,
    public val after: Map<String, Double>,
    public val report: TrainReport,
) {
    /** The numbers, without what was learned. */
    override fun toString(): String =
        "UserResult(${report.status.name.lowercase()}, train=$train, holdout=$holdout, test=$test, before=$before, after=$after)"
}

/**
 * Personalizes the user of one loaded bundle and measures before and after; the bundle is read and checked once.
 *
 * @param bundle an open bundle
 * @param session its programs on an engine; both stay the caller's to close
 * @param sets arrays by name that the plan needs from the host
 * @throws EngineMismatchException the engine gives other numbers on the golden batch than PyTorch; no training is done then
 * @throws io.pflmobile.core.errors.ConfigException the bundle's plan does not fit it
 * @throws io.pflmobile.core.errors.DataException its tokenizer cannot be read
 */
public class Evaluator(
    private val bundle: Bundle,
    session: Session,
    sets: Map<String, Map<String, Tensor>> = emptyMap(),
) {
    /** How close the engine is to PyTorch on the golden batch. */
    public val golden: GoldenReport = goldenCheck(bundle, session).also { it.require() }

    /** What the bundle's author wants done in training. */
    public val plan: Plan = Plan.load(bundle.planJson())

    /** Trains by that plan within the bundle's limits. */
    public val trainer: LocalTrainer =
        LocalTrainer(
            session,
            plan,
            bundle.manifest.tensors,
            bundle.values(),
            textEncoder(bundle)?.let { TrainingEncoder(it) },
            sets,
            bundle.manifest.limits.let { Most(it.maxSteps, it.maxSeconds?.toDouble()) },
        )

    /**
     * Metrics of a state on examples.
     *
     * @param state null for the shipped values
     * @throws NoExamplesException nothing in the examples counts
     */
    public fun measure(
        examples: Examples,
        state: PersonalState? = null,
    ): Map<String, Double> = trainer.measure(examples, state)

    /**
     * Cut the examples by age, train, and measure what it brought on the newest; see [LocalTrainer.personalize].
     *
     * @param examples the user's, oldest first; at least 3
     * @param test share of the examples, the newest, to measure on; never trained on
     * @throws NoExamplesException too few examples, or none of them counts
     */
    public suspend fun personalize(
        examples: Examples,
        test: Double = 0.2,
        state: PersonalState? = null,
        store: StateStore? = null,
        checkpoints: Checkpoints? = null,
        stop: () -> Boolean = { false },
        onProgress: (Progress) -> Unit = {},
    ): UserResult {
        val most =
            bundle.manifest.limits.maxExamples
                ?.coerceAtMost(Int.MAX_VALUE.toLong())
        val parts = parts(examples, test, plan.holdout, most?.toInt())
        val old = store?.load()?.state ?: state.takeIf { store == null }
        val before = trainer.measure(parts.test, old, serve = trainer.servesBefore ?: plan.serve)
        val report = trainer.personalize(parts.train, parts.holdout, state, store, checkpoints, stop = stop, onProgress = onProgress)
        val after = if (report.status == Status.ADOPTED) trainer.measure(parts.test, report.state, old?.words.orEmpty()) else before
        return UserResult(parts.train.size, parts.holdout.size, parts.test.size, parts.older, before, after, report)
    }
}
