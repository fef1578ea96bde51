package io.pflmobile.sdk

import org.jetbrains.kotlin.abi.tools.AbiFilters
import org.jetbrains.kotlin.abi.tools.AbiTools
import org.junit.jupiter.api.Test
import java.io.File
import kotlin.test.assertEquals

/** What an app can see of this library is written down in `api/sdk.api`: a change of it is seen in a review. */
class ApiTest {
    @Test
    fun `what the app sees is what is written down`() {
        val classes = File("target/classes").walkTopDown().filter { it.extension == "class" }.toList()
        val found = StringBuilder().also { AbiTools.getInstance().printJvmDump(it, classes, AbiFilters.EMPTY) }.toString()
        val file = File("api/sdk.api")
        if (System.getProperty("api.write") == "true") file.writeText(found)
        assertEquals(file.readText(), found, "the public API changed; if that is meant: make android-api")
    }
}
