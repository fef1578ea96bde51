package io.pflmobile.keyboard

import android.content.res.Configuration
import android.graphics.Bitmap
import android.graphics.Canvas
import android.os.Looper
import android.view.View
import io.pflmobile.keyboard.model.Assistant
import io.pflmobile.keyboard.model.Assistants
import io.pflmobile.keyboard.model.Standing
import org.robolectric.Shadows.shadowOf
import java.io.File

/** A model that says what a test wants, and keeps what it is told. */
internal class FakeAssistant(
    var words: List<String> = emptyList(),
    var standing: Standing = Standing(),
) : Assistant {
    val asked = ArrayList<String>()
    val told = ArrayList<String>()

    override suspend fun suggest(
        text: String,
        count: Int,
    ): List<String> = words.also { asked += text }

    override suspend fun complete(
        text: String,
        prefix: String,
        count: Int,
    ): List<String> = (words + standing.words).also { asked += text }

    override suspend fun remember(text: String) {
        told += "remember $text"
    }

    override suspend fun standing(): Standing = standing

    override suspend fun train(progress: (Int) -> Unit) {
        progress(1)
        told += "train"
    }

    override suspend fun forgetWord(word: String) {
        told += "forget $word"
        standing = standing.copy(words = standing.words - word)
    }

    override suspend fun forgetExample(id: Long) {
        told += "forget $id"
    }

    override suspend fun pause(paused: Boolean) {
        told += "pause $paused"
        standing = standing.copy(paused = paused)
    }

    override suspend fun takePart(on: Boolean) {
        told += "rounds $on"
        standing = standing.copy(rounds = standing.rounds?.copy(on = on))
    }

    override suspend fun revert() {
        told += "revert"
    }

    override suspend fun eraseEverything() {
        told += "erase"
        standing = Standing()
    }

    /** Is the model that is opened. */
    fun use(): FakeAssistant {
        Assistants.reset()
        Assistants.open = { this }
        return this
    }
}

/** Runs what waits on the main thread. */
internal fun settle() = shadowOf(Looper.getMainLooper()).idle()

/** Lays a view out and writes it as a picture of this name to `target/pictures`; the height follows from what it holds. */
internal fun picture(
    view: View,
    name: String,
) {
    val width = view.resources.displayMetrics.widthPixels
    view.measure(
        View.MeasureSpec.makeMeasureSpec(width, View.MeasureSpec.EXACTLY),
        View.MeasureSpec.makeMeasureSpec(0, View.MeasureSpec.UNSPECIFIED),
    )
    view.layout(0, 0, view.measuredWidth, view.measuredHeight)
    val bitmap = Bitmap.createBitmap(view.measuredWidth, view.measuredHeight, Bitmap.Config.ARGB_8888)
    val canvas = Canvas(bitmap)
    canvas.drawColor(view.context.getColor(R.color.page))
    view.draw(canvas)
    val night = view.resources.configuration.uiMode and Configuration.UI_MODE_NIGHT_MASK == Configuration.UI_MODE_NIGHT_YES
    val file = File(checkNotNull(System.getProperty("pictures")), "$name-${if (night) "dark" else "light"}.png")
    file.parentFile?.mkdirs()
    file.outputStream().use { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }
}
