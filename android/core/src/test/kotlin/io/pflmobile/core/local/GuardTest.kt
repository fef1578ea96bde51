package io.pflmobile.core.local

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.files.strictJson
import io.pflmobile.core.plan.Guard
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.contentOrNull
import kotlinx.serialization.json.doubleOrNull
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlin.test.Test
import kotlin.test.assertEquals

class GuardTest {
    private val vectors = Vectors.read("guard.json")

    private fun guard(case: JsonObject) = strictJson.decodeFromJsonElement(Guard.serializer(), case.getValue("guard"))

    private fun number(element: JsonElement) =
        when (val word = text(element)) {
            "nan" -> Double.NaN
            "inf" -> Double.POSITIVE_INFINITY
            else -> word.toDouble()
        }

    @Test
    fun `decisions are Python's`() {
        for (case in vectors.getValue("decide").jsonArray.map { it.jsonObject }) {
            val (before, after) = listOf("before", "after").map { number(case.getValue(it)) }
            val report = guard(case).decide(before, after, case.getValue("examples").jsonPrimitive.int)
            assertEquals(case.getValue("adopted").jsonPrimitive.boolean, report.adopted, case.toString())
            assertEquals(text(case.getValue("reason")), report.reason.wireName, case.toString())
        }
    }

    @Test
    fun `it stops training for Python's reasons`() {
        for (case in vectors.getValue("before_training").jsonArray.map { it.jsonObject }) {
            val (value, shipped) = listOf("value", "shipped").map { case.getValue(it).jsonPrimitive.doubleOrNull }
            val stop = guard(case).beforeTraining(value, shipped, case.getValue("examples").jsonPrimitive.int)
            assertEquals(case.getValue("stop").jsonPrimitive.contentOrNull, stop?.reason?.wireName, case.toString())
        }
    }
}
