package io.pflmobile.sdk

import android.Manifest
import android.app.Application
import android.app.job.JobInfo
import android.app.job.JobScheduler
import android.content.Context
import android.net.ConnectivityManager
import android.os.PowerManager
import com.sun.net.httpserver.HttpServer
import io.pflmobile.core.device.Attest
import io.pflmobile.core.device.Backoff
import io.pflmobile.core.device.PrivacyPolicy
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.personal.Federation
import io.pflmobile.core.personal.LeaveResult
import io.pflmobile.core.personal.ModelOptions
import io.pflmobile.core.personal.PersonalModel
import kotlinx.coroutines.runBlocking
import org.junit.After
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import java.net.InetSocketAddress
import java.util.TimeZone
import java.util.concurrent.CopyOnWriteArrayList
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.concurrent.thread
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue

/** Rounds as jobs of the system, with an engine of this test and an aggregator that has no task. */
@RunWith(RobolectricTestRunner::class)
class RoundsSchedulerTest {
    private val context: Context get() = RuntimeEnvironment.getApplication()
    private val engine by lazy { GoldenEngine("tiny") { onRun(it) } }
    private val options by lazy { ModelOptions(engines = listOf(engine), engineIdleMs = 0) }
    private val opened = ArrayList<PersonalModel>()
    private val asked = CopyOnWriteArrayList<String>()

    @Volatile private var onRun: (String) -> Unit = {}

    @Volatile private var onCheckIn: () -> Unit = {}

    /** Something else answers in the aggregator's place. */
    @Volatile private var away = false
    private val server = HttpServer.create(InetSocketAddress("127.0.0.1", 0), 0)
    private val federation get() = Federation("http://127.0.0.1:${server.address.port}", PrivacyPolicy(maxEpsilon = 4.0), group = "red")
    private val zone = TimeZone.getDefault()

    @Before
    fun setUp() {
        FakeAndroidKeyStore.install()
        charge(context, plugged = true, percent = 80)
        shadowOf(context.getSystemService(PowerManager::class.java)).turnScreenOn(false)
        unmetered(true)
        shadowOf(context as Application).grantPermissions(Manifest.permission.INTERNET)
        Openings.asset = { _, name -> BUNDLES.resolve(name).toFile().inputStream() }
        PersonalizationScheduler.openWith = { context, name -> PersonalModel.open(context, name, options) }
        ModelJobService.watchEveryMs = 1
        server.createContext("/") { exchange ->
            val path = exchange.requestURI.path
            asked += "${exchange.requestMethod} $path"
            if (path == "/v1/check-in") onCheckIn()
            val bytes = answer(path).encodeToByteArray()
            if (!away) exchange.responseHeaders.add("Pfl-Protocol", "1")
            exchange.responseHeaders.add("Content-Type", "application/json")
            val status = if (away) 503 else 200
            exchange.sendResponseHeaders(if (path == "/v1/devices") 201 else status, bytes.size.toLong())
            exchange.responseBody.use { it.write(bytes) }
        }
        server.start()
    }

    @After
    fun tearDown() =
        runBlocking {
            opened.forEach { it.close() }
            server.stop(0)
            PersonalizationScheduler.openWith = null
            RoundsScheduler.federationWith = null
            ModelJobService.watchEveryMs = 2_000
            TimeZone.setDefault(zone)
            assertEquals(0, engine.open)
        }

    private fun answer(path: String): String {
        val id = opened.first().model
        val bundle = """{"name": "${id.name}", "version": "${id.version}", "fingerprint": "${id.fingerprint}"}"""
        return when (path) {
            "/v1/federation" -> {
                """{"protocol": 1, "server": "fake", "bundle": $bundle, "enrolment": "open", "attestation": [], "privacy": {},
                    "groups": [], "max_update_bytes": 10000, "state": "running"}"""
            }

            "/v1/devices" -> {
                """{"device": "${"d".repeat(32)}", "credential": "secret"}"""
            }

            "/v1/check-in" -> {
                """{"status": "wait", "retry_after_s": 60}"""
            }

            else -> {
                "{}"
            }
        }
    }

    private fun open() =
        runBlocking {
            PersonalModel.open(context, "tiny.pflb", options).also {
                opened += it
                repeat(20) { _ -> it.remember("see you at the bus tonight") }
            }
        }

    private fun jobs(): List<JobInfo> = checkNotNull(context.getSystemService(JobScheduler::class.java)).allPendingJobs

    private fun runJob() = runJob(RoundsJobService::class.java, jobs().single { it.service.className == RoundsJobService::class.java.name })

    @Suppress("DEPRECATION") // by which the stand-in tells networks that cost
    private fun unmetered(free: Boolean) {
        val network = checkNotNull(context.getSystemService(ConnectivityManager::class.java))
        val kind = if (free) ConnectivityManager.TYPE_WIFI else ConnectivityManager.TYPE_MOBILE
        shadowOf(network).setActiveNetworkInfo(network.getNetworkInfo(kind))
        assertEquals(!free, network.isActiveNetworkMetered)
    }

    @Test
    fun `both jobs of a model stand side by side, and the system gets the constraints`() {
        val model = open()
        PersonalizationScheduler.schedule(context, model)
        RoundsScheduler.schedule(context, model, federation)
        assertEquals(2, jobs().size)
        val job = jobs().single { it.service.className == RoundsJobService::class.java.name }
        assertTrue(job.isRequireCharging && job.isRequireDeviceIdle && job.isPersisted && job.isPeriodic)
        assertNotNull(job.requiredNetwork)
        val found = assertNotNull(RoundsScheduler.federationOf(context, job.extras, "tiny.pflb"))
        assertEquals(
            listOf(federation.server, "red", 4.0, true),
            listOf(found.server, found.group, found.policy.maxEpsilon, found.policy.require),
        )
        RoundsScheduler.cancel(context, model)
        assertEquals(PersonalizationJobService::class.java.name, jobs().single().service.className)
    }

    @Test
    @Suppress("DEPRECATION") // the typed ones are of API 33
    fun `nothing is scheduled that could not run`() {
        val model = open()
        assertFailsWith<ConfigException> { RoundsScheduler.schedule(context, model, Federation(federation.server, token = "t")) }
        val attest = Attest { _, kinds -> Attest.Verdict(kinds.first(), "") }
        assertFailsWith<ConfigException> { RoundsScheduler.schedule(context, model, Federation(federation.server, attest = attest)) }
        RoundsScheduler.federationWith = { _, _ -> Federation(federation.server, token = "secret token") }
        RoundsScheduler.schedule(context, model, Federation(federation.server, token = "secret token"))
        val extras = jobs().single().extras
        assertTrue(extras.keySet().none { "secret" in extras.get(it).toString() })
        shadowOf(context as Application).denyPermissions(Manifest.permission.INTERNET)
        assertFailsWith<ConfigException> { RoundsScheduler.schedule(context, model, federation) }
    }

    @Test
    fun `a job asks for a task, and again only after the interval, whatever zone the clock is in`() =
        runBlocking {
            val model = open()
            RoundsScheduler.schedule(context, model, federation)
            assertEquals(emptySet(), RoundsScheduler.whyWaiting(context, model))
            assertFalse(runJob())
            assertTrue("POST /v1/check-in" in asked)
            assertEquals(federation.server, model.status().rounds?.server)
            assertTrue(model.folder.resolve("rounds").startsWith(context.noBackupFilesDir.toPath().toRealPath()))
            asked.clear()
            for (other in listOf("Pacific/Kiritimati", "Pacific/Pago_Pago")) {
                TimeZone.setDefault(TimeZone.getTimeZone(other))
                assertEquals(setOf(Waiting.INTERVAL), RoundsScheduler.whyWaiting(context, model))
                assertFalse(runJob())
            }
            assertEquals(emptyList(), asked)
            assertEquals(LeaveResult.Left, RoundsScheduler.leave(context, model, federation))
            assertEquals(setOf(Waiting.NOT_SCHEDULED), RoundsScheduler.whyWaiting(context, model))
            assertNull(model.status().rounds?.server)
        }

    @Test
    fun `on a network that costs nobody is asked`() =
        runBlocking {
            val model = open()
            RoundsScheduler.schedule(context, model, federation)
            unmetered(false)
            assertEquals(setOf(Waiting.UNMETERED), RoundsScheduler.whyWaiting(context, model))
            assertTrue(runJob())
            assertEquals(emptyList(), asked)
            assertNull(model.status().rounds)
        }

    @Test
    fun `a round ends when its network or power ceases, and the system may try again`() =
        runBlocking {
            val model = open()
            RoundsScheduler.schedule(context, model, federation)
            onCheckIn = {
                charge(context, plugged = false, percent = 80)
                Thread.sleep(300)
            }
            assertTrue(runJob())
            assertTrue("POST /v1/check-in" in asked)
            assertNull(model.status().rounds?.asked)
        }

    @Test
    fun `out of reach, the system tries again before the next interval`() =
        runBlocking {
            val model = open()
            val quick = Federation("http://127.0.0.1:1", patienceS = 0.0, backoff = Backoff(attempts = 1))
            RoundsScheduler.federationWith = { _, _ -> quick }
            RoundsScheduler.schedule(context, model, quick)
            assertTrue(runJob())
            assertNull(model.status().rounds?.asked)
        }

    @Test
    fun `a job asks nobody where the user takes part no more`() =
        runBlocking {
            val model = open()
            RoundsScheduler.schedule(context, model, federation)
            RoundsScheduler.federationWith = { _, _ -> null }
            assertFalse(runJob())
            assertEquals(emptyList(), asked)
            assertEquals("not-taking-part", RoundsScheduler.lastJob(context, model)?.code)
        }

    @Test
    fun `who leaves out of reach is taken out by a job`() =
        runBlocking {
            val model = open()
            val quick = Federation(federation.server, patienceS = 0.0, backoff = Backoff(attempts = 1))
            RoundsScheduler.federationWith = { _, _ -> quick }
            RoundsScheduler.schedule(context, model, quick)
            assertFalse(runJob())
            away = true
            assertIs<LeaveResult.Unreachable>(RoundsScheduler.leave(context, model, quick))
            assertTrue(RoundsScheduler.isLeaving(context, model))
            assertTrue(Waiting.NOT_SCHEDULED in RoundsScheduler.whyWaiting(context, model))
            assertFalse(jobs().single().isRequireCharging)
            assertTrue(runJob())
            assertEquals(true, RoundsScheduler.lastJob(context, model)?.failed)
            away = false
            asked.clear()
            assertFalse(runJob())
            assertEquals(listOf("DELETE /v1/devices/me"), asked.toList())
            assertEquals(emptyList(), jobs())
            assertFalse(RoundsScheduler.isLeaving(context, model))
        }

    @Test
    fun `erasing ends the schedule of rounds, so that no job enrols the device anew`() =
        runBlocking {
            val model = open()
            PersonalizationScheduler.schedule(context, model)
            RoundsScheduler.schedule(context, model, federation)
            model.eraseEverything()
            assertEquals(PersonalizationJobService::class.java.name, jobs().single().service.className)
            RoundsScheduler.schedule(context, model, federation)
            opened.removeAll { it === model }
            model.close()
            PersonalModel.erase(context, "tiny.pflb")
            assertEquals(emptyList(), jobs())
        }

    @Test
    fun `both jobs of a model that start at once take turns`() =
        runBlocking {
            val model = open()
            PersonalizationScheduler.schedule(context, model)
            RoundsScheduler.schedule(context, model, federation)
            val learning = CountDownLatch(1)
            val goOn = CountDownLatch(1)
            onRun = {
                learning.countDown()
                goOn.await(60, TimeUnit.SECONDS)
            }
            val service = Robolectric.buildService(PersonalizationJobService::class.java).create()
            val job = jobs().single { it.service.className == PersonalizationJobService::class.java.name }
            service.get().onStartJob(parameters(job))
            assertTrue(learning.await(60, TimeUnit.SECONDS))
            thread {
                Thread.sleep(200)
                goOn.countDown()
            }
            assertFalse(runJob())
            assertTrue("POST /v1/check-in" in asked)
            assertEquals("kept", PersonalizationScheduler.lastJob(context, model)?.code)
            service.destroy()
            Unit
        }

    @Test
    fun `a clock that was set back does not keep a job waiting for years`() {
        val now = System.currentTimeMillis() / 1000.0
        val daily = PersonalizationConstraints()
        assertTrue(Jobs.tooSoon(now - 3600, daily))
        assertFalse(Jobs.tooSoon(now - 25 * 3600, daily))
        assertFalse(Jobs.tooSoon(now - 23 * 3600, daily), "a job that comes an hour earlier than the day before")
        assertEquals(now - 23 * 3600, JobOutcome(now - 23 * 3600, now, "kept", failed = false).since(now))
        assertFalse(Jobs.tooSoon(now + 365 * 86_400, daily))
        assertFalse(Jobs.tooSoon(null, daily))
    }
}
