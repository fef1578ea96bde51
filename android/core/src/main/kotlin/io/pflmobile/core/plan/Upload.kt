package io.pflmobile.core.plan

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.NameOrder
import io.pflmobile.core.tensors.Tensor

/**
 * Names and shapes of everything that the plan sends, in order.
 *
 * @throws io.pflmobile.core.errors.ConfigException an upload pattern matches nothing, or personal tensors only
 */
internal fun updateShapes(
    plan: Plan,
    table: List<DeviceTensor>,
): Map<String, List<Int>> {
    val shapes = table.associate { it.name to it.shape }
    val sent = uploaded(plan.upload, table).associateWith { shapes.getValue(it) }
    return sent + plan.uploadCopies.flatMap { copy -> sent.map { (name, shape) -> copyKey(copy, name) to shape } }
}

/**
 * Refuses a plan whose update would hold nothing, or nothing but zeros.
 *
 * @throws ConfigException nothing is uploaded, or no phase changes what is; or a pattern matches nothing
 */
internal fun checkSends(
    plan: Plan,
    table: List<DeviceTensor>,
) {
    val sets = plan.uploadCopies + "theta"
    val changed = plan.distinctSteps().filter { it.changes in sets }.flatMapTo(HashSet()) { it.tensors(table) }
    if (uploaded(plan.upload, table).none { it in changed }) {
        val what = if (plan.upload.isEmpty()) "sends nothing" else "changes nothing of what it sends"
        throw ConfigException(
            "the plan $what, so no update can come of it",
            mend = "train shared tensors and name them in upload; `pfl serve --strategy NAME` does so",
        )
    }
}

/**
 * After minus before, float32, of what the plan sends, by name; personal tensors are never among it.
 *
 * @param before values that the aggregator sent
 * @param copiesBefore copies before training; a missing one was zero
 * @param after tensors after training
 * @param copiesAfter copies after training
 */
internal fun change(
    plan: Plan,
    table: List<DeviceTensor>,
    before: Map<String, Tensor>,
    copiesBefore: Map<String, Map<String, Tensor>>,
    after: Map<String, Tensor>,
    copiesAfter: Map<String, Map<String, Tensor>>,
): Map<String, FloatTensor> {
    val result = LinkedHashMap<String, FloatTensor>()
    val sent = uploaded(plan.upload, table)
    for (name in sent) result[name] = minus(after.getValue(name), before.getValue(name))
    for (copy in plan.uploadCopies) {
        for (name in sent) {
            val value = copiesAfter.getValue(copy)[name] ?: continue
            result[copyKey(copy, name)] = minus(value, copiesBefore[copy]?.get(name))
        }
    }
    return result
}

private fun minus(
    after: Tensor,
    before: Tensor?,
): FloatTensor {
    val now = after as FloatTensor
    val then = (before as FloatTensor?)?.values ?: return now.copy()
    return FloatTensor(FloatArray(now.size) { now.values[it] - then[it] }, now.shape)
}

/**
 * Where each tensor lies in a flat vector.
 *
 * @property shapes names and shapes in order; copies are named as [copyKey] does
 */
internal class UpdateLayout(
    val shapes: Map<String, List<Int>>,
) {
    /** Number of values. */
    val size: Long = shapes.values.sumOf { length(it) }

    /** Calls [use] with name, first place and shape of every tensor, in order. */
    inline fun forEach(use: (name: String, start: Long, shape: List<Int>) -> Unit) {
        var start = 0L
        for ((name, shape) in shapes) {
            use(name, start, shape)
            start += length(shape)
        }
    }

    /** Tensors one after the other, float32 `[P]`; a missing one becomes zero. */
    fun pack(values: Map<String, FloatTensor>): FloatArray {
        val flat = FloatArray(Math.toIntExact(size))
        forEach { name, start, _ -> values[name]?.values?.copyInto(flat, start.toInt()) }
        return flat
    }

    /** Copies of the tensors in a flat vector `[P]`, by name. */
    fun unpack(flat: FloatArray): Map<String, FloatTensor> {
        val found = LinkedHashMap<String, FloatTensor>()
        forEach { name, start, shape ->
            found[name] = FloatTensor(flat.copyOfRange(start.toInt(), (start + length(shape)).toInt()), shape)
        }
        return found
    }

    override fun equals(other: Any?): Boolean = other is UpdateLayout && shapes.entries.toList() == other.shapes.entries.toList()

    override fun hashCode(): Int = shapes.hashCode()

    companion object {
        /** Elements of a tensor. */
        fun length(shape: List<Int>): Long = shape.fold(1L) { product, length -> Math.multiplyExact(product, length.toLong()) }

        /** The layout of tensors in an update: sorted by the bytes of their UTF-8 names. */
        fun canonical(shapes: Map<String, List<Int>>): UpdateLayout = UpdateLayout(shapes.toSortedMap(NameOrder))
    }
}
