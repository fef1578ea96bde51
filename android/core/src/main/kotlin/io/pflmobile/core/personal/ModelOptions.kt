package io.pflmobile.core.personal

import io.pflmobile.core.bundle.VerificationKey
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.ExecuTorchEngine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.local.Retention

/**
 * How a personal model is opened.
 *
 * @property key the pinned key: only a bundle signed by it is opened
 * @property trusted you know who made a bundle that is opened without a key, for instance because it came with the app
 * @property engines in order of preference; the first that the bundle has programs for is used
 * @property threads of the engine
 * @property retention which examples are kept
 * @property blockedWords a text with one of them is not kept, and none of them is suggested; as a user writes them, one by one
 * @property test share of the examples, the newest, that only the report's numbers are measured on
 * @property checkpointEvery steps of training between checkpoints
 * @property engineIdleMs milliseconds without a call after which the engine's memory is freed; the next call loads it again
 * @property discardOtherState what was learned with a bundle that does not fit this one is removed rather than refused; the examples
 *   stay, so that it can be learned anew
 * @throws ConfigException a value makes no sense
 */
public data class ModelOptions(
    val key: VerificationKey? = null,
    val trusted: Boolean = false,
    val engines: List<Engine> = listOf(ExecuTorchEngine, OnnxRuntimeEngine),
    val threads: Int = 1,
    val retention: Retention = Retention(),
    val blockedWords: Set<String> = emptySet(),
    val test: Double = 0.2,
    val checkpointEvery: Long = 10,
    val engineIdleMs: Long = 60_000,
    val discardOtherState: Boolean = false,
) {
    init {
        if (engines.isEmpty()) throw ConfigException("there is no engine", "give at least one")
        if (threads < 1) throw ConfigException("$threads threads", "give 1 or more")
        if (!(test > 0 && test < 1)) throw ConfigException("the test part is $test", "give a share between 0 and 1, for instance 0.2")
        if (checkpointEvery < 1) throw ConfigException("a checkpoint every $checkpointEvery steps", "give 1 or more")
        if (engineIdleMs < 0) throw ConfigException("the engine is idle after $engineIdleMs ms", "give 0 or more")
    }
}
