package io.pflmobile.e2e

import android.os.Bundle
import androidx.test.platform.app.InstrumentationRegistry
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.scenarios.Passed
import io.pflmobile.scenarios.Scenario
import io.pflmobile.sdk.FakeAndroidKeyStore
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config
import java.nio.file.Path
import kotlin.io.path.listDirectoryEntries
import kotlin.io.path.nameWithoutExtension
import kotlin.io.path.readText
import kotlin.test.assertTrue

/** The test that phones run, on Android's framework as Robolectric has it: SQLite, and a stand-in for the Keystore. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34])
class RobolectricScenariosTest {
    @Test
    fun `scenarios in which no process is killed`() {
        val all = Path.of(System.getProperty("conformance")).resolve("scenarios")
        val passed = Passed(all, "robolectric-${OnnxRuntimeEngine.name}")
        val files =
            all.listDirectoryEntries("*.json").sorted().filter { file ->
                val scenario = Scenario(file.readText())
                scenario.served == null && scenario.parts.indices.none(scenario::isKilled)
            }
        assertTrue(files.size > 8, "$files")
        for (file in files) {
            FakeAndroidKeyStore.install()
            for (part in Scenario(file.readText()).parts.indices) {
                val given =
                    Bundle().apply {
                        putString("scenario", file.nameWithoutExtension)
                        putString("part", "$part")
                        putString("engine", OnnxRuntimeEngine.name)
                    }
                InstrumentationRegistry.registerInstance(InstrumentationRegistry.getInstrumentation(), given)
                ScenarioTest().passes()
            }
            passed.add(file)
        }
        passed.settle(System.getProperty("scenarios.write") == "true")
    }
}
