package io.pflmobile.core.bundle

/** Versions of runtimes: numbers with points between; what builds put behind them (`1.5.1+cpu`) does not count. */
internal object Versions {
    private val NUMBERS = Regex("[0-9]{1,6}(\\.[0-9]{1,6}){0,3}(?![0-9])")

    /** The numbers of a version as bundles write them; null where it does not begin with any. */
    fun plain(version: String): String? = NUMBERS.matchAt(version, 0)?.value

    /** Whether a bundle may write it. */
    fun isPlain(version: String): Boolean = plain(version) == version

    /**
     * Whether a runtime is older than a version; numbers that are missing are 0.
     *
     * A runtime whose version does not begin with numbers was built by somebody who knows what it is: it is not older.
     */
    fun isOlder(
        version: String,
        than: String,
    ): Boolean {
        val one = numbers(version) ?: return false
        val other = numbers(than) ?: return false
        val first = (0..3).firstOrNull { one[it] != other[it] } ?: return false
        return one[first] < other[first]
    }

    private fun numbers(version: String): List<Int>? = plain(version)?.split('.')?.map(String::toInt)?.let { it + List(4 - it.size) { 0 } }
}
