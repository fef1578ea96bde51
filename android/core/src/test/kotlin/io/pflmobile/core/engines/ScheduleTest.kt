package io.pflmobile.core.engines

import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.tensors.DType
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

/** `schedules.json`: what is read, what is refused, and when values are dropped. */
class ScheduleTest {
    private val vectors = Vectors.read("schedules.json")
    private val programs =
        vectors.getValue("programs").jsonArray.map { it.jsonObject }.map {
            ProgramSpec(
                text(it.getValue("name")),
                it.getValue("inputs").jsonArray.map(::spec),
                it.getValue("outputs").jsonArray.map(::spec),
            )
        }

    private fun spec(element: JsonElement): TensorSpec {
        val fields = element.jsonObject
        val shape = fields.getValue("shape").jsonArray.map { it.jsonPrimitive.int }
        return TensorSpec(text(fields.getValue("name")), shape, checkNotNull(DType.named(text(fields.getValue("dtype")))))
    }

    @TestFactory
    fun schedules(): List<DynamicTest> =
        vectors.getValue("cases").jsonArray.map { it.jsonObject }.map { case ->
            dynamicTest(text(case.getValue("name"))) {
                val data = text(case.getValue("text")).toByteArray()
                val error = case["error"]
                if (error != null) {
                    assertEquals(text(error), assertFailsWith<PflException> { Schedule.parse(data, programs) }.code)
                } else {
                    val found =
                        Schedule.parse(data, programs).programs.mapValues { (_, course) ->
                            course.drops.map { it.map(Reference::toString).sorted() }
                        }
                    val want = case.getValue("drops").jsonObject.mapValues { (_, ends) -> ends.jsonArray.map { it.jsonArray.map(::text) } }
                    assertEquals(want, found)
                }
            }
        }
}
