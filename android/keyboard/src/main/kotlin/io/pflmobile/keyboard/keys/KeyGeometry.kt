package io.pflmobile.keyboard.keys

/** Where a key lies, in pixels. */
internal data class PlacedKey(
    val key: Key,
    val left: Float,
    val top: Float,
    val right: Float,
    val bottom: Float,
) {
    fun holds(
        x: Float,
        y: Float,
    ): Boolean = x >= left && x < right && y >= top && y < bottom
}

/** Places keys on a surface. */
internal class KeyGeometry(
    rows: List<List<Key>>,
    width: Float,
    height: Float,
) {
    private val rowHeight = height / rows.size

    val keys: List<PlacedKey> =
        rows.flatMapIndexed { number, row ->
            val unit = width / KeyLayout.WIDTH
            var left = (width - row.sumOf { it.weight.toDouble() }.toFloat() * unit) / 2
            row.map { key ->
                val right = left + key.weight * unit
                PlacedKey(key, left, number * rowHeight, right, (number + 1) * rowHeight).also { left = right }
            }
        }

    /** The key at a point, or the nearest of its row: a finger beside the row means its last key. Null outside the surface. */
    fun at(
        x: Float,
        y: Float,
    ): PlacedKey? = keys.filter { y >= it.top && y < it.bottom }.minByOrNull { maxOf(it.left - x, x - it.right, 0f) }
}
