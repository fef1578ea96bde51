package io.pflmobile.keyboard.keys

/** How letters are typed. */
internal enum class Shift {
    OFF,

    /** The next letter is a capital. */
    ONCE,

    /** All are, until shift is pressed. */
    LOCKED,
}

/** Follows the shift key; a second press within [DOUBLE_PRESS] locks it. */
internal class ShiftKey {
    var state: Shift = Shift.OFF
        private set

    /** Whether the field, and not the user, asked for a capital. */
    private var automatic = false
    private var pressed = NEVER

    /** @param now in milliseconds, of a clock that does not go back */
    fun press(now: Long) {
        state =
            when {
                state == Shift.LOCKED -> Shift.OFF
                now - pressed <= DOUBLE_PRESS -> Shift.LOCKED
                state == Shift.ONCE -> Shift.OFF
                else -> Shift.ONCE
            }
        pressed = if (state == Shift.OFF) NEVER else now
        automatic = false
    }

    /** A letter was typed. */
    fun typed() {
        if (state == Shift.ONCE) state = Shift.OFF
        pressed = NEVER
    }

    /** The cursor stands where the field wants a capital, or does not. What the user chose stays. */
    fun fieldWants(capital: Boolean) {
        if (capital && state == Shift.OFF && pressed == NEVER) {
            state = Shift.ONCE
            automatic = true
        } else if (!capital && state == Shift.ONCE && automatic) {
            state = Shift.OFF
        }
    }

    fun reset() {
        state = Shift.OFF
        pressed = NEVER
        automatic = false
    }

    private companion object {
        const val DOUBLE_PRESS = 400L
        const val NEVER = Long.MIN_VALUE / 2
    }
}
