package io.pflmobile.core.personal

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.Role
import io.pflmobile.core.device.DeviceFolder
import io.pflmobile.core.device.Event
import io.pflmobile.core.device.FakeAggregator
import io.pflmobile.core.device.PrivacyPolicy
import io.pflmobile.core.device.QUICK
import io.pflmobile.core.device.address
import io.pflmobile.core.device.answer
import io.pflmobile.core.device.problem
import io.pflmobile.core.device.stranger
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.DeviceException
import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.local.Evaluator
import io.pflmobile.core.local.Examples
import io.pflmobile.core.local.Payload
import io.pflmobile.core.protocol.Enrolled
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.state.PersonalStateStore
import io.pflmobile.core.tensors.FloatTensor
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import mockwebserver3.MockResponse
import mockwebserver3.MockWebServer
import mockwebserver3.RecordedRequest
import okhttp3.OkHttpClient
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Timeout
import org.junit.jupiter.api.io.TempDir
import java.nio.file.Path
import java.util.concurrent.CopyOnWriteArrayList
import java.util.concurrent.atomic.AtomicBoolean
import kotlin.concurrent.thread
import kotlin.io.path.deleteExisting
import kotlin.io.path.exists
import kotlin.io.path.isRegularFile
import kotlin.io.path.name
import kotlin.io.path.readText
import kotlin.io.path.walk
import kotlin.io.path.writeText
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertNotEquals
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue

/** An app that has a personal model takes part in rounds; the real ONNX Runtime, and an aggregator that can be told what to answer. */
@Timeout(120)
class RoundsTest {
    @TempDir
    lateinit var folder: Path

    private val bundles = Path.of(System.getProperty("bundles"))
    private val server = MockWebServer()
    private val examples = InMemoryExamples()
    private var onRun: (String) -> Unit = {}
    private val engine = CountingEngine { onRun(it) }
    private val models = ArrayList<PersonalModel>()
    private val events = CopyOnWriteArrayList<Event>()
    private lateinit var fake: FakeAggregator

    @BeforeEach
    fun start() {
        federation(rounds = 1)
        server.start()
    }

    @AfterEach
    fun end() =
        runBlocking {
            models.forEach { it.close() }
            server.close()
            assertEquals(0, engine.open)
        }

    private fun federation(
        rounds: Int,
        privacy: String = FakeAggregator.PRIVATE,
        change: (ModelId) -> ModelId = { it },
    ) {
        Bundle.open(bundles.resolve("talk.pflb")).use { bundle ->
            val shared = bundle.manifest.tensors.filter { it.role == Role.SHARED }
            val values = bundle.values()
            fake =
                FakeAggregator(
                    change(ModelId.of(bundle.manifest)),
                    rounds,
                    shared.associate {
                        it.name to
                            values.getValue(it.name) as FloatTensor
                    },
                )
            fake.plan = bundle.planJson()
            fake.privacy = privacy
        }
        server.dispatcher = fake
    }

    private suspend fun open(): PersonalModel =
        PersonalModel
            .open(
                bundles.resolve("talk.pflb"),
                folder.resolve("model"),
                ModelOptions(trusted = true, engines = listOf(engine)),
                { NOW },
            ) { examples }
            .also { models += it }

    private suspend fun opened(count: Int = 30): PersonalModel =
        open().also { model -> repeat(count) { model.remember(SAID[it % SAID.size]) } }

    private suspend fun PersonalModel.takePart(onEvent: (Event) -> Unit = {}): RoundsResult =
        takePart(at()) {
            events += it
            onEvent(it)
        }

    private fun broken(what: String): (RecordedRequest) -> MockResponse? =
        {
            if (it.method ==
                what
            ) {
                stranger("", 502, "Retry-After" to "0").build()
            } else {
                null
            }
        }

    private fun at(policy: PrivacyPolicy = PrivacyPolicy()) = Federation(server.address, policy, patienceS = 0.0, backoff = QUICK)

    private suspend fun PersonalModel.rounds() = assertNotNull(status().rounds)

    @Test
    fun `a round is learned on the model's own examples and state, and its cost is shown`() =
        runBlocking {
            federation(rounds = 2)
            val model = opened()
            assertNull(model.status().rounds)
            model.personalize()
            val before = model.status()
            val summary = assertIs<RoundsResult.TookPart>(model.takePart()).summary
            assertEquals(1, summary.rounds)
            assertEquals(1, fake.updates.size)
            val finished = events.filterIsInstance<Event.Finished>().single()
            val after = model.status()
            assertEquals(if (finished.adopted) before.version + 1 else before.version, after.version)
            assertTrue("zorp" in model.learnedWords())
            val rounds = model.rounds()
            assertEquals(listOf(server.address, 1L, 0, NOW), listOf(rounds.server, rounds.rounds, rounds.waiting, rounds.asked))
            assertEquals(fake.updates.values.sumOf { it.size.toLong() }, rounds.bytesSent)
            assertEquals(PrivacySpent(epsilon = 8.0, delta = 1e-6, own = 0.0, promised = 8.0), rounds.spent)
            model.close()
            val again = open()
            assertEquals(rounds, again.rounds())
            assertIs<RoundsResult.TookPart>(again.takePart())
            assertEquals(2L, again.rounds().rounds)
            assertEquals(8.0, again.rounds().spent.epsilon, "the promise is for the whole membership")
            assertIs<RoundsResult.NoRound>(again.takePart())
            Unit
        }

    @Test
    fun `what a task's plan serves is served, also when the model is opened again`() =
        runBlocking {
            fake.plan = dittoPlan(fake.plan)
            val model = opened()
            val shipped = model.suggest(TYPED)
            assertIs<RoundsResult.TookPart>(model.takePart())
            assertTrue(events.filterIsInstance<Event.Finished>().single().adopted)
            val own = model.suggest(TYPED)
            assertNotEquals(shipped.map { it.word }, own.map { it.word })
            // the bundle's plan trains theta, which has to be better than the copy that serves
            val before =
                when (val result = model.personalize()) {
                    is PersonalizeResult.Adopted -> result.report.before.also { model.revert(1) }
                    is PersonalizeResult.Kept -> result.report.before
                    else -> emptyMap()
                }
            assertTrue(before.getValue("loss") < shippedLoss(model), "before is of the copy")
            assertEquals(own, model.suggest(TYPED))
            model.close()
            val again = open()
            assertEquals(own, again.suggest(TYPED))
            again.close()
            folder.resolve("model/rounds/serves.json").deleteExisting()
            val lost = open()
            assertEquals(shipped.map { it.word }, lost.suggest(TYPED).map { it.word }, "theta was hardly trained")
            lost.eraseEverything()
            assertEquals(shipped, lost.suggest(TYPED))
        }

    /** Of Ditto: the shared model hardly learns, and a copy that stays here learns much and serves. */
    private fun dittoPlan(plan: String): String {
        val given = parseJson(plan) as JsonObject
        val train = (given.getValue("phases") as JsonArray).last() as JsonObject

        fun training(
            what: String,
            epochs: Int,
            lr: Double,
        ) = JsonObject(
            train +
                mapOf(
                    "trains" to JsonPrimitive(what),
                    "epochs" to JsonPrimitive(epochs),
                    "optimizer" to parseJson("""{"kind": "sgd", "lr": $lr}"""),
                ),
        )
        val ditto =
            mapOf(
                "phases" to JsonArray(listOf(training("theta", 1, 1e-6), training("own", 30, 1.0))),
                "copies" to parseJson("""{"own": {"of": "global", "group": ["*"]}}"""),
                "keep" to parseJson("""["own"]"""),
                "serve" to JsonPrimitive("own"),
            )
        return JsonObject(given + ditto).toString()
    }

    /** Mean loss of the shipped model on the newest examples. */
    private suspend fun shippedLoss(model: PersonalModel): Double =
        Bundle.open(bundles.resolve("talk.pflb")).use { bundle ->
            engine.open(bundle.engineFiles(engine.name), bundle.manifest.programs, 1).use { session ->
                val texts = model.examples().map { (it.payload as Payload.Text).text }
                Evaluator(bundle, session).measure(Examples.Texts(texts.takeLast(texts.size / 5))).getValue("loss")
            }
        }

    @Test
    fun `nothing is sent where nothing protects it, and the app's word is counted as what it is`() =
        runBlocking {
            federation(1, FakeAggregator.NONE)
            val model = opened()
            val refused = assertIs<RoundsResult.NotProtected>(model.takePart())
            assertTrue("nothing protects" in refused.why, refused.why)
            assertTrue(fake.updates.isEmpty())
            assertEquals(PrivacySpent(), model.rounds().spent)
            federation(1, FakeAggregator.NONE)
            assertIs<RoundsResult.TookPart>(model.takePart(at(PrivacyPolicy(require = false))))
            assertEquals(1, fake.updates.size)
            assertEquals(Double.POSITIVE_INFINITY, model.rounds().spent.epsilon)
            assertEquals(1L, model.rounds().spent.unprotected)
        }

    @Test
    fun `noise of the device is counted by the device`() =
        runBlocking {
            federation(2, FakeAggregator.LOCAL)
            val model = opened()
            assertIs<RoundsResult.TookPart>(model.takePart())
            val one = model.rounds().spent
            assertTrue(one.own > 0 && one.promised == 0.0 && one.epsilon == one.own && one.delta == 1e-6)
            assertIs<RoundsResult.TookPart>(model.takePart())
            assertTrue(model.rounds().spent.own > one.own)
        }

    @Test
    fun `nobody is asked while the user paused, or with too few examples`() =
        runBlocking {
            val model = opened(2)
            assertEquals(RoundsResult.NotEnoughExamples(2), model.takePart())
            model.remember("see you")
            model.pause()
            assertEquals(RoundsResult.Paused, model.takePart())
            assertTrue(fake.requests.isEmpty())
            assertNull(model.status().rounds)
        }

    @Test
    fun `one training at a time`() =
        runBlocking {
            val model = opened()
            val during = ArrayList<Any>()
            model.takePart {
                if (it is Event.Stepped && it.step == 2L) {
                    runBlocking {
                        during += model.personalize()
                        during += model.takePart(server.address)
                        assertTrue(model.status().training)
                        model.versions()
                    }
                }
            }
            assertIs<PersonalizeResult.Failed>(during[0])
            assertIs<RoundsResult.Failed>(during[1])
            Unit
        }

    @Test
    fun `every control of the user stops a round within a step`() =
        runBlocking {
            val controls =
                listOf<suspend (PersonalModel) -> Unit>(
                    { it.pause() },
                    { it.revert(0) },
                    { it.forgetExample(1) },
                    { it.forgetWord("late") },
                    { it.leave(at()) },
                    { it.eraseEverything() },
                )
            val model = opened(60)
            for (control in controls) {
                val stepping = CompletableDeferred<Unit>()
                val taking =
                    async(Dispatchers.Default) {
                        model.takePart {
                            if (it is Event.Stepped) {
                                stepping.complete(Unit)
                                Thread.sleep(5)
                            }
                        }
                    }
                stepping.await()
                control(model)
                assertEquals(RoundsResult.Cancelled, taking.await())
                model.resume()
            }
            assertTrue(fake.updates.isEmpty() && fake.declined.isEmpty())
        }

    @Test
    fun `it waits for a network and can be stopped there`() =
        runBlocking {
            federation(rounds = 1)
            fake.instead = { if (it.target == "/v1/check-in") answer("""{"status": "wait", "retry_after_s": 3600}""").build() else null }
            val model = opened()
            val waiting = CompletableDeferred<Unit>()
            val taking =
                async(Dispatchers.Default) {
                    model.takePart(at(), rounds = 1) { if (it is Event.Waiting) waiting.complete(Unit) }
                }
            waiting.await()
            assertEquals(0, model.revert(0))
            assertEquals(RoundsResult.Cancelled, taking.await())
            assertEquals(0, engine.openings, "there was no task")
            val cancelled = async(Dispatchers.Default) { model.takePart(at(), rounds = 1) }
            while (!model.status().training) Thread.sleep(1)
            cancelled.cancelAndJoin()
            assertFalse(model.status().training)
        }

    @Test
    fun `an update without a network waits, and goes out first of all`() =
        runBlocking {
            fake.instead = broken("PUT")
            val model = opened()
            assertEquals(1, assertIs<RoundsResult.Unreachable>(model.takePart()).waiting)
            assertEquals(0L to 1, model.rounds().let { it.rounds to it.waiting })
            assertEquals(8.0, model.rounds().spent.epsilon, "it may be sent at any time")
            fake.instead = { null }
            model.close()
            events.clear()
            assertIs<RoundsResult.TookPart>(open().takePart())
            assertTrue(events.none { it is Event.Finished })
            assertEquals(1, fake.updates.size)
        }

    @Test
    fun `what was made of what is forgotten is sent no more`() =
        runBlocking {
            val model = opened()
            for (forget in listOf<suspend () -> Unit>({ model.forgetExample(model.examples().first().id) }, { model.forgetWord("zorp") })) {
                federation(1)
                fake.instead = broken("PUT")
                assertIs<RoundsResult.Unreachable>(model.takePart())
                forget()
                assertEquals(0, model.rounds().waiting)
                federation(0)
                assertIs<RoundsResult.NoRound>(model.takePart())
                assertTrue(fake.updates.isEmpty())
            }
        }

    @Test
    fun `erased, no credential, update or value is left, but the count of what was spent`() =
        runBlocking {
            federation(2, FakeAggregator.LOCAL)
            val model = opened()
            model.takePart()
            fake.instead = broken("PUT")
            model.takePart()
            val spent = model.rounds().spent
            model.eraseEverything()
            assertEquals(listOf(null, 0, spent), model.rounds().let { listOf(it.server, it.waiting, it.spent) })
            val left =
                folder
                    .resolve("model/rounds")
                    .walk()
                    .filter { it.isRegularFile() }
                    .map { it.name }
                    .toSet()
            assertEquals(setOf("lock", "sent.json", "spent.json"), left)
            assertTrue("secret" !in folder.resolve("model/rounds/spent.json").readText())
            assertEquals(RoundsResult.NotEnoughExamples(0), model.takePart())
        }

    @Test
    fun `a revert goes back, and the update that waits is still sent`() =
        runBlocking {
            fake.instead = broken("PUT")
            val model = opened()
            assertIs<RoundsResult.Unreachable>(model.takePart())
            model.revert(0)
            fake.instead = { null }
            assertIs<RoundsResult.TookPart>(model.takePart())
            assertEquals(0, model.status().version)
        }

    @Test
    fun `a device has left without a network too, and the aggregator is told when there is one`() =
        runBlocking {
            val model = opened()
            assertEquals(LeaveResult.NotThere, model.leave(at()))
            model.takePart()
            fake.instead = broken("DELETE")
            assertIs<LeaveResult.Unreachable>(model.leave(at()))
            assertEquals(null to listOf(server.address), model.rounds().let { it.server to it.leaving })
            model.close()
            val again = open()
            assertIs<LeaveResult.Unreachable>(again.leave(at()))
            fake.instead = { null }
            // at whichever address it is that the app has now
            assertEquals(LeaveResult.Left, again.leave(Federation("http://localhost:${server.port}")))
            assertEquals(LeaveResult.NotThere, again.leave(at()))
            assertEquals(null to emptyList(), again.rounds().let { it.server to it.leaving })
            assertEquals(1L, again.rounds().rounds)
        }

    @Test
    fun `killed while it leaves, a device has left`() =
        runBlocking {
            val model = opened()
            model.takePart()
            model.close()
            val membership = """{"server":"${server.address}","device":"${fake.device}","credential":"secret"}"""
            folder.resolve("model/rounds/leaving.json").writeText("""{"schema_version":1,"memberships":[$membership]}""")
            val again = open()
            assertEquals(null to listOf(server.address), again.rounds().let { it.server to it.leaving })
            assertFalse(folder.resolve("model/rounds/device.json").exists())
            assertEquals(LeaveResult.Left, again.leave(at()))
            assertEquals("DELETE /v1/devices/me", fake.requests.last())
        }

    @Test
    fun `another server address ends the membership at the old one, which the next round tells`() =
        runBlocking {
            federation(2, FakeAggregator.LOCAL)
            val model = opened()
            fake.instead = broken("PUT")
            assertIs<RoundsResult.Unreachable>(model.takePart())
            fake.instead = broken("DELETE")
            val elsewhere = Federation("http://localhost:${server.port}", patienceS = 0.0, backoff = QUICK)
            assertIs<RoundsResult.TookPart>(model.takePart(elsewhere))
            assertEquals(1, fake.updates.size, "what waited was of the old one")
            assertEquals(elsewhere.server to listOf(server.address), model.rounds().let { it.server to it.leaving })
            fake.instead = { null }
            model.takePart(elsewhere)
            assertEquals(emptyList(), model.rounds().leaving)
            assertEquals(2, fake.requests.count { it.startsWith("DELETE") })
        }

    @Test
    fun `nothing waits for an aggregator that is to be told`() =
        runBlocking {
            val model = opened()
            model.takePart()
            val asked = CompletableDeferred<Unit>()
            fake.instead = {
                if (it.method == "DELETE") {
                    asked.complete(Unit)
                    stranger("", 502, "Retry-After" to "3600").build()
                } else {
                    null
                }
            }
            val leaving = async(Dispatchers.Default) { model.leave(at()) }
            asked.await()
            withTimeout(20_000) {
                model.forgetWord("late")
                model.eraseEverything()
            }
            assertEquals(null to emptyList(), model.rounds().let { it.server to it.leaving })
            leaving.cancelAndJoin()
        }

    @Test
    fun `all federations together have one budget`() =
        runBlocking {
            val model = opened()
            assertIs<RoundsResult.TookPart>(model.takePart())
            assertEquals(LeaveResult.Left, model.leave(at()))
            federation(1)
            fake.device = "e".repeat(32)
            val refused = assertIs<RoundsResult.NotProtected>(model.takePart())
            assertTrue("epsilon is 16" in refused.why, refused.why)
            federation(1)
            assertIs<RoundsResult.TookPart>(model.takePart(at(PrivacyPolicy(maxEpsilon = 20.0))))
            assertEquals(16.0, model.rounds().spent.epsilon)
        }

    @Test
    fun `what waits is not sent above the budget either`() =
        runBlocking {
            fake.instead = broken("PUT")
            val model = opened()
            assertIs<RoundsResult.Unreachable>(model.takePart())
            model.close()
            val file = folder.resolve("model/rounds/spent.json")
            file.writeText(file.readText().replace("\"promises\":{", "\"promises\":{\"other\":{\"epsilon\":3.0,\"delta\":1e-7},"))
            fake.instead = { null }
            assertIs<RoundsResult.NotProtected>(open().takePart())
            assertTrue(fake.updates.isEmpty())
        }

    @Test
    fun `a promise that cannot be true is none`() =
        runBlocking {
            val model = opened()
            federation(1, FakeAggregator.PRIVATE.replace("\"clip_norm\": 0.05", "\"clip_norm\": null"))
            assertIs<RoundsResult.TookPart>(model.takePart(at(PrivacyPolicy(require = false))))
            assertEquals(1L to 0.0, model.rounds().spent.let { it.unprotected to it.promised })
            federation(1, FakeAggregator.PRIVATE.replace("\"epsilon\": 7.0", "\"epsilon\": 70.0"))
            assertIs<RoundsResult.TookPart>(model.takePart(at(PrivacyPolicy(require = false))))
            assertEquals(2L to 0.0, model.rounds().spent.let { it.unprotected to it.promised })
        }

    @Test
    fun `a count that was lost is not nothing`() =
        runBlocking {
            val model = opened()
            model.takePart()
            model.close()
            for (name in listOf("sent.json", "spent.json")) {
                val file = folder.resolve("model/rounds/$name")
                val content = file.readText()
                file.deleteExisting()
                val again = open()
                assertIs<DeviceFolderException>(again.rounds().problem)
                assertEquals(Double.POSITIVE_INFINITY, again.rounds().spent.epsilon)
                assertIs<DeviceFolderException>(assertIs<RoundsResult.Failed>(again.takePart()).error)
                again.close()
                file.writeText(content)
            }
            assertNull(open().rounds().problem)
        }

    @Test
    fun `an update of an earlier membership is not sent for the next one`() =
        runBlocking {
            federation(1, FakeAggregator.LOCAL)
            fake.instead = broken("PUT")
            val model = opened()
            assertIs<RoundsResult.Unreachable>(model.takePart())
            model.close()
            // as a half-done removal left it
            val file = folder.resolve("model/rounds/device.json")
            file.writeText(file.readText().replace("d".repeat(32), "e".repeat(32)))
            fake.instead = { null }
            events.clear()
            assertIs<RoundsResult.TookPart>(open().takePart())
            assertTrue("another membership" in events.filterIsInstance<Event.Dropped>().single().why)
            assertEquals(1, events.filterIsInstance<Event.Finished>().size)
        }

    @Test
    fun `an erasure that was killed is ended by the next opening`() =
        runBlocking {
            val model = opened()
            model.personalize()
            model.takePart()
            model.close()
            folder.resolve("model/erasing").writeText("")
            val again = open()
            assertEquals(0 to 0, again.status().let { it.version to it.examples })
            assertEquals(null to 1L, again.rounds().let { it.server to it.rounds })
            assertFalse(folder.resolve("model/erasing").exists())
        }

    private fun changeQueue(change: (String) -> String) {
        val file =
            folder
                .resolve("model/rounds/queue")
                .walk()
                .single { it.name.endsWith(".json") }
        file.writeText(change(file.readText()))
    }

    @Test
    fun `a revert is not undone by what a killed process began`() =
        runBlocking {
            fake.instead = broken("PUT")
            val model = opened()
            model.personalize()
            assertIs<RoundsResult.Unreachable>(model.takePart())
            val version = model.status().version
            assertTrue(version > 0)
            // killed after the state served, and before the queue said so
            changeQueue { it.replace("\"adopts\":null", "\"adopts\":$version").replace(Regex("\"instead_of\":\\d+"), "\"instead_of\":0") }
            model.revert(0)
            fake.instead = { null }
            assertIs<RoundsResult.TookPart>(model.takePart())
            assertEquals(0, model.status().version)
        }

    @Test
    fun `a state that was erased meanwhile is not waited for`() =
        runBlocking {
            fake.instead = broken("PUT")
            val model = opened()
            assertIs<RoundsResult.Unreachable>(model.takePart())
            val version = model.status().version
            changeQueue { it.replace("\"adopts\":null", "\"adopts\":99").replace(Regex("\"instead_of\":\\d+"), "\"instead_of\":$version") }
            fake.instead = { null }
            assertIs<RoundsResult.TookPart>(model.takePart())
            assertEquals(version, model.status().version)
        }

    @Test
    fun `the golden batch and measurements are stopped too`() =
        runBlocking {
            val model = opened()
            onRun = { runBlocking { model.pause() } }
            assertEquals(RoundsResult.Cancelled, model.takePart())
            assertEquals(1, engine.runs.size, "${engine.runs}")
            onRun = {}
            model.resume()
            var evaluations = 0
            var trained = false
            onRun = {
                if (it == "evaluate" && trained) {
                    evaluations++
                    runBlocking { model.pause() }
                }
            }
            assertEquals(RoundsResult.Cancelled, model.takePart { if (it is Event.Stepped && it.step == it.of) trained = true })
            assertEquals(1, evaluations)
            assertTrue(fake.updates.isEmpty())
            assertEquals(0, model.rounds().waiting)
            onRun = {}
        }

    @Test
    fun `what is finished is sent with too few examples too`() =
        runBlocking {
            fake.instead = broken("PUT")
            val model = opened()
            assertIs<RoundsResult.Unreachable>(model.takePart())
            examples.eraseAll()
            fake.instead = { null }
            assertIs<RoundsResult.TookPart>(model.takePart())
            assertEquals(RoundsResult.NotEnoughExamples(0), model.takePart())
            assertEquals(1, fake.updates.size)
        }

    @Test
    fun `an app that may not use the network is told so`() =
        runBlocking {
            val http = OkHttpClient.Builder().addInterceptor { throw SecurityException("missing INTERNET permission?") }.build()
            val error = assertIs<RoundsResult.Failed>(opened().takePart(Federation(server.address, http = http))).error
            assertTrue("android.permission.INTERNET" in assertIs<ConfigException>(error).mend)
        }

    @Test
    fun `nobody opens the device's folder while it is erased, nor after it was closed`() {
        val id = ModelId("toy", "1", "f".repeat(64))
        val home = folder.resolve("rounds")
        val state = PersonalStateStore(folder.resolve("state"), id)
        val rounds = Rounds(home, id, state) { NOW }
        val over = AtomicBoolean()
        val reader = thread { while (!over.get()) rounds.status() }
        try {
            repeat(50) {
                rounds.erase()
                // the reader may have it open already
                generateSequence { runCatching { DeviceFolder(home, id, null, state) }.onFailure { rounds.erase() } }
                    .firstNotNullOf { it.getOrNull() }
                    .use { it.join("https://a", Enrolled("d".repeat(32), "secret")) }
                rounds.erase()
                assertNull(rounds.status()?.server)
            }
        } finally {
            over.set(true)
            reader.join()
        }
        rounds.close()
        assertFailsWith<StateException> { rounds.status() }
        DeviceFolder(home, id, null, state).close()
    }

    @Test
    fun `a folder that another uses is not thrown away`() =
        runBlocking {
            val model = opened()
            model.takePart()
            model.close()
            val state = PersonalStateStore(folder.resolve("other"), model.model)
            val again = open()
            DeviceFolder(folder.resolve("model/rounds"), model.model, null, state).use {
                assertFailsWith<DeviceFolderException> { again.forgetWord("late") }
            }
            assertNotNull(again.rounds().server)
            Unit
        }

    @Test
    fun `a refusal, another model and an address that is none are told apart`() =
        runBlocking {
            val model = opened()
            assertFailsWith<ConfigException> { model.takePart("http://example.org") }
            assertFailsWith<ConfigException> { model.takePart("example.org") }
            fake.instead = { if (it.target == "/v1/devices") problem("enrolment-closed", 403).build() else null }
            assertEquals("enrolment-closed", assertIs<RoundsResult.Refused>(model.takePart()).error.code)
            federation(1) { it.copy(version = "9") }
            assertIs<DeviceException>(assertIs<RoundsResult.Failed>(model.takePart()).error)
            fake.instead = { stranger("<html>", 200, "Content-Type" to "text/html").build() }
            assertIs<RoundsResult.Unreachable>(model.takePart())
            Unit
        }

    @Test
    fun `a new version of the bundle enrols anew, and does not send what the old one made`() =
        runBlocking {
            fake.instead = broken("PUT")
            val model = opened()
            model.takePart()
            val id = model.model
            model.close()
            val file = folder.resolve("model/rounds/device.json")
            file.writeText(file.readText().replace("\"${id.version}\"", "\"0\""))
            federation(1)
            assertIs<RoundsResult.TookPart>(open().takePart())
            assertEquals(1, fake.requests.count { it == "POST /v1/devices" })
            assertEquals(1, fake.requests.count { it == "DELETE /v1/devices/me" }, "the old membership is over")
            assertEquals(1, fake.updates.size)
        }

    @Test
    fun `a damaged folder of the device keeps nobody from the model, and is told`() =
        runBlocking {
            val model = opened()
            model.takePart()
            model.close()
            folder.resolve("model/rounds/sent.json").writeText("damaged")
            val again = open()
            assertTrue(again.suggest("see you").isNotEmpty())
            assertIs<DeviceFolderException>(again.rounds().problem)
            assertEquals(Double.POSITIVE_INFINITY, again.rounds().spent.epsilon)
            assertIs<DeviceFolderException>(assertIs<RoundsResult.Failed>(again.takePart()).error)
            again.forgetWord("late")
            again.eraseEverything()
            assertFalse(folder.resolve("model/rounds/device.json").exists())
        }

    private companion object {
        const val NOW = 1_700_000_000.0
        const val TYPED = "see you at the"
        val SAID = listOf("see you at the zorp tonight", "the zorp is late again", "ok see you there")
    }
}
