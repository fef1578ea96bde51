package io.pflmobile.e2e

import android.content.Context
import android.os.Bundle
import androidx.test.platform.app.InstrumentationRegistry
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.ExecuTorchEngine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.scenarios.Scenario

/**
 * What a run is told by `am instrument -e NAME VALUE`.
 *
 * `scenario` is a file of `conformance/scenarios` without its ending and `part` one of its processes, from 0; `engine` is `executorch` where
 * none is given, and `aggregator` an address that the phone can reach.
 */
internal class Given(
    private val arguments: Bundle = InstrumentationRegistry.getArguments(),
) {
    val context: Context = InstrumentationRegistry.getInstrumentation().targetContext
    val name: String? get() = arguments.getString("scenario")
    val part: Int get() = arguments.getString("part")?.toInt() ?: 0
    val aggregator: String? get() = arguments.getString("aggregator")
    val engine: Engine
        get() {
            val wanted = arguments.getString("engine") ?: ExecuTorchEngine.name
            return listOf(ExecuTorchEngine, OnnxRuntimeEngine).single { it.name == wanted }
        }

    fun scenario(name: String): Scenario = Scenario(asset(context, "scenarios/$name.json").decodeToString())
}
