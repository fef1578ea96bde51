package io.pflmobile.core.text

/** Code points in a growing array, with the kind of each. */
internal class Points(
    capacity: Int = 16,
) {
    private var values = IntArray(maxOf(capacity, 16))

    /** How many there are. */
    var size: Int = 0
        private set

    operator fun get(index: Int): Int = values[index]

    /** The kind of the code point at a place; a blank where there is none, which is no kind. */
    fun kind(index: Int): Char = if (index in 0 until size) UnicodeTable.kind(values[index]) else ' '

    operator fun plusAssign(point: Int) {
        if (size == values.size) values = values.copyOf(2 * size)
        values[size++] = point
    }

    /** The text from one place to before another. */
    fun text(
        from: Int = 0,
        to: Int = size,
    ): String = String(values, from, to - from)

    inline fun all(test: (Int) -> Boolean): Boolean = (0 until size).all { test(this[it]) }

    inline fun map(change: (Int) -> Int): Points {
        val changed = Points(size)
        for (index in 0 until size) changed += change(this[index])
        return changed
    }

    companion object {
        private const val REPLACEMENT = 0xFFFD

        /** The code points of a text; half of a surrogate pair without the other half is U+FFFD. */
        fun of(text: String): Points {
            val points = Points(text.length)
            var index = 0
            while (index < text.length) {
                val point = text.codePointAt(index)
                points += if (point in 0xD800..0xDFFF) REPLACEMENT else point
                index += Character.charCount(point)
            }
            return points
        }
    }
}
