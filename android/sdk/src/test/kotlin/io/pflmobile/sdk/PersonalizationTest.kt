package io.pflmobile.sdk

import android.app.job.JobInfo
import android.app.job.JobScheduler
import android.content.Context
import android.net.ConnectivityManager
import android.os.PowerManager
import io.pflmobile.core.bundle.VerificationKey
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.MissingFileException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.local.Retention
import io.pflmobile.core.personal.ModelOptions
import io.pflmobile.core.personal.PersonalModel
import io.pflmobile.core.personal.PersonalizeResult
import io.pflmobile.core.personal.RememberResult
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.runBlocking
import org.junit.After
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertSame
import kotlin.test.assertTrue

/** Opening, storage and jobs on Android, with an engine of this test. */
@RunWith(RobolectricTestRunner::class)
class PersonalizationTest {
    private val context: Context get() = RuntimeEnvironment.getApplication()
    private val scheduler get() = checkNotNull(context.getSystemService(JobScheduler::class.java))
    private val steps = ArrayList<String>()
    private var onRun: (String) -> Unit = {}
    private val engine by lazy {
        GoldenEngine("tiny") {
            synchronized(steps) { steps += it }
            onRun(it)
        }
    }
    private val options by lazy { ModelOptions(engines = listOf(engine), engineIdleMs = 0) }
    private val opened = ArrayList<PersonalModel>()

    @Before
    fun setUp() {
        FakeAndroidKeyStore.install()
        charge(plugged = true, percent = 80)
        shadowOf(context.getSystemService(PowerManager::class.java)).turnScreenOn(false)
        Openings.asset = { _, name -> BUNDLES.resolve(name).toFile().inputStream() }
        PersonalizationScheduler.openWith = { context, name -> PersonalModel.open(context, name, options) }
        ModelJobService.watchEveryMs = 1
    }

    @After
    fun tearDown() =
        runBlocking {
            opened.forEach { it.close() }
            PersonalizationScheduler.openWith = null
            ModelJobService.watchEveryMs = 2_000
            assertEquals(0, engine.open)
        }

    private fun open() = runBlocking { PersonalModel.open(context, "tiny.pflb", options).also { opened += it } }

    private fun learn(model: PersonalModel) =
        runBlocking { repeat(20) { assertIs<RememberResult.Kept>(model.remember("see you at the bus tonight")) } }

    private fun charge(
        plugged: Boolean,
        percent: Int,
    ) = charge(context, plugged, percent)

    private fun pending(): JobInfo = scheduler.allPendingJobs.single()

    /** Runs the pending job as the system would; whether it asked to be run again. */
    private fun runJob(): Boolean = runJob(PersonalizationJobService::class.java, pending())

    @Test
    fun `an asset is opened, shared, and everything stays in the folder without backup`() {
        val model = open()
        assertSame(model, open())
        assertTrue(model.folder.startsWith(context.noBackupFilesDir.toPath().toRealPath()))
        learn(model)
        runBlocking {
            assertIs<PersonalizeResult.Kept>(model.personalize()) // the engine says the same of all values
            assertEquals(20, model.status().examples)
            model.eraseEverything()
        }
        val left =
            filesIn(model.folder.toFile().resolve("state")) + filesIn(model.folder.toFile()).filter { "example" in it || "last" in it }
        assertEquals(listOf(".lock"), left)
        assertEquals(emptySet(), FakeAndroidKeyStore.KEYS.keys)
    }

    @Test
    fun `an asset that is not there is named`() {
        assertFailsWith<MissingFileException> { runBlocking { PersonalModel.open(context, "other.pflb", options) } }
    }

    @Test
    fun `a closed model can be erased whatever its state`() =
        runBlocking {
            val model = open()
            learn(model)
            assertFailsWith<StateException> { PersonalModel.erase(context, "tiny.pflb") }
            model.close()
            model.folder
                .resolve("examples.db")
                .toFile()
                .writeText("damaged")
            assertFailsWith<StateException> { open() }
            PersonalModel.erase(context, "tiny.pflb")
            assertFalse(model.folder.toFile().exists())
            assertEquals(0, open().status().examples)
        }

    @Test
    fun `the system gets the constraints, and a second schedule replaces the first`() {
        val model = open()
        PersonalizationScheduler.schedule(context, model)
        assertTrue(pending().isRequireCharging && pending().isRequireDeviceIdle && pending().isPersisted && pending().isPeriodic)
        assertEquals(TimeUnit.HOURS.toMillis(24), pending().intervalMillis)
        val free = PersonalizationConstraints(charging = false, idle = false, unmetered = true, minBatteryPercent = 0, everyHours = 5)
        PersonalizationScheduler.schedule(context, model, free)
        assertFalse(pending().isRequireCharging || pending().isRequireDeviceIdle)
        assertEquals(free, JobExtras.constraintsOf(pending().extras))
        PersonalizationScheduler.cancel(context, model)
        assertEquals(emptyList(), scheduler.allPendingJobs)
        assertFailsWith<ConfigException> { PersonalizationConstraints(minBatteryPercent = 101) }
        PersonalizationScheduler.openWith = null
        assertFailsWith<ConfigException> { PersonalizationScheduler.schedule(context, model) }
    }

    @Test
    fun `a new process opens the model as it was opened`() =
        runBlocking {
            val own =
                ModelOptions(
                    key = VerificationKey.parse("0".repeat(64)),
                    threads = 2,
                    retention = Retention(50, 3600.0, null),
                    blockedWords = setOf("kestrel"),
                    test = 0.3,
                    checkpointEvery = 7,
                    engineIdleMs = 5,
                    discardOtherState = true,
                )
            val file = BUNDLES.resolve("tiny.pflb").toString()
            val model = PersonalModel.open(context, file, own.copy(key = null, trusted = true)).also { opened += it }
            PersonalizationScheduler.schedule(context, model)
            assertEquals(model.options, JobExtras.optionsOf(context, pending().extras))
            assertEquals(file, JobExtras.nameOf(pending().extras))
            assertTrue("kestrel" !in pending().extras.toString(), "the system shows it to whoever has a cable")
            assertTrue(
                model.folder
                    .resolve("job-blocked.json")
                    .toFile()
                    .delete(),
            )
            assertFailsWith<StateException> { JobExtras.optionsOf(context, pending().extras) }
            Unit
        }

    @Test
    fun `whatever a job throws ends it and no more, and is kept`() =
        runBlocking {
            val model = open()
            PersonalizationScheduler.schedule(context, model)
            assertNull(PersonalizationScheduler.lastJob(context, model))
            PersonalizationScheduler.openWith = { _, _ -> throw SecurityException("no permission") }
            assertFalse(runJob())
            val outcome = assertNotNull(PersonalizationScheduler.lastJob(context, model))
            assertEquals(SecurityException::class.java.name to true, outcome.code to outcome.failed)
            assertEquals(setOf(Waiting.FAILED), PersonalizationScheduler.whyWaiting(context, model))
            PersonalizationScheduler.openWith = { _, _ -> throw StateException("in use", "wait") }
            assertFalse(runJob())
            assertEquals("StateError", PersonalizationScheduler.lastJob(context, model)?.code)
            learn(model)
            model.personalize()
            assertEquals(setOf(Waiting.INTERVAL), PersonalizationScheduler.whyWaiting(context, model))
            model.eraseEverything()
            assertNull(PersonalizationScheduler.lastJob(context, model))
        }

    @Test
    fun `a job that meets a training of the app is tried again`() =
        runBlocking {
            val model = open()
            learn(model)
            PersonalizationScheduler.schedule(context, model)
            val running = CountDownLatch(1)
            val goOn = CountDownLatch(1)
            onRun = {
                running.countDown()
                goOn.await(60, TimeUnit.SECONDS)
            }
            val training = async(Dispatchers.Default) { model.personalize() }
            assertTrue(running.await(60, TimeUnit.SECONDS))
            assertTrue(runJob())
            goOn.countDown()
            assertIs<PersonalizeResult.Kept>(training.await())
            assertEquals("busy", PersonalizationScheduler.lastJob(context, model)?.code)
        }

    @Test
    fun `the same schedule at each start of the app leaves the job alone`() {
        val model = open()
        PersonalizationScheduler.schedule(context, model)
        val before = pending()
        PersonalizationScheduler.schedule(context, model)
        assertSame(before, pending())
        PersonalizationScheduler.schedule(context, model, PersonalizationConstraints(everyHours = 12))
        assertEquals(before.id, pending().id)
        assertTrue(before !== pending())
    }

    @Test
    fun `a job with the options of before an update of the app waits for the app's own word`() =
        runBlocking {
            val file = BUNDLES.resolve("tiny.pflb").toString()
            val model = PersonalModel.open(context, file, ModelOptions(trusted = true)).also { opened += it }
            PersonalizationScheduler.openWith = null
            PersonalizationScheduler.schedule(context, model)
            charge(plugged = false, percent = 80)
            assertTrue(runJob(), "it waits for power")
            val info = context.packageManager.getPackageInfo(context.packageName, 0)
            info.lastUpdateTime += 1
            shadowOf(context.packageManager).installPackage(info)
            assertFalse(runJob())
            PersonalizationScheduler.schedule(context, model)
            assertTrue(runJob(), "it is scheduled anew, and waits for power")
        }

    @Test
    fun `why it waits is said`() =
        runBlocking {
            val model = open()
            val constraints = PersonalizationConstraints(unmetered = true)
            assertEquals(setOf(Waiting.NOT_SCHEDULED), PersonalizationScheduler.whyWaiting(context, model))
            PersonalizationScheduler.schedule(context, model, constraints.copy(unmetered = false))
            assertEquals(emptySet(), PersonalizationScheduler.whyWaiting(context, model))
            model.pause()
            charge(plugged = false, percent = 10)
            val power = checkNotNull(context.getSystemService(PowerManager::class.java))
            shadowOf(power).turnScreenOn(true)
            shadowOf(power).setCurrentThermalStatus(PowerManager.THERMAL_STATUS_SEVERE)
            PersonalizationScheduler.schedule(context, model, constraints)
            shadowOf(context.getSystemService(ConnectivityManager::class.java)).setDefaultNetworkActive(false)
            val all = setOf(Waiting.PAUSED, Waiting.CHARGING, Waiting.BATTERY, Waiting.IDLE, Waiting.THERMAL)
            assertEquals(all, PersonalizationScheduler.whyWaiting(context, model) - Waiting.UNMETERED)
            model.resume()
        }

    @Test
    fun `a job learns`() =
        runBlocking {
            val model = open()
            learn(model)
            PersonalizationScheduler.schedule(context, model)
            assertFalse(runJob())
            assertTrue("gradients" in steps)
            assertTrue(model.status().last != null)
            assertEquals("kept", PersonalizationScheduler.lastJob(context, model)?.code)
            assertEquals(setOf(Waiting.INTERVAL), PersonalizationScheduler.whyWaiting(context, model))
        }

    @Test
    fun `a job that starts without its conditions does nothing and asks again`() {
        val model = open()
        learn(model)
        PersonalizationScheduler.schedule(context, model)
        charge(plugged = false, percent = 80)
        assertTrue(runJob())
        assertEquals(emptyList(), steps)
    }

    @Test
    fun `a job ends when its conditions cease, and another can go on`() =
        runBlocking {
            val model = open()
            learn(model)
            PersonalizationScheduler.schedule(context, model)
            onRun = { if (it == "gradients") charge(plugged = false, percent = 80).also { Thread.sleep(20) } }
            assertTrue(runJob())
            assertNull(model.status().last)
            assertTrue(
                model.folder
                    .resolve("under-way")
                    .toFile()
                    .exists(),
            )
        }

    @Test
    fun `a job ends when the system says so`() =
        runBlocking {
            val model = open()
            learn(model)
            PersonalizationScheduler.schedule(context, model)
            val running = CountDownLatch(1)
            onRun = {
                if (it == "gradients") {
                    running.countDown()
                    Thread.sleep(20)
                }
            }
            val service = Robolectric.buildService(PersonalizationJobService::class.java).create()
            val params = parameters(pending())
            service.get().onStartJob(params)
            assertTrue(running.await(60, TimeUnit.SECONDS))
            assertEquals(setOf(Waiting.RUNNING), PersonalizationScheduler.whyWaiting(context, model))
            assertTrue(service.get().onStopJob(params))
            val until = System.nanoTime() + TimeUnit.SECONDS.toNanos(60)
            while (model.status().training && System.nanoTime() < until) Thread.sleep(5)
            assertFalse(model.status().training)
            assertNull(model.status().last)
        }
}
