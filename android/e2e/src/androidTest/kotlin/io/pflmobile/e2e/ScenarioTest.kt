package io.pflmobile.e2e

import io.pflmobile.scenarios.Phone
import kotlinx.coroutines.runBlocking
import org.junit.Assume.assumeNotNull
import org.junit.Test

/** One part of a scenario in an app that uses the SDK. `emulator.py` runs part after part, each in a process of its own. */
public class ScenarioTest {
    /** Every step gives what the scenario says. */
    @Test
    public fun passes() {
        val given = Given()
        assumeNotNull(given.name)
        val name = given.name ?: return
        val place = AndroidPlace(given.context, name, given.engine, given.aggregator)
        runBlocking { given.scenario(name).carryOut(given.part) { bundle -> Phone(place, bundle) } }
    }
}
