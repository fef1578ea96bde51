package io.pflmobile.keyboard.settings

import android.content.Context
import android.graphics.Typeface
import android.graphics.drawable.GradientDrawable
import android.os.Build
import android.util.TypedValue
import android.view.Gravity
import android.view.View
import android.view.ViewGroup
import android.widget.Button
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.Switch
import android.widget.TextView
import io.pflmobile.keyboard.R

/** The views that the screen of settings is made of. */
internal class Parts(
    private val context: Context,
) {
    private val density = context.resources.displayMetrics.density

    fun px(dp: Int): Int = (dp * density).toInt()

    fun column(): LinearLayout = LinearLayout(context).apply { orientation = LinearLayout.VERTICAL }

    fun title(text: String): TextView = text(text, TITLE, R.color.on_key).apply { setPadding(0, px(12), 0, px(12)) }

    /** A card with a heading. */
    fun card(
        heading: String,
        fill: LinearLayout.() -> Unit,
    ): LinearLayout =
        column().apply {
            background =
                GradientDrawable().apply {
                    setColor(context.getColor(R.color.card))
                    cornerRadius = px(12).toFloat()
                }
            setPadding(px(16), px(12), px(16), px(12))
            layoutParams = LinearLayout.LayoutParams(MATCH, WRAP).apply { bottomMargin = px(12) }
            val head = text(heading, BODY, R.color.accent)
            head.typeface = Typeface.DEFAULT_BOLD
            if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.P) head.isAccessibilityHeading = true
            head.setPadding(0, 0, 0, px(6))
            addView(head)
            fill()
        }

    fun body(text: String): TextView = text(text, BODY, R.color.on_key).apply { setPadding(0, px(4), 0, px(4)) }

    fun quiet(text: String): TextView = text(text, SMALL, R.color.quiet).apply { setPadding(0, px(4), 0, px(4)) }

    /** A text and a button beside it. */
    fun row(
        text: String,
        action: String,
        spoken: String,
        act: () -> Unit,
    ): View =
        LinearLayout(context).apply {
            gravity = Gravity.CENTER_VERTICAL
            addView(body(text), LinearLayout.LayoutParams(0, WRAP, 1f))
            addView(button(action, act).apply { contentDescription = spoken })
        }

    /** A share between 0 and 1 as a bar with its number. */
    fun bar(
        text: String,
        share: Double,
    ): View = meter(text, "%.1f %%".format(share * 100), share)

    /** A number and, as a bar, how much that is of the whole. */
    fun meter(
        text: String,
        number: String,
        share: Double,
    ): View =
        column().apply {
            addView(
                LinearLayout(context).apply {
                    addView(body(text), LinearLayout.LayoutParams(0, WRAP, 1f))
                    addView(body(number))
                },
            )
            addView(
                ProgressBar(context, null, android.R.attr.progressBarStyleHorizontal).apply {
                    max = BAR
                    progress = (share.coerceIn(0.0, 1.0) * BAR).toInt()
                    contentDescription = "$text: $number"
                },
            )
        }

    fun button(
        text: String,
        act: () -> Unit,
    ): Button =
        Button(context, null, android.R.attr.borderlessButtonStyle).apply {
            this.text = text
            isAllCaps = false
            minWidth = 0
            minimumWidth = 0
            setPadding(0, 0, 0, 0)
            layoutParams = LinearLayout.LayoutParams(WRAP, WRAP)
            setTextColor(context.getColor(R.color.accent))
            setOnClickListener { act() }
        }

    fun switch(
        text: String,
        on: Boolean,
        change: (Boolean) -> Unit,
    ): Switch =
        Switch(context).apply {
            this.text = text
            isChecked = on
            setTextColor(context.getColor(R.color.on_key))
            setTextSize(TypedValue.COMPLEX_UNIT_SP, BODY)
            minHeight = px(48)
            layoutParams = LinearLayout.LayoutParams(MATCH, WRAP)
            setOnCheckedChangeListener { _, checked -> change(checked) }
        }

    private fun text(
        text: String,
        size: Float,
        color: Int,
    ): TextView =
        TextView(context).apply {
            this.text = text
            setTextSize(TypedValue.COMPLEX_UNIT_SP, size)
            setTextColor(context.getColor(color))
        }

    private companion object {
        const val MATCH = ViewGroup.LayoutParams.MATCH_PARENT
        const val WRAP = ViewGroup.LayoutParams.WRAP_CONTENT
        const val TITLE = 26f
        const val BODY = 16f
        const val SMALL = 14f
        const val BAR = 1000
    }
}
