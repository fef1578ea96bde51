package io.pflmobile.keyboard.view

import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Path
import android.graphics.RectF
import io.pflmobile.keyboard.keys.Shift

/** The arrow of the shift key: an outline, filled while shift is on, with a bar under it for caps lock. Fonts draw it too small. */
internal class Arrow(
    private val density: Float,
) {
    private val path = Path()
    private val paint =
        Paint(Paint.ANTI_ALIAS_FLAG).apply {
            strokeWidth = STROKE * density
            strokeJoin = Paint.Join.ROUND
        }

    fun draw(
        canvas: Canvas,
        area: RectF,
        color: Int,
        shift: Shift,
    ) {
        val x = area.centerX()
        val y = area.centerY()
        path.reset()
        POINTS.forEachIndexed { index, (right, down) ->
            if (index == 0) path.moveTo(x + right * density, y + down * density) else path.lineTo(x + right * density, y + down * density)
        }
        path.close()
        paint.color = color
        paint.style = if (shift == Shift.OFF) Paint.Style.STROKE else Paint.Style.FILL_AND_STROKE
        canvas.drawPath(path, paint)
        if (shift == Shift.LOCKED) canvas.drawLine(x - BAR * density, y + UNDER * density, x + BAR * density, y + UNDER * density, paint)
    }

    private companion object {
        const val STROKE = 1.8f
        const val BAR = 4f
        const val UNDER = 11f

        /** To the right of the middle and down from it, in dp. */
        val POINTS = listOf(0f to -9f, 9f to 0f, 4f to 0f, 4f to 7f, -4f to 7f, -4f to 0f, -9f to 0f)
    }
}
