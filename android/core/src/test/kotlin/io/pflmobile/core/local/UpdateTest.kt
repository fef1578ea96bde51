package io.pflmobile.core.local

import io.pflmobile.core.conformance.Vectors
import io.pflmobile.core.conformance.assertBits
import io.pflmobile.core.conformance.assertDouble
import io.pflmobile.core.conformance.copies
import io.pflmobile.core.conformance.floats
import io.pflmobile.core.conformance.tensors
import io.pflmobile.core.conformance.text
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.files.strictJson
import io.pflmobile.core.plan.Optimizer
import io.pflmobile.core.plan.Sgd
import io.pflmobile.core.tensors.FloatTensor
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.doubleOrNull
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long
import kotlin.test.Test
import kotlin.test.assertFailsWith

class UpdateTest {
    private val vectors = Vectors.read("update.json")
    private val theta = floats(vectors.getValue("theta"))
    private val gradients = vectors.getValue("gradients").jsonArray.map { floats(it) }
    private val sets = vectors.getValue("sets").jsonObject.mapValues { tensors(it.value) }

    private fun number(element: JsonElement?) = (element as? JsonPrimitive)?.doubleOrNull

    private fun cases(name: String) = vectors.getValue(name).jsonArray.map { it.jsonObject }

    private fun terms(given: JsonObject) =
        Terms(
            clipNorm = number(given["clip"]),
            anchor = sets["anchor"].takeIf { "anchor" in given },
            mu = number(given["mu"]) ?: 0.0,
            muSet = sets["mu"].takeIf { given["mu"] == JsonPrimitive("set") },
            implicit = given["implicit"]?.jsonPrimitive?.boolean ?: false,
            control = sets["control"].takeIf { "control" in given },
            mask = sets["mask"].takeIf { "mask" in given },
        )

    @Test
    fun `steps of every optimizer and term are Python's`() {
        for (case in cases("steps")) {
            val optimizer = strictJson.decodeFromJsonElement(Optimizer.serializer(), case.getValue("optimizer"))
            val given = case.getValue("terms").jsonObject
            val x = theta.copies()
            val state = OptimizerState()
            for (g in gradients) update(x, g.copies(), optimizer, state, number(given["lr"]) ?: optimizer.lr, terms(given))
            val name = text(case.getValue("name"))
            assertBits(floats(case.getValue("theta")), x, name)
            assertBits(tensors(case.getValue("state")), state.tensors(), name)
            assertBits(state.tensors(), OptimizerState.of(state.tensors()).tensors(), name)
        }
    }

    @Test
    fun `theta as its own anchor is theta before the step`() {
        for (implicit in listOf(false, true)) {
            val apart = theta.copies()
            update(apart, gradients[0].copies(), Sgd(0.1), OptimizerState(), terms = Terms(anchor = theta, mu = 3.0, implicit = implicit))
            val same = theta.copies()
            update(same, gradients[0].copies(), Sgd(0.1), OptimizerState(), terms = Terms(anchor = same, mu = 3.0, implicit = implicit))
            assertBits(apart, same, "implicit $implicit")
        }
    }

    @Test
    fun `norms and powers are Python's`() {
        (gradients + theta).zip(vectors.getValue("global_norm").jsonArray).forEach { (values, want) ->
            assertDouble(want, globalNorm(values), "global norm")
        }
        for (case in vectors.getValue("integer_power").jsonArray.map { it.jsonArray }) {
            assertDouble(case[2], integerPower(number(case[0])!!, case[1].jsonPrimitive.long), "power $case")
        }
    }

    @Test
    fun `mean, mix, move and lookahead are Python's`() {
        val mean = vectors.getValue("mean_gradients").jsonObject
        val found = gradients[0].copies()
        meanGradients(gradients[0], number(mean["weight"])!!, found)
        assertBits(floats(mean.getValue("result")), found, "mean")
        val anchor = sets.getValue("anchor")
        for (case in cases("mix")) assertBits(floats(case.getValue("result")), mix(theta, anchor, number(case["alpha"])!!), "mix")
        for (case in cases("toward")) assertBits(floats(case.getValue("result")), toward(theta, anchor, number(case["rate"])!!), "toward")
        for (case in cases(
            "minus",
        )) {
            assertBits(floats(case.getValue("result")), minus(theta, gradients[0], number(case["rate"])!!), "minus")
        }
    }

    @Test
    fun `what is not finite or does not fit is named`() {
        fun one(vararg values: Float) = mapOf("a" to FloatTensor(values, listOf(values.size)))
        assertFailsWith<NonFiniteException> { update(one(1f), one(Float.MAX_VALUE), Sgd(1e10), OptimizerState()) }
        assertFailsWith<NonFiniteException> { meanGradients(one(Float.NaN), 1.0, one(0f)) }
        assertFailsWith<NonFiniteException> { meanGradients(one(1f), 0.0, one(0f)) }
        assertFailsWith<TensorMismatchException> { update(one(1f), one(1f, 2f), Sgd(1.0), OptimizerState()) }
        assertFailsWith<TensorMismatchException> {
            update(
                one(1f),
                one(1f),
                Sgd(1.0),
                OptimizerState(),
                terms = Terms(control = emptyMap()),
            )
        }
        assertFailsWith<NonFiniteException> { combine(one(1f), listOf(one(Float.MAX_VALUE) to 2.0)) }
    }
}
