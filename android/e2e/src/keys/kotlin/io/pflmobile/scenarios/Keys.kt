package io.pflmobile.scenarios

/** What the sample keyboard calls the keys, in English, that write a text of small letters. */
internal fun keysOf(text: String): List<String> =
    text.map {
        when (it) {
            ' ' -> "space"
            ',' -> "comma"
            '.' -> "period"
            in 'a'..'z' -> "$it"
            else -> error("no key of the first page writes '$it'")
        }
    }
