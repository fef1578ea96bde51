package io.pflmobile.core.bundle

import io.pflmobile.core.errors.UnsafePathException

/** Which names a file in a bundle may have, and the names of the files every bundle has. */
internal object Paths {
    const val MANIFEST = "manifest.json"
    const val SIGNATURE = "manifest.json.sig"

    // Relative, "/" between parts, each part of plain ASCII letters, digits and _ . + - beginning with none of . + -: the same file on
    // every system, and nothing that leads out of the folder or hides in it.
    private val PATH = Regex("[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}){0,7}")

    // Windows opens a device, not a file, under these names, whatever follows the first dot.
    private val DEVICES = Regex("(con|prn|aux|nul|com[0-9]|lpt[0-9])(\\..*)?", RegexOption.IGNORE_CASE)

    /**
     * Gives [path] back when it is a safe relative path inside a bundle.
     *
     * @throws UnsafePathException it is absolute, climbs with `..`, has a backslash, or a character that some system treats specially
     */
    fun check(path: String): String {
        if (!PATH.matches(path) || path.split('/').any { it.endsWith('.') || DEVICES.matches(it) }) {
            throw UnsafePathException(
                "unsafe path '${path.take(200)}' in a bundle",
                "use a relative path of ASCII letters, digits and _ . + - with / between the parts; " +
                    "if you did not make this bundle, do not use it",
            )
        }
        return path
    }

    /**
     * Refuses paths that are one file on a system that ignores case, or a file and a folder at once.
     *
     * @throws UnsafePathException naming both
     */
    fun checkDistinct(paths: Iterable<String>) {
        val seen = HashMap<String, String>()
        val folders = HashMap<String, String>()
        for (path in paths) {
            val key = path.lowercase()
            seen.put(key, path)?.let {
                throw UnsafePathException("'$path' and '$it' are the same file on a phone", "rename one of the two")
            }
            var end = key.indexOf('/')
            while (end >= 0) {
                folders.putIfAbsent(key.substring(0, end), path)
                end = key.indexOf('/', end + 1)
            }
        }
        for ((key, path) in seen) {
            folders[key]?.let {
                throw UnsafePathException("'$path' is a file, and '$it' needs a folder of that name", "rename one of the two")
            }
        }
    }
}
