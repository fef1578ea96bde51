package io.pflmobile.keyboard.settings

import android.content.DialogInterface
import android.view.View
import android.view.ViewGroup
import android.view.WindowManager
import android.widget.Button
import android.widget.ScrollView
import android.widget.Switch
import android.widget.TextView
import io.pflmobile.core.errors.BundleException
import io.pflmobile.keyboard.FakeAssistant
import io.pflmobile.keyboard.model.Assistants
import io.pflmobile.keyboard.model.Preferences
import io.pflmobile.keyboard.model.Standing
import io.pflmobile.keyboard.picture
import io.pflmobile.keyboard.settle
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import org.robolectric.shadows.ShadowAlertDialog
import kotlin.test.assertEquals
import kotlin.test.assertNotNull
import kotlin.test.assertTrue

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [34], qualifiers = "w411dp-h891dp-xhdpi")
@GraphicsMode(GraphicsMode.Mode.NATIVE)
class SettingsActivityTest {
    private val standing =
        Standing(
            Standing.Result(before = 0.182, after = 0.274, adopted = true),
            words = listOf("gremlins", "über", "नमस्ते"),
            examples = listOf(Standing.Kept(7, "see you at the gym tomorrow"), Standing.Kept(8, "that is great 👍")),
            exampleCount = 61,
            waits = listOf("the phone does not charge", "it was used a moment ago"),
        )
    private val rounds =
        Standing.Rounds(
            "https://pfl.example.org",
            on = true,
            waits = listOf("there is no network that costs nothing"),
            count = 40,
            bytes = 1_310_720,
            spent = 1.25,
            budget = 10.0,
            delta = 1e-6,
        )
    private val model = FakeAssistant(standing = standing).use()

    private fun with(test: SettingsActivity.() -> Unit) {
        Robolectric.buildActivity(SettingsActivity::class.java).setup().use { controller ->
            settle()
            controller.get().test()
        }
    }

    private val SettingsActivity.views: List<View>
        get() = all(findViewById(android.R.id.content))

    private fun all(view: View): List<View> =
        listOf(view) + if (view is ViewGroup) (0 until view.childCount).flatMap { all(view.getChildAt(it)) } else emptyList()

    private fun SettingsActivity.press(name: String) {
        val found = views.filterIsInstance<Button>().find { it.text.toString() == name || it.contentDescription?.toString() == name }
        assertTrue(assertNotNull(found, "there is no $name").performClick())
        settle()
    }

    private val SettingsActivity.texts: List<String> get() = views.filterIsInstance<TextView>().map { it.text.toString() }

    @Test
    fun `says what was learned, kept, and why it waits`() =
        with {
            val shown = texts.joinToString("\n")
            for (part in listOf(
                "18.2 %",
                "27.4 %",
                "gremlins",
                "Sentences it keeps (61)",
                "and 59 more",
                "does not charge; it was used",
                "Nothing leaves this phone.",
            )) {
                assertTrue(part in shown, "$part is not in $shown")
            }
        }

    @Test
    fun `forgets a word and a sentence`() =
        with {
            press("Forget the word über")
            press("Forget this sentence: that is great 👍")
            assertEquals(listOf("forget über", "forget 8"), model.told)
            assertTrue("über" !in texts)
        }

    @Test
    fun `pauses, trains, and goes incognito`() =
        with {
            press("Train now")
            views.filterIsInstance<Switch>().forEach { it.performClick() }
            settle()
            assertEquals(listOf("train", "pause true"), model.told)
            assertTrue(Preferences(this).incognito)
            assertEquals(false, views.filterIsInstance<Button>().single { it.text == "Train now" }.isEnabled)
        }

    @Test
    fun `asks before it erases or reverts`() =
        with {
            press("Erase everything")
            ShadowAlertDialog.getLatestAlertDialog().getButton(DialogInterface.BUTTON_NEGATIVE).performClick()
            settle()
            assertEquals(emptyList(), model.told)
            for (name in listOf("Go back to the shipped model", "Erase everything")) {
                press(name)
                ShadowAlertDialog.getLatestAlertDialog().getButton(DialogInterface.BUTTON_POSITIVE).performClick()
                settle()
            }
            assertEquals(listOf("revert", "erase"), model.told)
            assertTrue("Nothing yet: it has not trained on this phone." in texts)
        }

    @Test
    fun `a model that cannot be opened is said so`() {
        Assistants.reset()
        Assistants.open = { throw BundleException("the bundle is damaged", "install the app again") }
        with { assertTrue(texts.any { "the bundle is damaged" in it }) }
    }

    @Test
    fun `what rounds spent is shown`() {
        model.standing = standing.copy(rounds = rounds)
        with {
            val shown = texts.joinToString("\n")
            for (part in listOf(
                "40 changes were sent, 1.3",
                "ε 1.25",
                "more than ε 10.00",
                "(δ 1e-06)",
                "The next round waits: there is no network",
            )) {
                assertTrue(part in shown, "$part is not in $shown")
            }
            assertTrue("Nothing leaves this phone." !in texts)
        }
    }

    @Test
    fun `something that was sent without protection is said`() {
        model.standing = standing.copy(rounds = rounds.copy(spent = Double.POSITIVE_INFINITY))
        with { assertTrue("Something was sent that nothing protected." in texts) }
    }

    @Test
    fun `what is not known and what does not work is said`() {
        model.standing = standing.copy(rounds = rounds.copy(unknown = "spent.json is damaged", trouble = "that is no address"))
        with {
            assertTrue("It is not known what was sent: spent.json is damaged." in texts)
            assertTrue("Rounds with other phones do not work: that is no address." in texts)
            assertTrue(texts.none { "ε" in it })
        }
    }

    @Test
    fun `a server that still knows the phone is said`() {
        model.standing = standing.copy(rounds = rounds.copy(on = false, leaving = true))
        with {
            assertTrue(texts.any { "The server was out of reach and still knows this phone" in it })
            assertTrue("Nothing leaves this phone." !in texts)
        }
    }

    @Test
    fun `rounds are off until the user turns them on`() {
        model.standing = standing.copy(rounds = Standing.Rounds("https://pfl.example.org", budget = 10.0))
        with {
            assertTrue("Nothing leaves this phone." in texts)
            val found = views.filterIsInstance<Switch>().single { "other phones" in it.text }
            assertEquals(false, found.isChecked)
            found.performClick()
            settle()
            assertEquals(listOf("rounds true"), model.told)
            assertTrue("The next round can begin now." in texts)
            views.filterIsInstance<Switch>().single { "other phones" in it.text }.performClick()
            settle()
            assertEquals(listOf("rounds true", "rounds false"), model.told)
        }
    }

    @Test
    fun `a build without a server offers no rounds`() =
        with { assertTrue(views.filterIsInstance<Switch>().none { "other phones" in it.text }) }

    @Test
    fun `what was typed is on no screenshot`() =
        with { assertTrue(window.attributes.flags and WindowManager.LayoutParams.FLAG_SECURE != 0) }

    private fun pictures(name: String = "settings") = with { picture((views.first { it is ScrollView } as ViewGroup).getChildAt(0), name) }

    private fun roundsPictures() {
        model.standing = standing.copy(rounds = rounds)
        pictures("settings-rounds")
    }

    @Test
    fun `picture of rounds by day`() = roundsPictures()

    @Test
    @Config(qualifiers = "+night")
    fun `picture of rounds by night`() = roundsPictures()

    @Test
    fun `picture by day`() = pictures()

    @Test
    @Config(qualifiers = "+night")
    fun `picture by night`() = pictures()
}
