package io.pflmobile.keyboard

import android.Manifest
import android.app.job.JobScheduler
import android.text.InputType
import android.view.View
import android.view.ViewGroup
import android.view.inputmethod.BaseInputConnection
import android.view.inputmethod.EditorInfo
import android.view.inputmethod.InputConnection
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.personal.ModelOptions
import io.pflmobile.core.personal.PersonalModel
import io.pflmobile.keyboard.keys.KeyAction
import io.pflmobile.keyboard.model.Assistant
import io.pflmobile.keyboard.model.Assistants
import io.pflmobile.keyboard.model.Preferences
import io.pflmobile.keyboard.model.SdkAssistant
import io.pflmobile.keyboard.view.KeyboardView
import io.pflmobile.keyboard.view.SuggestionStrip
import io.pflmobile.sdk.FakeAndroidKeyStore
import io.pflmobile.sdk.RoundsScheduler
import io.pflmobile.sdk.open
import kotlinx.coroutines.runBlocking
import org.junit.After
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.junit.runners.model.FrameworkMethod
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.internal.bytecode.InstrumentationConfiguration
import org.robolectric.util.ReflectionHelpers
import java.io.File
import java.util.concurrent.TimeUnit
import kotlin.test.assertEquals
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue

/** Leaves the runtime outside of Robolectric's own class loader, as a native library loads in one class loader only. */
class WithRuntime(
    tested: Class<*>,
) : RobolectricTestRunner(tested) {
    override fun createClassLoaderConfig(method: FrameworkMethod): InstrumentationConfiguration =
        InstrumentationConfiguration.Builder(super.createClassLoaderConfig(method)).doNotAcquirePackage("ai.onnxruntime.").build()
}

/** The keyboard as an app has it: the real SDK with its database, jobs and files, and the real ONNX Runtime. */
@RunWith(WithRuntime::class)
@Config(sdk = [34], qualifiers = "w411dp-h891dp-xhdpi")
class RealModelTest {
    private val context get() = RuntimeEnvironment.getApplication()
    private val bundle = File(System.getProperty("bundles"), "talk.pflb").path
    private val options = ModelOptions(trusted = true, engines = listOf(OnnxRuntimeEngine))
    private val service by lazy { Robolectric.buildService(KeyboardService::class.java).create().get() }
    private val root by lazy { service.onCreateInputView() as ViewGroup }
    private val strip get() = root.getChildAt(0) as SuggestionStrip
    private val keys get() = root.getChildAt(1) as KeyboardView
    private val connection by lazy { BaseInputConnection(View(service), true) }
    private var opened = 0

    @Before
    fun setUp() {
        FakeAndroidKeyStore.install()
        shadowOf(context).grantPermissions(Manifest.permission.INTERNET)
        Assistants.reset()
        Assistants.open = {
            opened++
            SdkAssistant.open(it, bundle, options)
        }
    }

    @After
    fun tearDown() =
        runBlocking {
            Assistants.reset()
            val model = PersonalModel.open(context, bundle, options)
            repeat(opened + 1) { model.close() } // this one, and those that the keyboard never closes
        }

    private fun <T> model(use: suspend Assistant.() -> T): T = runBlocking { Assistants.of(context).use() }

    private fun enter() {
        root
        val info = EditorInfo().apply { inputType = InputType.TYPE_CLASS_TEXT }
        ReflectionHelpers.setField(service, "mStartedInputConnection", connection as InputConnection)
        ReflectionHelpers.setField(service, "mInputEditorInfo", info)
        service.onStartInput(info, false)
        service.onStartInputView(info, false)
        settle()
    }

    /** Every letter by its key. */
    private fun type(text: String) {
        for (letter in text) {
            keys.onKey(if (letter == ' ') KeyAction.Space else KeyAction.Type("$letter"))
            moved()
        }
    }

    private fun moved() {
        val cursor = connection.editable?.length ?: 0
        service.onUpdateSelection(0, 0, cursor, cursor, -1, -1)
        settle()
    }

    private fun clear() {
        connection.editable?.clear()
        moved()
    }

    /** What is shown once the model has answered. */
    private fun shown(until: (List<String>) -> Boolean): List<String> {
        await { until(strip.words) }
        return strip.words
    }

    private fun await(met: () -> Boolean) {
        val end = System.nanoTime() + TimeUnit.SECONDS.toNanos(60)
        while (System.nanoTime() < end) {
            settle()
            if (met()) return
            Thread.sleep(5)
        }
    }

    private fun say(
        sentences: List<String>,
        times: Int,
    ) {
        val before = model { standing() }.exampleCount
        repeat(times) {
            for (sentence in sentences) {
                type(sentence)
                keys.onKey(KeyAction.Enter)
                clear()
            }
        }
        val want = before + times * sentences.size
        await { model { standing() }.exampleCount == want }
        assertEquals(want, model { standing() }.exampleCount)
    }

    @Test
    fun `what is typed is learned, and suggested from then on`() {
        enter()
        type("see you at the ")
        val shipped = shown { it.isNotEmpty() }
        assertTrue("zorp" !in shipped, "$shipped")
        clear()

        say(SAID, 10)
        var steps = 0
        model { train { steps = it } }
        assertTrue(steps > 0)
        val standing = model { standing() }
        assertTrue(assertNotNull(standing.result).adopted)
        assertTrue("zorp" in standing.words)

        type("see you at the ")
        assertEquals("zorp", shown { "zorp" in it }.first())
        type("z")
        assertEquals(listOf("zorp"), shown { it == listOf("zorp") })
        clear()

        model { forgetWord("zorp") }
        type("see you at the ")
        assertTrue("zorp" !in shown { it.isNotEmpty() && "zorp" !in it })
        model { eraseEverything() }
        assertEquals(0, model { standing() }.exampleCount)
        assertNull(model { standing() }.result)
    }

    @Test
    fun `a word that is begun is completed from the vocabulary, though the program gives three words only`() {
        enter()
        type("r")
        assertEquals(listOf("running"), shown { it == listOf("running") })
        clear()
        type("see you t")
        val words = shown { all -> "tonight" in all && all.all { it.startsWith("t") } }
        assertTrue("tonight" in words && words.all { it.startsWith("t") }, "$words")
        clear()
        type("xq")
        assertEquals(emptyList(), shown { it.isEmpty() })
    }

    @Test
    fun `rounds are scheduled when the user turns them on, and not before`() {
        val jobs = checkNotNull(context.getSystemService(JobScheduler::class.java))
        assertNull(model { standing() }.rounds)
        Preferences(context).server = "https://pfl.example.org"
        assertEquals(false, model { standing() }.rounds?.on)
        assertEquals(1, jobs.allPendingJobs.size)
        model { takePart(true) }
        assertEquals(2, jobs.allPendingJobs.size)
        assertTrue(assertNotNull(model { standing() }.rounds).waits.isNotEmpty())
        model { takePart(false) }
        assertEquals(1, jobs.allPendingJobs.size)
        model { takePart(true) }
        model { eraseEverything() }
        assertEquals(1, jobs.allPendingJobs.size)
        assertEquals(false, Preferences(context).rounds)
    }

    private val jobs get() = checkNotNull(context.getSystemService(JobScheduler::class.java)).allPendingJobs

    @Test
    fun `an address that is none keeps nobody from the model`() {
        Preferences(context).server = "nonsense"
        Preferences(context).rounds = true
        assertTrue(model { suggest("see you at the ", 3) }.isNotEmpty())
        val rounds = assertNotNull(model { standing() }.rounds)
        assertTrue("nonsense" in rounds.trouble.orEmpty(), rounds.trouble)
        assertEquals(1, jobs.size)
        Preferences(context).rounds = false
        model { takePart(true) }
        assertEquals(false, model { standing() }.rounds?.on)
        assertNotNull(model { standing() }.rounds?.trouble)
    }

    @Test
    fun `what a process left half done is put right when the model is opened next`() {
        Preferences(context).server = "https://pfl.example.org"
        model { takePart(true) }
        assertEquals(2, jobs.size)
        Preferences(context).rounds = false
        assertNull(SdkAssistant.federation(context), "by which a job asks")
        Assistants.reset()
        model { standing() }
        assertEquals(1, jobs.size)
        Preferences(context).rounds = true
        Assistants.reset()
        model { standing() }
        assertEquals(2, jobs.size)
    }

    @Test
    fun `a job of rounds asks for what the user chose, and sends nothing that no noise hides`() {
        assertTrue(context is KeyboardApp)
        val asked = assertNotNull(RoundsScheduler.federationWith)
        assertNull(asked(context, bundle))
        Preferences(context).server = "https://pfl.example.org"
        Preferences(context).rounds = true
        val policy = assertNotNull(asked(context, bundle)).policy
        assertEquals(listOf(true, false), listOf(policy.require, policy.report))
    }

    @Test
    fun `a count that is damaged is not shown as nothing`() {
        Preferences(context).server = "https://pfl.example.org"
        model { standing() }
        val folder = runBlocking { PersonalModel.open(context, bundle, options) }.also { opened++ }.folder.resolve("rounds")
        folder.toFile().mkdirs()
        folder.resolve("spent.json").toFile().writeText("damaged")
        assertNotNull(model { standing() }.rounds?.unknown)
    }

    private companion object {
        val SAID = listOf("see you at the zorp tonight", "the zorp is late again", "ok see you there")
    }
}
