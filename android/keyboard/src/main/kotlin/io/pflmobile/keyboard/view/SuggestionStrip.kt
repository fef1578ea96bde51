package io.pflmobile.keyboard.view

import android.content.Context
import android.graphics.Typeface
import android.text.TextUtils
import android.util.TypedValue
import android.view.Gravity
import android.view.View
import android.widget.LinearLayout
import android.widget.TextView
import io.pflmobile.keyboard.R

/** Three words above the keys, the likeliest in the middle, or a note. */
internal class SuggestionStrip(
    context: Context,
) : LinearLayout(context) {
    /** Is told the word that was chosen, as it is shown. */
    var onWord: (String) -> Unit = {}

    private val density = resources.displayMetrics.density
    private val cells = List(COUNT) { cell(it == MIDDLE) }
    private val note =
        TextView(context).apply {
            setTextColor(context.getColor(R.color.quiet))
            setTextSize(TypedValue.COMPLEX_UNIT_SP, NOTE)
            gravity = Gravity.CENTER
        }

    init {
        orientation = HORIZONTAL
        setBackgroundColor(context.getColor(R.color.surface))
        cells.forEach { addView(it, LayoutParams(0, LayoutParams.MATCH_PARENT, 1f)) }
        addView(note, LayoutParams(0, LayoutParams.MATCH_PARENT, COUNT.toFloat()))
        show(emptyList())
    }

    /** Shows words, the likeliest first; without any, the text in their place. */
    fun show(
        words: List<String>,
        instead: String = "",
    ) {
        note.text = instead
        note.visibility = if (words.isEmpty()) VISIBLE else GONE
        cells.forEach { it.visibility = if (words.isEmpty()) GONE else VISIBLE }
        for ((place, cell) in cells.withIndex()) {
            val word = words.getOrNull(ORDER[place]).orEmpty()
            cell.text = word
            cell.contentDescription = if (word.isEmpty()) null else resources.getString(R.string.suggestion, word)
            cell.isEnabled = word.isNotEmpty()
            cell.importantForAccessibility = if (word.isEmpty()) IMPORTANT_FOR_ACCESSIBILITY_NO else IMPORTANT_FOR_ACCESSIBILITY_YES
        }
    }

    /** What is shown, the likeliest first. */
    val words: List<String> get() = ORDER.indices.map { rank -> cells[ORDER.indexOf(rank)].text.toString() }.filter { it.isNotEmpty() }

    override fun onMeasure(
        widthMeasureSpec: Int,
        heightMeasureSpec: Int,
    ) = super.onMeasure(widthMeasureSpec, MeasureSpec.makeMeasureSpec((HEIGHT * density).toInt(), MeasureSpec.EXACTLY))

    private fun cell(likeliest: Boolean): TextView =
        TextView(context).apply {
            gravity = Gravity.CENTER
            maxLines = 1
            ellipsize = TextUtils.TruncateAt.MIDDLE
            setTextSize(TypedValue.COMPLEX_UNIT_SP, WORD)
            setTextColor(context.getColor(if (likeliest) R.color.accent else R.color.on_key))
            if (likeliest) typeface = Typeface.DEFAULT_BOLD
            setOnClickListener { view: View ->
                (view as TextView)
                    .text
                    .toString()
                    .takeIf { it.isNotEmpty() }
                    ?.let(onWord)
            }
        }

    private companion object {
        const val COUNT = 3
        const val MIDDLE = 1
        const val HEIGHT = 44f
        const val WORD = 17f
        const val NOTE = 13f

        /** The rank of the word in each cell. */
        val ORDER = listOf(1, 0, 2)
    }
}
