package io.pflmobile.core.text

import io.pflmobile.core.files.parseJson
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive

/**
 * The table of code points that version 2 of the piece rules is stated over: `unicode.json`, the same file in every language, so that
 * no platform's Unicode version matters. `pfl_mobile/text/pieces.py` explains it.
 */
internal object UnicodeTable {
    private const val PLANE = 0x10000
    private const val PLACE = "/io/pflmobile/core/text/unicode.json"

    private val kinds: Ranges
    private val kindOfRange: CharArray

    /** Kinds of the first plane, where nearly all text lies. */
    private val firstPlane = CharArray(PLANE) { 'S' }

    private val lowerFirst: IntArray
    private val lowerRuns: IntArray

    /** The rules that the table belongs to. */
    val rules: Int

    /** Code points of Unicode 8.0: every platform in use normalizes them alike. */
    val assigned: Ranges

    /** Code points whose NFKC begins with a space and a mark. */
    val accents: Ranges

    init {
        // from the root: an app's build may rename this class and its package
        val stream = checkNotNull(UnicodeTable::class.java.getResourceAsStream(PLACE)) { "unicode.json is not packed" }
        val table = stream.use { parseJson(it.readBytes()).jsonObject }
        rules = table.getValue("rules").jsonPrimitive.int
        val ranges =
            table
                .getValue("kinds")
                .jsonObject
                .flatMap { (kind, ends) ->
                    ends.jsonArray.map { it.jsonPrimitive.int }.chunked(2) { (first, last) -> Triple(first, last, kind.single()) }
                }.sortedBy { it.first }
        kinds = Ranges(ranges.flatMap { listOf(it.first, it.second) }.toIntArray())
        kindOfRange = CharArray(ranges.size) { ranges[it].third }
        for ((first, last, kind) in ranges) {
            if (first < PLANE) firstPlane.fill(kind, first, minOf(last + 1, PLANE))
        }
        lowerRuns = numbers(table, "lower")
        lowerFirst = IntArray(lowerRuns.size / RUN) { lowerRuns[RUN * it] }
        assigned = Ranges(numbers(table, "assigned"))
        accents = Ranges(numbers(table, "accents"))
    }

    private fun numbers(
        table: JsonObject,
        name: String,
    ): IntArray = table.getValue(name).jsonArray.let { list -> IntArray(list.size) { list[it].jsonPrimitive.int } }

    /** The kind of a code point. */
    fun kind(point: Int): Char {
        if (point < PLANE) return firstPlane[point]
        val range = kinds.indexOf(point)
        return if (range < 0) 'S' else kindOfRange[range]
    }

    /** What a code point is folded to: apostrophes of every kind to U+0027, else its simple lower-case mapping. */
    fun lower(point: Int): Int {
        if (kind(point) == 'a') return '\''.code
        val run = lowerFirst.binarySearch(point).let { if (it >= 0) it else -it - 2 }
        if (run < 0) return point
        val at = RUN * run
        val fits = point <= lowerRuns[at + 1] && (point - lowerRuns[at]) % lowerRuns[at + 2] == 0
        return if (fits) point + lowerRuns[at + 3] else point
    }

    private const val RUN = 4
}

/** A set of code points, from first, last, first, last, ... in order. */
internal class Ranges(
    private val ends: IntArray,
) {
    /** Which range a code point lies in; -1 for none. */
    fun indexOf(point: Int): Int {
        var low = 0
        var high = ends.size / 2 - 1
        while (low <= high) {
            val middle = (low + high) ushr 1
            when {
                point < ends[2 * middle] -> high = middle - 1
                point > ends[2 * middle + 1] -> low = middle + 1
                else -> return middle
            }
        }
        return -1
    }

    operator fun contains(point: Int): Boolean = indexOf(point) >= 0
}
