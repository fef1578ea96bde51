package io.pflmobile.keyboard.settings

import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.os.Bundle
import android.provider.Settings
import android.text.format.Formatter
import android.view.WindowManager
import android.view.inputmethod.InputMethodManager
import android.widget.LinearLayout
import android.widget.ScrollView
import io.pflmobile.core.errors.PflException
import io.pflmobile.keyboard.R
import io.pflmobile.keyboard.model.Assistant
import io.pflmobile.keyboard.model.Assistants
import io.pflmobile.keyboard.model.Preferences
import io.pflmobile.keyboard.model.Standing
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

/** What the model learned and keeps, when it learns next, and the user's say in all of it. */
public class SettingsActivity : Activity() {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)
    private val parts by lazy { Parts(this) }
    private val page by lazy { parts.column() }
    private var training = false

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        // what the user typed is shown here: not in the list of recent apps, and not on a recording of the screen
        window.addFlags(WindowManager.LayoutParams.FLAG_SECURE)
        page.setPadding(parts.px(16), parts.px(8), parts.px(16), parts.px(16))
        setContentView(
            ScrollView(this).apply {
                fitsSystemWindows = true
                addView(page)
            },
        )
        page.addView(parts.quiet(getString(R.string.loading)))
    }

    override fun onResume() {
        super.onResume()
        Assistants.tryAgain()
        refresh()
    }

    override fun onDestroy() {
        scope.cancel()
        super.onDestroy()
    }

    /** Does something with the model and shows how it stands after. */
    private fun refresh(act: suspend Assistant.() -> Unit = {}) {
        scope.launch {
            try {
                val model = Assistants.of(this@SettingsActivity)
                model.act()
                show(model.standing())
            } catch (error: PflException) {
                page.removeAllViews()
                page.addView(parts.title(getString(R.string.app)))
                page.addView(parts.body(getString(R.string.trouble, error.message)))
            }
        }
    }

    private fun show(standing: Standing) {
        page.removeAllViews()
        page.addView(parts.title(getString(R.string.app)))
        setup()
        page.addView(parts.card(getString(R.string.section_result)) { result(standing.result) })
        page.addView(parts.card(getString(R.string.section_next)) { next(standing) })
        page.addView(parts.card(getString(R.string.section_words)) { words(standing.words) })
        page.addView(parts.card(getString(R.string.section_examples, standing.exampleCount)) { examples(standing) })
        page.addView(parts.card(getString(R.string.section_privacy)) { privacy(standing.rounds) })
        page.addView(parts.card(getString(R.string.section_controls)) { controls(standing) })
    }

    /** The keyboard is of no use until the system has it on and the user chose it. */
    private fun setup() {
        val methods = getSystemService(InputMethodManager::class.java) ?: return
        if (methods.enabledInputMethodList.none { it.packageName == packageName }) {
            page.addView(parts.button(getString(R.string.offer_enable)) { startActivity(Intent(Settings.ACTION_INPUT_METHOD_SETTINGS)) })
        } else if (Settings.Secure.getString(contentResolver, Settings.Secure.DEFAULT_INPUT_METHOD)?.startsWith("$packageName/") != true) {
            page.addView(parts.button(getString(R.string.offer_choose)) { methods.showInputMethodPicker() })
        }
    }

    private fun LinearLayout.result(result: Standing.Result?) {
        if (result == null) {
            addView(parts.quiet(getString(R.string.result_none)))
            return
        }
        addView(parts.bar(getString(R.string.result_before), result.before))
        addView(parts.bar(getString(R.string.result_after), result.after))
        addView(parts.quiet(getString(if (result.adopted) R.string.result_adopted else R.string.result_kept)))
    }

    private fun LinearLayout.next(standing: Standing) {
        val waits = standing.waits
        addView(parts.body(waiting(R.string.next_ready, R.string.next_waits, waits)))
        standing.rounds?.takeIf { it.on }?.let { addView(parts.body(waiting(R.string.round_ready, R.string.round_waits, it.waits))) }
        val button = parts.button(getString(R.string.train_now)) {}
        button.isEnabled = !standing.paused && !training
        button.setOnClickListener {
            button.isEnabled = false
            training = true
            refresh {
                try {
                    train { step -> button.post { button.text = getString(R.string.training, step) } }
                } finally {
                    training = false
                }
            }
        }
        addView(button)
    }

    private fun LinearLayout.words(words: List<String>) {
        if (words.isEmpty()) addView(parts.quiet(getString(R.string.words_none)))
        for (word in words) {
            addView(parts.row(word, getString(R.string.forget), getString(R.string.forget_word, word)) { refresh { forgetWord(word) } })
        }
    }

    private fun LinearLayout.examples(standing: Standing) {
        if (standing.examples.isEmpty()) addView(parts.quiet(getString(R.string.examples_none)))
        for (kept in standing.examples.take(SHOWN)) {
            val spoken = getString(R.string.forget_example, kept.text)
            addView(parts.row(kept.text, getString(R.string.forget), spoken) { refresh { forgetExample(kept.id) } })
        }
        val more = standing.exampleCount - minOf(standing.examples.size, SHOWN)
        if (more > 0) addView(parts.quiet(getString(R.string.examples_more, more)))
    }

    private fun waiting(
        ready: Int,
        waits: Int,
        why: List<String>,
    ): String = if (why.isEmpty()) getString(ready) else getString(waits, why.joinToString("; "))

    private fun LinearLayout.privacy(rounds: Standing.Rounds?) {
        if (rounds?.on != true && rounds?.leaving != true) addView(parts.body(getString(R.string.privacy_local)))
        if (rounds != null) {
            addView(parts.switch(getString(R.string.rounds_on), rounds.on) { refresh { takePart(it) } })
            addView(parts.quiet(getString(R.string.rounds_about, rounds.server)))
            if (rounds.leaving) addView(parts.body(getString(R.string.rounds_leaving)))
            rounds.trouble?.let { addView(parts.body(getString(R.string.rounds_trouble, it))) }
            if (rounds.unknown != null) {
                addView(parts.body(getString(R.string.rounds_unknown, rounds.unknown)))
            } else if (rounds.count > 0 || rounds.spent > 0) {
                spent(rounds)
            }
        }
    }

    private fun LinearLayout.spent(rounds: Standing.Rounds) {
        val sent = Formatter.formatShortFileSize(this@SettingsActivity, rounds.bytes)
        addView(parts.body(resources.getQuantityString(R.plurals.rounds_sent, rounds.count.toInt(), rounds.count, sent)))
        if (!rounds.spent.isFinite()) {
            addView(parts.body(getString(R.string.rounds_unprotected)))
            return
        }
        addView(parts.meter(getString(R.string.rounds_spent), "ε %.2f".format(rounds.spent), rounds.spent / rounds.budget))
        addView(parts.quiet(getString(R.string.rounds_budget, "%.2f".format(rounds.budget), "%.0e".format(rounds.delta))))
    }

    private fun LinearLayout.controls(standing: Standing) {
        val preferences = Preferences(this@SettingsActivity)
        addView(parts.switch(getString(R.string.incognito), preferences.incognito) { preferences.incognito = it })
        addView(parts.switch(getString(R.string.pause), standing.paused) { refresh { pause(it) } })
        addView(parts.button(getString(R.string.revert)) { ask(R.string.revert, R.string.revert_ask) { revert() } })
        addView(parts.button(getString(R.string.erase)) { ask(R.string.erase, R.string.erase_ask) { eraseEverything() } })
    }

    private fun ask(
        title: Int,
        question: Int,
        act: suspend Assistant.() -> Unit,
    ) {
        AlertDialog
            .Builder(this)
            .setTitle(title)
            .setMessage(question)
            .setPositiveButton(R.string.yes) { _, _ -> refresh(act) }
            .setNegativeButton(R.string.no, null)
            .show()
    }

    private companion object {
        const val SHOWN = 20
    }
}
