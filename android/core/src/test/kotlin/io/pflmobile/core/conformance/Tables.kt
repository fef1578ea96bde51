package io.pflmobile.core.conformance

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.bundle.Role
import io.pflmobile.core.bundle.TensorUpdate
import io.pflmobile.core.tensors.DType
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.contentOrNull
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive

/** A table of tensors, as the vectors write it. */
fun table(rows: JsonElement): List<DeviceTensor> =
    rows.jsonArray.map { it.jsonObject }.map { row ->
        fun text(field: String) = row.getValue(field).jsonPrimitive.contentOrNull
        DeviceTensor(
            name = text("name")!!,
            role = Role.entries.single { it.wireName == text("role") },
            group = null,
            shape = row.getValue("shape").jsonArray.map { it.jsonPrimitive.int },
            dtype = DType.entries.single { it.wireName == text("dtype") },
            update = TensorUpdate.entries.single { it.wireName == text("update") },
            module = text("module"),
        )
    }

/** A float32 tensor that gradients train. */
fun trained(
    name: String,
    role: Role,
    shape: List<Int>,
    module: String? = "m",
): DeviceTensor = DeviceTensor(name, role, null, shape, DType.FLOAT32, TensorUpdate.GRADIENT, module)
