package io.pflmobile.e2e

import kotlinx.coroutines.runBlocking
import org.junit.Assume.assumeNotNull
import org.junit.Test

/**
 * One part of a scenario by a user of the sample keyboard, an app of its own that must be installed and chosen: messages are typed on its
 * keys, suggestions read above them, and the rest is done on its screen.
 */
public class KeyboardTest {
    /** Every step gives what the scenario says. */
    @Test
    public fun passes() {
        val given = Given()
        assumeNotNull(given.name)
        val name = given.name ?: return
        runBlocking { given.scenario(name).carryOut(given.part) { KeyboardUser() } }
    }
}
