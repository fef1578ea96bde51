package io.pflmobile.keyboard.view

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Rect
import android.graphics.RectF
import android.os.Bundle
import android.view.HapticFeedbackConstants
import android.view.MotionEvent
import android.view.View
import android.view.accessibility.AccessibilityEvent
import android.view.accessibility.AccessibilityManager
import android.view.accessibility.AccessibilityNodeInfo
import android.view.accessibility.AccessibilityNodeProvider
import io.pflmobile.keyboard.R
import io.pflmobile.keyboard.keys.Key
import io.pflmobile.keyboard.keys.KeyAction
import io.pflmobile.keyboard.keys.KeyGeometry
import io.pflmobile.keyboard.keys.PlacedKey
import io.pflmobile.keyboard.keys.Shift

/**
 * The keys, drawn and touched. A screen reader sees each as a button.
 *
 * @property labels what stands on the keys
 */
internal class KeyboardView(
    context: Context,
    val labels: Labels,
) : View(context) {
    /** Is told the key that was pressed. */
    var onKey: (KeyAction) -> Unit = {}

    private var rows: List<List<Key>> = emptyList()
    private var shift = Shift.OFF
    private var geometry = KeyGeometry(listOf(emptyList()), 0f, 0f)

    /** The key under each finger. */
    private val down = HashMap<Int, PlacedKey>()
    private var hovered = NONE

    private val density = resources.displayMetrics.density
    private val face = Paint(Paint.ANTI_ALIAS_FLAG)
    private val letter = Paint(Paint.ANTI_ALIAS_FLAG).apply { textAlign = Paint.Align.CENTER }
    private val area = RectF()
    private val arrow = Arrow(density)
    private val repeat =
        object : Runnable {
            override fun run() {
                if (down.values.none { it.key.action == KeyAction.Backspace }) return
                press(KeyAction.Backspace)
                postDelayed(this, REPEAT)
            }
        }
    private val nodes = Nodes()

    init {
        contentDescription = resources.getString(R.string.keyboard)
        importantForAccessibility = IMPORTANT_FOR_ACCESSIBILITY_YES
    }

    /** Shows these keys. */
    fun show(
        rows: List<List<Key>>,
        shift: Shift,
    ) {
        val same = rows == this.rows
        if (same && shift == this.shift) return
        this.rows = rows
        this.shift = shift
        if (!same) place(width, height)
        contentChanged()
        invalidate()
    }

    override fun onMeasure(
        widthMeasureSpec: Int,
        heightMeasureSpec: Int,
    ) {
        val wanted = (ROW * rows.size.coerceAtLeast(1) * density).toInt()
        // on its side a phone keeps half of its height for the text
        val height = minOf(wanted, resources.displayMetrics.heightPixels / 2)
        setMeasuredDimension(MeasureSpec.getSize(widthMeasureSpec), height)
    }

    override fun onSizeChanged(
        w: Int,
        h: Int,
        oldw: Int,
        oldh: Int,
    ) = place(w, h)

    private fun place(
        width: Int,
        height: Int,
    ) {
        down.clear()
        if (rows.isNotEmpty()) geometry = KeyGeometry(rows, width.toFloat(), height.toFloat())
    }

    override fun onDraw(canvas: Canvas) {
        canvas.drawColor(context.getColor(R.color.surface))
        for (placed in geometry.keys) draw(canvas, placed)
    }

    private fun draw(
        canvas: Canvas,
        placed: PlacedKey,
    ) {
        val gap = GAP * density
        area.set(placed.left + gap, placed.top + gap, placed.right - gap, placed.bottom - gap)
        val action = placed.key.action
        val typed = action is KeyAction.Type || action == KeyAction.Space
        val lit = action == KeyAction.Enter || (action == KeyAction.Shift && shift != Shift.OFF)
        face.color =
            context.getColor(
                when {
                    placed in down.values -> R.color.key_pressed
                    lit -> R.color.accent
                    typed -> R.color.key
                    else -> R.color.key_special
                },
            )
        canvas.drawRoundRect(area, ROUND * density, ROUND * density, face)
        val color = context.getColor(if (lit) R.color.on_accent else R.color.on_key)
        if (action == KeyAction.Shift) return arrow.draw(canvas, area, color, shift)
        val text = labels.drawn(action, shift)
        letter.color = color
        letter.textSize = (if (text.length > 1) SMALL else LARGE) * density
        canvas.drawText(text, area.centerX(), area.centerY() - (letter.ascent() + letter.descent()) / 2, letter)
    }

    override fun onTouchEvent(event: MotionEvent): Boolean {
        val finger = event.getPointerId(event.actionIndex)
        when (event.actionMasked) {
            MotionEvent.ACTION_DOWN, MotionEvent.ACTION_POINTER_DOWN -> {
                release() // the finger before has typed when the next comes down: fast typists overlap
                touched(finger, geometry.at(event.getX(event.actionIndex), event.getY(event.actionIndex)))
            }

            MotionEvent.ACTION_MOVE -> {
                for (index in 0 until event.pointerCount) slid(event.getPointerId(index), event.getX(index), event.getY(index))
            }

            MotionEvent.ACTION_UP, MotionEvent.ACTION_POINTER_UP -> {
                down.remove(finger)?.let { if (it.key.action != KeyAction.Backspace) press(it.key.action) }
            }

            MotionEvent.ACTION_CANCEL -> {
                down.clear()
            }
        }
        invalidate()
        return true
    }

    private fun touched(
        finger: Int,
        key: PlacedKey?,
    ) {
        down[finger] = key ?: return
        performHapticFeedback(HapticFeedbackConstants.KEYBOARD_TAP)
        if (key.key.action != KeyAction.Backspace) return
        press(KeyAction.Backspace) // at once, and then again and again
        removeCallbacks(repeat)
        postDelayed(repeat, FIRST_REPEAT)
    }

    private fun slid(
        finger: Int,
        x: Float,
        y: Float,
    ) {
        val from = down[finger] ?: return
        if (from.key.action == KeyAction.Backspace || from.holds(x, y)) return
        val to = geometry.at(x, y)
        if (to == null || to.key.action == KeyAction.Backspace) down.remove(finger) else down[finger] = to
    }

    private fun release() {
        val waiting = down.values.filter { it.key.action != KeyAction.Backspace }
        down.clear()
        waiting.forEach { press(it.key.action) }
    }

    private fun press(action: KeyAction) {
        onKey(action)
    }

    override fun onDetachedFromWindow() {
        removeCallbacks(repeat)
        super.onDetachedFromWindow()
    }

    // a screen reader

    override fun getAccessibilityNodeProvider(): AccessibilityNodeProvider = nodes

    override fun dispatchHoverEvent(event: MotionEvent): Boolean {
        val touch = event.action != MotionEvent.ACTION_HOVER_EXIT
        val over = if (touch) geometry.at(event.x, event.y)?.let(geometry.keys::indexOf) ?: NONE else NONE
        if (over != hovered) {
            if (hovered != NONE) tell(hovered, AccessibilityEvent.TYPE_VIEW_HOVER_EXIT)
            hovered = over
            if (over != NONE) tell(over, AccessibilityEvent.TYPE_VIEW_HOVER_ENTER)
        }
        return true
    }

    private val reader: AccessibilityManager? get() = context.getSystemService(AccessibilityManager::class.java)?.takeIf { it.isEnabled }

    private fun tell(
        key: Int,
        type: Int,
    ) {
        if (reader == null) return
        parent?.requestSendAccessibilityEvent(this, event(type).apply { setSource(this@KeyboardView, key) })
    }

    private fun contentChanged() {
        if (reader == null) return
        val event = event(AccessibilityEvent.TYPE_WINDOW_CONTENT_CHANGED)
        event.contentChangeTypes = AccessibilityEvent.CONTENT_CHANGE_TYPE_SUBTREE
        parent?.requestSendAccessibilityEvent(this, event.apply { setSource(this@KeyboardView) })
    }

    @Suppress("DEPRECATION") // its successor came with API 30
    private fun event(type: Int): AccessibilityEvent = AccessibilityEvent.obtain(type).apply { packageName = context.packageName }

    private inner class Nodes : AccessibilityNodeProvider() {
        override fun createAccessibilityNodeInfo(virtualViewId: Int): AccessibilityNodeInfo? =
            if (virtualViewId == HOST_VIEW_ID) host() else geometry.keys.getOrNull(virtualViewId)?.let { node(virtualViewId, it) }

        override fun performAction(
            virtualViewId: Int,
            action: Int,
            arguments: Bundle?,
        ): Boolean {
            val key = geometry.keys.getOrNull(virtualViewId) ?: return false
            if (action != AccessibilityNodeInfo.ACTION_CLICK) return false
            press(key.key.action)
            return true
        }

        @Suppress("DEPRECATION")
        private fun host(): AccessibilityNodeInfo =
            AccessibilityNodeInfo.obtain(this@KeyboardView).also { info ->
                onInitializeAccessibilityNodeInfo(info)
                geometry.keys.indices.forEach { info.addChild(this@KeyboardView, it) }
            }

        @Suppress("DEPRECATION")
        private fun node(
            number: Int,
            placed: PlacedKey,
        ): AccessibilityNodeInfo =
            AccessibilityNodeInfo.obtain(this@KeyboardView, number).apply {
                setParent(this@KeyboardView)
                className = "android.widget.Button"
                packageName = context.packageName
                contentDescription = labels.spoken(placed.key.action, shift)
                val inside = Rect(placed.left.toInt(), placed.top.toInt(), placed.right.toInt(), placed.bottom.toInt())
                setBoundsInParent(inside)
                val origin = IntArray(2).also(::getLocationOnScreen)
                setBoundsInScreen(Rect(inside).apply { offset(origin[0], origin[1]) })
                isEnabled = true
                isVisibleToUser = true
                isClickable = true
                addAction(AccessibilityNodeInfo.AccessibilityAction.ACTION_CLICK)
            }
    }

    private companion object {
        const val NONE = -1
        const val ROW = 54f
        const val GAP = 2.5f
        const val ROUND = 7f
        const val LARGE = 22f
        const val SMALL = 15f
        const val FIRST_REPEAT = 400L
        const val REPEAT = 60L
    }
}
