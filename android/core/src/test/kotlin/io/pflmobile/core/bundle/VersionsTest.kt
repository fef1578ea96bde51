package io.pflmobile.core.bundle

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.text
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.contentOrNull
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlin.test.Test
import kotlin.test.assertEquals

class VersionsTest {
    private val vectors = Vectors.read("versions.json")

    @Test
    fun `the numbers of a version are Python's`() {
        for ((version, plain) in vectors.getValue("plain").jsonObject) {
            assertEquals(plain.jsonPrimitive.contentOrNull, Versions.plain(version), version)
        }
    }

    @Test
    fun `what is older is what Python says`() {
        for (pair in vectors.getValue("pairs").jsonArray.map { it.jsonObject }) {
            val version = text(pair.getValue("version"))
            val than = text(pair.getValue("than"))
            assertEquals(pair.getValue("older").jsonPrimitive.boolean, Versions.isOlder(version, than), "$version, $than")
        }
    }
}
