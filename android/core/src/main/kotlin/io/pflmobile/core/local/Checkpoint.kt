package io.pflmobile.core.local

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.rows.Rows

/**
 * Training under way, saved now and then, so that a killed run goes on where it was. A checkpoint belongs to one job: plan, examples,
 * sets, model and the version it started from. Any other job discards it and says so. Going on gives bit for bit what an uninterrupted
 * run gives.
 *
 * @property every steps between checkpoints
 * @throws ConfigException [every] is less than 1
 */
public abstract class Checkpoints internal constructor(
    public val every: Long,
) {
    init {
        if (every < 1) throw ConfigException("a checkpoint every $every steps", mend = "give 1 or more")
    }

    /** Digest of everything that decides how training goes. */
    internal abstract fun job(
        plan: Plan,
        version: Int,
        rows: Rows,
        texts: String,
        sets: Map<String, TensorSet>,
    ): String

    /** Write [work] atomically. */
    internal abstract fun save(
        work: Work,
        job: String,
    )

    /** The saved work of this job, or why it cannot be used; neither when there is none. */
    internal abstract fun load(job: String): Pair<Work?, String?>

    /** Remove the checkpoint if there is one. */
    internal abstract fun discard()
}
