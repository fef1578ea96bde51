package io.pflmobile.core.plan

/** What a device does with the plan in plain words, a line a step. */
public fun Plan.words(): List<String> =
    buildList {
        val begin = if (start == Start.CURRENT) "go on from the adopted state" else "start from the shipped values"
        add("$begin; hold out the newest ${general(100 * holdout)} % of the examples")
        phases.forEach { addAll(it.words()) }
        when (val serve = serve) {
            is Serve.Named -> if (serve.set != "theta") add("predict with '${serve.set}'")
            is ServeMix -> add("predict with ${general(serve.alpha)} ${serve.one} + ${general(1 - serve.alpha)} ${serve.other}")
        }
        add(guard.words())
        if (rememberHoldout) add("once adopted, memorize the held-out examples too")
        val sends = if (upload.isEmpty()) "send nothing" else "send the change of ${upload.joinToString()}"
        add(sends + if (uploadCopies.isEmpty()) "" else ", and of the copies ${uploadCopies.joinToString()}")
    }

private fun Guard.words(): String {
    var line = "adopt the result only if $metric ${if (lowerIsBetter) "falls" else "rises"} on the held-out examples"
    if (tolerance != 0.0) line += " (or gets worse by less than ${general(tolerance)})"
    if (minExamples > 1) line += "; train nothing with fewer than $minExamples of them"
    if (appeal != null) line += "; train nothing when the shipped model already reaches ${general(appeal)}"
    return line
}
