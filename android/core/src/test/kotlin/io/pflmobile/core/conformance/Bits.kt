package io.pflmobile.core.conformance

import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.RawTensor
import io.pflmobile.core.tensors.Tensor
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.jsonObject
import kotlin.test.assertEquals
import kotlin.test.assertTrue

/** Tensors by name, as the vectors write them. */
fun tensors(element: JsonElement): Map<String, Tensor> = element.jsonObject.mapValues { Vectors.tensor(it.value) }

/** The same, all of them float32. */
fun floats(element: JsonElement): Map<String, FloatTensor> = tensors(element).mapValues { it.value as FloatTensor }

/** Copies that a test may change. */
fun Map<String, FloatTensor>.copies(): Map<String, FloatTensor> = mapValues { it.value.copy() }

/** Fails unless names, shapes and every bit agree. */
fun assertBits(
    want: Map<String, Tensor>,
    found: Map<String, Tensor>,
    what: String,
) {
    assertEquals(want.keys, found.keys, what)
    for ((name, tensor) in want) assertBits(tensor, found.getValue(name), "$what: $name")
}

/** Fails unless shape and every bit agree. */
fun assertBits(
    want: Tensor,
    found: Tensor,
    what: String,
) {
    assertEquals(want.shape, found.shape, what)
    when (want) {
        is FloatTensor -> assertEquals(hex(want), hex(found as FloatTensor), what)
        is LongTensor -> assertEquals(want.values.toList(), (found as LongTensor).values.toList(), what)
        is RawTensor -> assertEquals(want.bytes.toList(), (found as RawTensor).bytes.toList(), what)
    }
}

/** Fails unless a float64 has the bits that the vectors write. */
fun assertDouble(
    want: JsonElement,
    found: Double,
    what: String,
) = assertTrue(found.toRawBits() == Vectors.double(text(want)).toRawBits(), "$what: $found instead of ${Vectors.double(text(want))}")

private fun hex(tensor: FloatTensor) =
    tensor.values.joinToString(" ") {
        it
            .toRawBits()
            .toUInt()
            .toString(16)
            .padStart(8, '0')
    }
