package io.pflmobile.keyboard

import android.text.InputType
import android.view.MotionEvent
import android.view.View
import android.view.ViewGroup
import android.view.accessibility.AccessibilityNodeProvider
import android.view.inputmethod.BaseInputConnection
import android.view.inputmethod.EditorInfo
import android.view.inputmethod.InputConnection
import io.pflmobile.core.errors.BundleException
import io.pflmobile.keyboard.keys.KeyAction
import io.pflmobile.keyboard.model.Assistants
import io.pflmobile.keyboard.model.Preferences
import io.pflmobile.keyboard.view.KeyboardView
import io.pflmobile.keyboard.view.SuggestionStrip
import io.pflmobile.scenarios.keysOf
import kotlinx.coroutines.CompletableDeferred
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import org.robolectric.util.ReflectionHelpers
import kotlin.test.assertEquals
import kotlin.test.assertNotNull
import kotlin.test.assertTrue

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34], qualifiers = "w411dp-h891dp-xhdpi")
@GraphicsMode(GraphicsMode.Mode.NATIVE)
class KeyboardServiceTest {
    private val model = FakeAssistant(listOf("gym", ",", "game", "garden", "the", "👍"))
    private val service by lazy { Robolectric.buildService(KeyboardService::class.java).create().get() }
    private val root by lazy { service.onCreateInputView() as ViewGroup }
    private val strip get() = root.getChildAt(0) as SuggestionStrip
    private val keys get() = root.getChildAt(1) as KeyboardView
    private lateinit var connection: BaseInputConnection

    @Before
    fun open() {
        model.use()
        Preferences(RuntimeEnvironment.getApplication()).incognito = false
    }

    private val text: String get() = connection.editable.toString()

    /** Enters a field, as the system does. */
    private fun enter(
        type: Int = InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_FLAG_CAP_SENTENCES,
        options: Int = 0,
    ) {
        root
        connection = BaseInputConnection(View(service), true)
        val info =
            EditorInfo().apply {
                inputType = type
                imeOptions = options
            }
        ReflectionHelpers.setField(service, "mStartedInputConnection", connection as InputConnection)
        ReflectionHelpers.setField(service, "mInputEditorInfo", info)
        service.onStartInput(info, false)
        service.onStartInputView(info, false)
        lay()
        settle()
    }

    private fun lay() {
        val width = View.MeasureSpec.makeMeasureSpec(WIDTH, View.MeasureSpec.EXACTLY)
        root.measure(width, View.MeasureSpec.makeMeasureSpec(0, View.MeasureSpec.UNSPECIFIED))
        root.layout(0, 0, root.measuredWidth, root.measuredHeight)
    }

    /** Presses keys as a screen reader does: by what they are called. */
    private fun press(vararg names: String) {
        val provider = keys.accessibilityNodeProvider
        for (name in names) {
            val id = assertNotNull(spoken(provider).find { it.second == name }, "there is no key $name").first
            assertTrue(provider.performAction(id, android.view.accessibility.AccessibilityNodeInfo.ACTION_CLICK, null))
            val cursor = connection.editable?.length ?: 0
            service.onUpdateSelection(0, 0, cursor, cursor, -1, -1)
            settle()
        }
    }

    private fun spoken(provider: AccessibilityNodeProvider): List<Pair<Int, String>> =
        generateSequence(0) { it + 1 }
            .map { it to provider.createAccessibilityNodeInfo(it)?.contentDescription?.toString() }
            .takeWhile { it.second != null }
            .map { it.first to it.second.orEmpty() }
            .toList()

    @Test
    fun `a sentence is typed, completed and learned`() {
        enter()
        press("capital S", "e", "e", "space", "g", "a")
        assertEquals("See ga", text)
        assertEquals(listOf("game", "garden"), strip.words)
        assertEquals("See ", model.asked.last())
        (strip.getChildAt(1) as View).performClick()
        settle()
        assertEquals("See game ", text)
        assertEquals(listOf("gym", "game", "garden"), strip.words)
        press("period", "capital A")
        assertEquals("See game. A", text)
        assertEquals(listOf("remember See game."), model.told)
    }

    /** As the tests on Android do it. */
    @Test
    fun `keys are found by their names, and what is sent is learned`() {
        enter(InputType.TYPE_CLASS_TEXT, EditorInfo.IME_ACTION_SEND)
        press(*keysOf("see you at the, ok").toTypedArray(), "send")
        assertEquals("see you at the, ok", text)
        assertEquals(listOf("remember see you at the, ok"), model.told)
    }

    @Test
    fun `nothing is learned where it must not be`() {
        for ((type, options) in listOf(
            (InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_VARIATION_PASSWORD) to 0,
            (InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_VARIATION_VISIBLE_PASSWORD) to 0,
            (InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_VARIATION_WEB_PASSWORD) to 0,
            InputType.TYPE_CLASS_TEXT to EditorInfo.IME_FLAG_NO_PERSONALIZED_LEARNING,
        )) {
            enter(type, options)
            press("m", "y", "space", "k", "e", "y", "period", "space")
            service.onFinishInput()
            settle()
        }
        assertEquals(emptyList(), model.told)
    }

    @Test
    fun `a field that turns secret while it is typed in teaches nothing of what was typed before either`() {
        enter()
        press("capital M", "y", "space", "k", "e", "y")
        val secret = EditorInfo().apply { inputType = InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_VARIATION_PASSWORD }
        service.onStartInput(secret, true)
        service.onStartInputView(secret, true)
        press("a", "b")
        service.onFinishInput()
        settle()
        assertEquals(emptyList(), model.told)
    }

    @Test
    fun `an app that restarts input at every word changes nothing`() {
        enter()
        press("capital M", "y", "space")
        val same = EditorInfo().apply { inputType = InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_FLAG_CAP_SENTENCES }
        service.onStartInput(same, true)
        press("k", "e", "y", "period", "space")
        service.onFinishInput()
        settle()
        assertEquals(listOf("remember My key."), model.told)
    }

    @Test
    fun `incognito is asked of the user's choice`() {
        Preferences(service).incognito = true
        enter()
        press("capital M", "y", "space", "k", "e", "y")
        service.onFinishInput()
        settle()
        assertEquals(emptyList(), model.told)
    }

    @Test
    fun `the field that is left is learned`() {
        enter(InputType.TYPE_CLASS_TEXT)
        press("o", "n", "space", "m", "y", "space", "w", "a", "y")
        service.onFinishInput()
        settle()
        assertEquals(listOf("remember on my way"), model.told)
    }

    @Test
    fun `a finger presses, slides and overlaps with the next`() {
        enter(InputType.TYPE_CLASS_TEXT)
        val pressed = ArrayList<KeyAction>()
        keys.onKey = { pressed += it }
        val letter = keys.width / 10f
        val row = keys.height / 4f

        fun touch(
            action: Int,
            x: Float,
            y: Float,
        ) = MotionEvent.obtain(0, 0, action, x, y, 0).let {
            keys.dispatchTouchEvent(it)
            it.recycle()
        }
        touch(MotionEvent.ACTION_DOWN, letter * 0.5f, row * 0.5f)
        touch(MotionEvent.ACTION_UP, letter * 0.5f, row * 0.5f)
        touch(MotionEvent.ACTION_DOWN, letter * 0.5f, row * 0.5f)
        touch(MotionEvent.ACTION_MOVE, letter * 1.5f, row * 0.5f)
        touch(MotionEvent.ACTION_UP, letter * 1.5f, row * 0.5f)
        touch(MotionEvent.ACTION_DOWN, letter * 9.5f, row * 2.5f)
        touch(MotionEvent.ACTION_UP, letter * 9.5f, row * 2.5f)
        assertEquals(listOf(KeyAction.Type("q"), KeyAction.Type("w"), KeyAction.Backspace), pressed.toList())
    }

    @Test
    fun `every key has a name for a screen reader`() {
        enter(options = EditorInfo.IME_ACTION_SEND)
        val names = spoken(keys.accessibilityNodeProvider).map { it.second }
        assertEquals(33, names.size)
        assertEquals(names.size, names.toSet().size)
        assertTrue(
            names.containsAll(listOf("shift, on for one letter", "backspace", "symbols", "space", "send", "capital Q", "comma")),
            "$names",
        )
        press("symbols")
        assertTrue(spoken(keys.accessibilityNodeProvider).any { it.second == "letters" })
    }

    @Test
    fun `keys that come while the model is opened do not open it anew`() {
        val gate = CompletableDeferred<Unit>()
        var opened = 0
        Assistants.reset()
        Assistants.open = {
            opened++
            gate.await()
            model
        }
        enter(InputType.TYPE_CLASS_TEXT)
        press("g", "a", "r")
        assertEquals(1 to emptyList(), opened to strip.words)
        gate.complete(Unit)
        settle()
        assertEquals(1 to listOf("garden"), opened to strip.words)
    }

    @Test
    fun `a model that cannot be opened is tried again in the next field, not at the next key`() {
        var opened = 0
        Assistants.reset()
        Assistants.open = {
            opened++
            throw BundleException("the bundle is damaged", "install the app again")
        }
        enter(InputType.TYPE_CLASS_TEXT)
        press("g", "a", "r")
        assertEquals(1, opened)
        enter(InputType.TYPE_CLASS_TEXT)
        press("g")
        assertEquals(2, opened)
    }

    private fun pictures() {
        enter(options = EditorInfo.IME_ACTION_SEND)
        press("capital S", "e", "e", "space", "g")
        picture(root, "keyboard-letters")
        press("symbols")
        picture(root, "keyboard-symbols")
        enter(InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_VARIATION_PASSWORD, EditorInfo.IME_ACTION_DONE)
        press("shift", "shift, on for one letter")
        picture(root, "keyboard-password")
    }

    @Test
    fun `pictures by day`() = pictures()

    @Test
    @Config(qualifiers = "+night")
    fun `pictures by night`() = pictures()

    @Test
    @Config(qualifiers = "w891dp-h411dp-land")
    fun `on its side it leaves half of the height to the text`() {
        enter()
        assertTrue(root.height <= service.resources.displayMetrics.heightPixels * 0.62, "${root.height}")
    }

    private companion object {
        const val WIDTH = 822
    }
}
