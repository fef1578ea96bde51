package io.pflmobile.core.local

import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.Role
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.conformance.trained
import io.pflmobile.core.engines.Session
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.Tensor

/** The toy model of `conformance/README.md`; [calls] counts its programs' runs. */
class Toy : Session {
    override val name = "toy"
    private val all =
        mapOf("x" to listOf(4, 2), "y" to listOf(4, 3), "weight" to listOf(4), "a" to listOf(2), "b" to listOf(3)).map {
            TensorSpec(it.key, it.value, DType.FLOAT32)
        }
    override val programs = listOf("gradients", "evaluate").associateWith { ProgramSpec(it, all, emptyList()) }
    var calls = 0

    override fun run(
        program: String,
        inputs: Map<String, Tensor>,
    ): Map<String, Tensor> {
        calls++

        fun values(name: String) = (inputs.getValue(name) as FloatTensor).values
        var loss = 0f
        var weightSum = 0f
        val grads = mapOf("a" to FloatArray(2), "b" to FloatArray(3))
        values("weight").forEachIndexed { row, weight ->
            weightSum += weight
            for ((name, target) in listOf("a" to values("x"), "b" to values("y"))) {
                val grad = grads.getValue(name)
                values(name).forEachIndexed { i, theta ->
                    val d = theta - target[row * grad.size + i]
                    val t = weight * d
                    grad[i] += t
                    loss += 0.5f * (t * d)
                }
            }
        }
        val out =
            mapOf(
                "loss_sum" to FloatTensor(floatArrayOf(loss), listOf(1)),
                "weight_sum" to FloatTensor(floatArrayOf(weightSum), listOf(1)),
            )
        return if (program == "evaluate") out else out + grads.map { (name, grad) -> "grad.$name" to FloatTensor(grad, listOf(grad.size)) }
    }

    override fun close() = Unit

    companion object {
        val TABLE = listOf(trained("a", Role.SHARED, listOf(2)), trained("b", Role.PERSONAL, listOf(3)))
    }
}
