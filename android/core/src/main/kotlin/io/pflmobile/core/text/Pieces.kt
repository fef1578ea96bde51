package io.pflmobile.core.text

import java.text.Normalizer
import java.text.Normalizer.Form

/**
 * Version 2 of the rules that cut a text into pieces. `pfl_mobile/text/pieces.py` states them; the numbers below are its numbers, and
 * the letters its kinds of code points.
 */
internal object Pieces {
    private const val SMALL_SIGMA = 0x3C3
    private const val FINAL_SIGMA = 0x3C2
    private const val KEYCAP = "\uFE0F\u20E3"

    /** The pieces of a text. */
    fun cut(text: String): List<String> {
        val points = Points.of(text)
        val pieces = ArrayList<String>()
        if (points.all { it < 0x80 }) {
            cutFolded(points.map(UnicodeTable::lower), 0, pieces)
            return pieces
        }
        val visible = Points(points.size)
        for (index in 0 until points.size) if (points.kind(index) != 'X') visible += points[index] // rule 1
        var done = 0
        var at = 0
        while (at < visible.size) { // rules 2 and 3
            val end = emoji(visible, at)
            if (end < 0) {
                at++
                continue
            }
            cutPart(visible, done, at, pieces)
            pieces += spelled(visible, at, end)
            done = end
            at = end
        }
        cutPart(visible, done, visible.size, pieces)
        return pieces
    }

    /** Whether a piece is a symbol (or a special token) and not a word. */
    fun isSymbol(piece: String): Boolean {
        val points = Points.of(piece)
        return points.kind(0) !in "LJHKpTPQNd" || !points.all { UnicodeTable.kind(it) !in "vEF" }
    }

    /** Whether a code point of the piece is a number: codes, dates, amounts, most passwords. */
    fun holdsDigit(piece: String): Boolean = !Points.of(piece).all { UnicodeTable.kind(it) !in "Nd" }

    /** Rules 5 and 6. */
    fun fold(text: Points): Points {
        if (text.all { it < 0x80 }) return text.map(UnicodeTable::lower)
        return normalized(normalized(text).map(UnicodeTable::lower))
    }

    /** Rule 5. */
    private fun normalized(text: Points): Points {
        if (text.all { it in UnicodeTable.assigned && it !in UnicodeTable.accents }) {
            return Points.of(Normalizer.normalize(text.text(), Form.NFKC))
        }
        val found = StringBuilder()
        text.runs({ it in UnicodeTable.assigned }) { run, known ->
            if (!known) {
                found.append(run)
            } else {
                Points.of(Normalizer.normalize(run, Form.NFC)).runs({ it in UnicodeTable.accents }) { part, accents ->
                    found.append(if (accents) part else Normalizer.normalize(part, Form.NFKC))
                }
            }
        }
        return Points.of(found.toString())
    }

    private inline fun Points.runs(
        test: (Int) -> Boolean,
        take: (String, Boolean) -> Unit,
    ) {
        var from = 0
        while (from < size) {
            val inside = test(this[from])
            var to = from + 1
            while (to < size && test(this[to]) == inside) to++
            take(text(from, to), inside)
            from = to
        }
    }

    /** Where the emoji that begins at a place ends; -1 where none begins. */
    private fun emoji(
        text: Points,
        at: Int,
    ): Int {
        val kind = text.kind(at)
        var end =
            when {
                kind == 'R' -> if (text.kind(at + 1) == 'R') at + 2 else -1
                kind in "dc" -> (if (text.kind(at + 1) == 'v') at + 2 else at + 1).let { if (text.kind(it) == 'k') it + 1 else -1 }
                kind == 'e' && text.kind(at + 1) !in "vF" -> further(text, at + 1)
                kind in "EFe" -> single(text, at)
                else -> -1
            }
        while (end >= 0) end = further(text, end).takeIf { it >= 0 } ?: return end
        return -1
    }

    private fun further(
        text: Points,
        at: Int,
    ): Int =
        when {
            text.kind(at) != 'z' -> -1
            text.kind(at + 1) in "EeF" -> single(text, at + 1)
            text.kind(at + 1) == 'R' && text.kind(at + 2) == 'R' -> at + 3
            else -> -1
        }

    /** Behind one emoji, its variation selector, skin tone and tags. */
    private fun single(
        text: Points,
        at: Int,
    ): Int {
        var end = at + 1
        if (text.kind(end) == 'v') end++
        if (text.kind(at) != 'F' && text.kind(end) == 'F') end++
        var tags = end
        while (text.kind(tags) == 't') tags++
        return if (tags > end && text.kind(tags) == 'g') tags + 1 else end
    }

    /** The one spelling of an emoji. */
    private fun spelled(
        text: Points,
        from: Int,
        to: Int,
    ): String {
        if (text.kind(from) in "dc" && text.kind(to - 1) == 'k') return text.text(from, from + 1) + KEYCAP
        val kept = Points(to - from)
        for (index in from until to) {
            val needed = index > from && text.kind(index - 1) == 'e' && (index + 1 == to || text.kind(index + 1) != 'F')
            if (text.kind(index) != 'v' || needed) kept += text[index]
        }
        return kept.text()
    }

    /** Rules 4 to 8 for what lies between two emoji. */
    private fun cutPart(
        text: Points,
        from: Int,
        to: Int,
        pieces: MutableList<String>,
    ) {
        if (from == to) return
        val folded = fold(joined(text, from, to))
        var start = 0
        if (from > 0) { // what lies before is an emoji
            while (folded.kind(start) in "Mmo") start++
            if (start > 0) pieces[pieces.lastIndex] += folded.text(0, start)
        }
        cutFolded(folded, start, pieces)
    }

    /** Rule 4. */
    private fun joined(
        text: Points,
        from: Int,
        to: Int,
    ): Points {
        val kept = Points(to - from)
        var joiner = -1
        for (index in from until to) {
            val kind = text.kind(index)
            when (kind) {
                'v', 'k', 't', 'g' -> {}

                'z', 'n' -> {
                    joiner = text[index]
                }

                else -> {
                    if (joiner >= 0 && kind in "Jm" && kept.kind(kept.size - 1) in "Jm") kept += joiner
                    joiner = -1
                    kept += text[index]
                }
            }
        }
        return kept
    }

    /** Rules 7 and 8. */
    private fun cutFolded(
        text: Points,
        from: Int,
        pieces: MutableList<String>,
    ) {
        var at = from
        while (at < text.size) {
            val kind = text.kind(at)
            val end = pieceEnd(text, at, kind)
            if (end < 0) {
                at++
                continue
            }
            pieces += if (kind in "LJNd") word(text, at, end) else text.text(at, end)
            at = end
        }
    }

    private fun pieceEnd(
        text: Points,
        at: Int,
        kind: Char,
    ): Int =
        when (kind) {
            'L', 'J', 'N', 'd' -> wordEnd(text, at + 1)
            'K', 'p' -> skip(text, at + 1, "KpMmo")
            'H' -> skip(text, at + 1, "Mmop")
            'T' -> clusterEnd(text, at + 1)
            'P' -> if (text.kind(at + 1) == 'T') clusterEnd(text, at + 2) else skip(text, at + 1, "Mmo")
            'Q', 'S', 'a', 'b', 'c', 'e', 'E', 'F', 'R' -> skip(text, at + 1, "Mmo")
            else -> -1
        }

    private fun wordEnd(
        text: Points,
        from: Int,
    ): Int {
        var end = from
        while (true) {
            end = skip(text, end, "LJNdMmozn")
            if (text.kind(end) !in "ab" || text.kind(end + 1) !in "LJNd") return end
            end += 2
        }
    }

    private fun clusterEnd(
        text: Points,
        from: Int,
    ): Int {
        var end = from
        while (true) {
            end +=
                when {
                    text.kind(end) == 'o' && text.kind(end + 1) == 'T' -> 2
                    text.kind(end) in "MmoQ" -> 1
                    else -> return end
                }
        }
    }

    private fun skip(
        text: Points,
        from: Int,
        kinds: String,
    ): Int {
        var end = from
        while (text.kind(end) in kinds) end++
        return end
    }

    /** Rule 8. */
    private fun word(
        text: Points,
        from: Int,
        to: Int,
    ): String {
        val word = Points(to - from)
        for (index in from until to) word += if (text.kind(index) == 'b') '\''.code else text[index]
        val final = to - from > 1 && word[word.size - 1] == SMALL_SIGMA && word.kind(word.size - 2) in "LJMm"
        return if (final) word.text(0, word.size - 1) + Char(FINAL_SIGMA) else word.text()
    }
}
