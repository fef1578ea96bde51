package io.pflmobile.core.plan

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.UnknownNameException
import io.pflmobile.core.errors.near
import io.pflmobile.core.tensors.NameOrder

/** Every set that the plan reads, copies and `theta` among them, in order of first use. */
internal fun namedSets(plan: Plan): List<String> =
    (plan.copies.values.map { it.of } + plan.servedNames() + plan.distinctSteps().flatMap { it.reads + it.stepReads }).distinct()

/**
 * Find what would fail later: groups without tensors, sets that are unknown, not made yet or too small, modules of another kind.
 *
 * @param sets names of the sets that the host hands in, `initial` and `global` among them
 * @param copies names of the copies that the personal state has
 * @throws ConfigException naming it
 */
internal fun checkPlan(
    plan: Plan,
    table: List<DeviceTensor>,
    sets: Collection<String>,
    copies: Collection<String>,
) {
    uploaded(plan.upload, table)
    plan.distinctSteps().forEach { it.check(table) }
    val known = setOf("theta", "start", "zero") + sets + copies + plan.made()
    for (name in namedSets(plan)) {
        if (name !in known) throw UnknownNameException("the plan names a set '$name' that is not there", mend = near(name, known))
    }
    Reads(table, sets + copies).check(plan)
}

/** Which sets are there when a phase reads them, on a device that runs the plan for the first time. */
private class Reads(
    private val table: List<DeviceTensor>,
    given: Collection<String>,
) {
    /** Set -> its tensors; null where it has all that a plan may ask of it, or only the host knows. */
    private val there = (listOf("theta", "zero") + given).associateWithTo(HashMap<String, Set<String>?>()) { null }

    fun check(plan: Plan) {
        for ((name, start) in plan.copies) {
            val group = select(start.group, table).toSet()
            need("copy '$name'", start.of, group)
            made(name, group)
        }
        for (phase in plan.distinctSteps()) { // what is there the first time is there every time
            val tensors = phase.tensors(table).toSet()
            val who = "${phase.kind} phase"
            phase.reads.forEach { need(who, it, tensors) }
            phase.makesCopy?.let { made(it, tensors) }
            there["start"] = tensors
            phase.stepReads.forEach { need(who, it, tensors) }
            there.remove("start")
        }
    }

    private fun made(
        name: String,
        group: Set<String>,
    ) {
        if (name !in there) {
            there[name] = group
        } else {
            there[name] = there[name]?.plus(group)
        }
    }

    private fun need(
        who: String,
        name: String,
        group: Set<String>,
    ) {
        if (name !in there) {
            val what = if (name == "start") "which only a train phase has" else "before any phase makes it"
            throw ConfigException(
                "the plan's $who reads the set '$name' $what",
                mend = "let an earlier phase make it, or start it in the plan's copies",
            )
        }
        val held = there[name] ?: return
        val missing = (group - held).minWithOrNull(NameOrder) ?: return
        throw ConfigException(
            "the plan's $who reads '$missing' of the set '$name', which holds other tensors only",
            mend = "make the set from a group with all tensors that are read of it",
        )
    }
}
