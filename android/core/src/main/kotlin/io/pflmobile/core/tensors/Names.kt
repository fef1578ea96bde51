package io.pflmobile.core.tensors

/**
 * The order of names of tensors in every language: by Unicode code point, which is also that of their UTF-8 bytes. Kotlin's own order
 * is of UTF-16 units, in which characters beyond U+FFFF stand before U+E000.
 */
internal object NameOrder : Comparator<String> {
    override fun compare(
        a: String,
        b: String,
    ): Int {
        for (at in 0 until minOf(a.length, b.length)) {
            if (a[at] != b[at]) return rank(a[at]) - rank(b[at])
        }
        return a.length - b.length
    }

    /** Halves of pairs stand for code points above all others. */
    private fun rank(unit: Char): Int = if (unit.isSurrogate()) unit.code + (1 shl 16) else unit.code
}
