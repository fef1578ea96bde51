package io.pflmobile.core.local

import io.pflmobile.core.conformance.TableRow
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.Tensor

/** The toy model of `conformance/README.md`; [calls] counts its programs' runs. */
class Toy : TrainingSession {
    private data class Input(
        override val name: String,
        override val shape: List<Int>,
        override val dtype: DType = DType.FLOAT32,
    ) : ProgramInput

    private val all =
        mapOf("x" to listOf(4, 2), "y" to listOf(4, 3), "weight" to listOf(4), "a" to listOf(2), "b" to listOf(3)).map { Input(it.key, it.value) }
    override val inputs: Map<String, List<ProgramInput>> = mapOf("gradients" to all, "evaluate" to all)
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
        val out = mapOf("loss_sum" to FloatTensor(floatArrayOf(loss), listOf(1)), "weight_sum" to FloatTensor(floatArrayOf(weightSum), listOf(1)))
        return if (program == "evaluate") out else out + grads.map { (name, grad) -> "grad.$name" to FloatTensor(grad, listOf(grad.size)) }
    }

    companion object {
        val TABLE = listOf(TableRow("a", "shared", listOf(2), module = "m"), TableRow("b", "personal", listOf(3), module = "m"))
    }
}
