package io.pflmobile.e2e

import android.content.Intent
import androidx.test.platform.app.InstrumentationRegistry
import androidx.test.uiautomator.By
import androidx.test.uiautomator.BySelector
import androidx.test.uiautomator.Direction
import androidx.test.uiautomator.UiDevice
import androidx.test.uiautomator.UiObject2
import androidx.test.uiautomator.Until
import io.pflmobile.scenarios.User
import io.pflmobile.scenarios.keysOf
import io.pflmobile.scenarios.word
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonPrimitive
import java.util.regex.Pattern
import kotlin.test.assertEquals
import kotlin.test.assertNotNull
import kotlin.test.assertTrue

/** Carries out steps on the keys and the screen of the sample keyboard. Which bundle is open is up to the app that is installed. */
internal class KeyboardUser : User {
    private val instrumentation = InstrumentationRegistry.getInstrumentation()
    private val device = UiDevice.getInstance(instrumentation)

    override suspend fun carryOut(step: JsonObject) {
        when (val what = word(step, "do")) {
            "open", "restart" -> show()
            "remember" -> remember(step)
            "learn" -> learn(step)
            "suggest" -> suggest(step)
            "status" -> assertEquals(step.getValue("examples").jsonPrimitive.int, examples())
            "forget" -> press(By.desc("Forget the word ${word(step, "word")}"))
            "erase" -> erase()
            else -> error("the keyboard has no step $what")
        }
    }

    override suspend fun close() {
        device.pressHome()
    }

    private fun show() {
        start(Intent(instrumentation.targetContext, TypingActivity::class.java))
        enter(TypingActivity.MESSAGE)
    }

    private fun start(intent: Intent) {
        instrumentation.targetContext.startActivity(intent.addFlags(Intent.FLAG_ACTIVITY_NEW_TASK or Intent.FLAG_ACTIVITY_CLEAR_TASK))
    }

    private fun enter(field: String): UiObject2 {
        val found = found(By.desc(field))
        found.click()
        found(key("space"))
        return found
    }

    private fun type(text: String) = keysOf(text).forEach { found(key(it)).click() }

    private fun remember(step: JsonObject) {
        show()
        repeat(step["times"]?.jsonPrimitive?.int ?: 1) {
            for (message in step.getValue("texts").jsonArray.map(::word)) {
                type(message)
                found(key("send")).click()
                assertTrue(device.wait(Until.gone(By.text(message)), PATIENCE_MS), "'$message' was not sent")
            }
        }
    }

    private fun suggest(step: JsonObject) {
        start(Intent(instrumentation.targetContext, TypingActivity::class.java))
        enter(TypingActivity.PRIVATE)
        type(word(step, "text") + " ")
        step["has"]?.let { found(By.pkg(KEYBOARD).desc("suggestion ${word(it)}")) }
        step["lacks"]?.let {
            found(By.pkg(KEYBOARD).desc(Pattern.compile("suggestion .*")))
            // those of the letters before may still stand there
            device.waitForIdle()
            Thread.sleep(SETTLE_MS)
            assertTrue(!device.hasObject(By.pkg(KEYBOARD).desc("suggestion ${word(it)}")), "it suggests ${word(it)}")
        }
    }

    private fun learn(step: JsonObject) {
        press(By.text("Train now"))
        assertNotNull(device.wait(Until.findObject(By.text("Train now").enabled(true)), TRAINING_MS), "training does not end")
        val shown =
            when (val ends = word(step, "ends")) {
                "adopted" -> "The personal model is in use."
                "kept" -> "The shipped model stayed in use"
                "not_enough" -> "Nothing yet"
                else -> error("the keyboard cannot show $ends")
            }
        scrolledTo(By.textStartsWith(shown))
    }

    private fun erase() {
        press(By.text("Erase everything"))
        found(By.text("Yes")).click()
        assertEquals(0, examples())
    }

    private fun examples(): Int {
        settings()
        val heading = scrolledTo(By.text(Pattern.compile("Sentences it keeps \\(\\d+\\)"))).text
        return heading.filter { it.isDigit() }.toInt()
    }

    private fun settings() {
        start(Intent().setClassName(KEYBOARD, "$KEYBOARD.settings.SettingsActivity"))
        found(By.pkg(KEYBOARD).text("Personal keyboard"))
    }

    private fun press(what: BySelector) {
        settings()
        scrolledTo(what).click()
    }

    private fun scrolledTo(what: BySelector): UiObject2 {
        device.findObject(what)?.let { return it }
        val page = found(By.pkg(KEYBOARD).scrollable(true))
        return assertNotNull(page.scrollUntil(Direction.DOWN, Until.findObject(what)), "there is no $what on the screen")
    }

    private fun key(name: String): BySelector = By.pkg(KEYBOARD).desc(name)

    private fun found(what: BySelector): UiObject2 = assertNotNull(device.wait(Until.findObject(what), PATIENCE_MS), "there is no $what")

    private companion object {
        const val KEYBOARD = "io.pflmobile.keyboard"
        const val PATIENCE_MS = 20_000L
        const val SETTLE_MS = 2_000L
        const val TRAINING_MS = 300_000L
    }
}
