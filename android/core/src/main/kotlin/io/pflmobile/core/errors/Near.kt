package io.pflmobile.core.errors

/** Words for a mend: the known names nearest to [name], or all when none is near. */
internal fun near(
    name: String,
    known: Collection<String>,
): String {
    // Comparing takes the product of the lengths: what is longer than a name is not looked at, nor are more than a person gives.
    val names = known.filterTo(sortedSetOf()) { it.length <= LONGEST }
    val given = name.take(LONGEST)
    val close =
        names
            .take(MOST)
            .map { it to distance(given, it) }
            .filter { (it, apart) -> apart <= maxOf(it.length, given.length) / 2 }
            .sortedBy { it.second }
            .take(3)
    if (close.isNotEmpty()) return "did you mean ${close.joinToString(" or ") { "'${it.first}'" }}?"
    return if (names.isEmpty()) "none are known" else "known: ${names.take(12).joinToString()}" + if (names.size > 12) ", ..." else ""
}

/** Letters to insert, remove or replace (Levenshtein 1966). */
private fun distance(
    one: String,
    other: String,
): Int {
    var row = IntArray(other.length + 1) { it }
    one.forEachIndexed { i, letter ->
        val next = IntArray(other.length + 1)
        next[0] = i + 1
        other.forEachIndexed { j, against ->
            next[j + 1] = minOf(row[j] + if (letter == against) 0 else 1, row[j + 1] + 1, next[j] + 1)
        }
        row = next
    }
    return row.last()
}

private const val LONGEST = 200
private const val MOST = 5000
