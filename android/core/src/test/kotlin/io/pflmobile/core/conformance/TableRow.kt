package io.pflmobile.core.conformance

import io.pflmobile.core.plan.TensorEntry
import io.pflmobile.core.tensors.DType
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.contentOrNull
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive

/** A row of a tensor table, as the vectors write it. */
data class TableRow(
    override val name: String,
    override val role: String,
    override val shape: List<Int>,
    override val dtype: DType = DType.FLOAT32,
    override val update: String = "gradient",
    override val module: String? = null,
) : TensorEntry {
    companion object {
        fun table(rows: JsonElement): List<TableRow> =
            rows.jsonArray.map { it.jsonObject }.map { row ->
                fun text(field: String) = row.getValue(field).jsonPrimitive.contentOrNull
                TableRow(
                    name = text("name")!!,
                    role = text("role")!!,
                    shape = row.getValue("shape").jsonArray.map { it.jsonPrimitive.int },
                    dtype = DType.entries.single { it.wireName == text("dtype") },
                    update = text("update")!!,
                    module = text("module"),
                )
            }
    }
}
