package io.pflmobile.keyboard.keys

/** What a key does. */
internal sealed interface KeyAction {
    /** Types a character as it stands on the key; a letter follows shift. */
    data class Type(
        val text: String,
    ) : KeyAction

    /** Shows other keys. */
    data class Show(
        val page: Page,
    ) : KeyAction

    data object Shift : KeyAction

    data object Backspace : KeyAction

    data object Space : KeyAction

    data object Enter : KeyAction
}

/** A set of keys that is shown at a time. */
internal enum class Page { LETTERS, SYMBOLS, MORE_SYMBOLS }

/**
 * A key.
 *
 * @property weight its width, in widths of a letter
 */
internal data class Key(
    val action: KeyAction,
    val weight: Float = 1f,
)

/** The keys of a page, row by row; a row is [WIDTH] wide, or lies in the middle. */
internal object KeyLayout {
    /** The widest row, in widths of a letter. */
    const val WIDTH: Float = 10f

    private const val WIDE = 1.5f
    private const val SPACE = 5f

    /**
     * The rows of a page.
     *
     * @param beside the character left of the space bar, which the kind of the field decides
     */
    fun rows(
        page: Page,
        beside: String = ",",
    ): List<List<Key>> =
        when (page) {
            Page.LETTERS -> listOf(types("qwertyuiop"), types("asdfghjkl"), third(KeyAction.Shift, "zxcvbnm"))
            Page.SYMBOLS -> listOf(types("1234567890"), types("@#€_&-+()/"), third(KeyAction.Show(Page.MORE_SYMBOLS), "*\"':;!?"))
            Page.MORE_SYMBOLS -> listOf(types("~`|•√π÷×§∆"), types("£$¥^°={}\\%"), third(KeyAction.Show(Page.SYMBOLS), "©®™✓[]<"))
        } + listOf(bottom(page, beside))

    private fun types(characters: String): List<Key> = characters.map { Key(KeyAction.Type(it.toString())) }

    private fun third(
        first: KeyAction,
        characters: String,
    ): List<Key> = listOf(Key(first, WIDE)) + types(characters) + Key(KeyAction.Backspace, WIDE)

    private fun bottom(
        page: Page,
        beside: String,
    ): List<Key> =
        listOf(
            Key(KeyAction.Show(if (page == Page.LETTERS) Page.SYMBOLS else Page.LETTERS), WIDE),
            Key(KeyAction.Type(beside)),
            Key(KeyAction.Space, SPACE),
            Key(KeyAction.Type(".")),
            Key(KeyAction.Enter, WIDE),
        )
}
