package io.pflmobile.core.engines

import io.pflmobile.core.bundle.Documents
import io.pflmobile.core.bundle.JsonFields
import io.pflmobile.core.bundle.JsonFields.Companion.fault
import io.pflmobile.core.bundle.ManifestReader
import io.pflmobile.core.bundle.ManifestReader.fields
import io.pflmobile.core.bundle.ManifestReader.filled
import io.pflmobile.core.bundle.ManifestReader.filledMap
import io.pflmobile.core.bundle.ManifestReader.head
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.Rules
import io.pflmobile.core.bundle.TensorForm
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.errors.near
import io.pflmobile.core.tensors.DType
import kotlinx.serialization.json.JsonElement

/** What a call of a part reads, or a program gives. */
internal sealed interface Reference {
    /** An input of the program. */
    data class Input(
        val name: String,
    ) : Reference {
        override fun toString() = "input:$name"
    }

    /** A tensor in the file of constants. */
    data class Constant(
        val name: String,
    ) : Reference {
        override fun toString() = "constant:$name"
    }

    /** What an earlier call gave. */
    data class Value(
        val number: Long,
    ) : Reference {
        override fun toString() = "value:$number"
    }
}

/** One run of a part: what it reads, in the order of its inputs, and the values that its outputs become. */
internal class Call(
    val part: ProgramSpec,
    val inputs: List<Reference>,
    val outputs: List<Reference.Value>,
)

/** The calls of one program, in order, and where its outputs are, in the order of the manifest. */
internal class Course(
    val calls: List<Call>,
    val outputs: List<Reference>,
) {
    /**
     * For each call the inputs and values that nobody reads after it; what it makes for nobody is among them. Constants are in the
     * mapped file, and never dropped.
     */
    val drops: List<Set<Reference>>

    init {
        val last = HashMap<Reference, Int>()
        calls.forEachIndexed { number, call ->
            for (reference in call.outputs + call.inputs) if (reference !is Reference.Constant) last[reference] = number
        }
        last.keys -= outputs.toSet()
        val ends = List(calls.size) { HashSet<Reference>() }
        for ((reference, number) in last) ends[number] += reference
        drops = ends
    }
}

/** Where a constant is in its file: row after row, little-endian, from [offset]. */
internal class ConstantEntry(
    val spec: TensorSpec,
    val offset: Long,
) {
    /** Its bytes. */
    val bytes: Long get() = spec.shape.fold(spec.dtype.bytes.toLong()) { product, length -> Math.multiplyExact(product, length.toLong()) }
}

/**
 * Programs that are run as calls of parts, so that blocks which repeat are in a bundle once; `pfl_mobile/engines/schedule.py` says
 * more.
 *
 * @property parts signatures of the small programs in the engine's files
 * @property constants what the file of constants holds, by name
 * @property programs the calls of each program, by name
 */
internal class Schedule(
    val parts: List<ProgramSpec>,
    val constants: Map<String, ConstantEntry>,
    val programs: Map<String, Course>,
) {
    internal companion object {
        /** Purposes of an engine's files: the schedule, and the constants that it gives to parts. */
        const val SCHEDULE = "schedule"
        const val CONSTANTS = "constants"

        // One of sixty blocks has 20,000.
        private const val MOST_VALUES = 1_000_000
        private val DOCUMENTS = Documents("the schedule", "pfl-schedule", newest = 1, MOST_VALUES)

        /**
         * Parses and checks a schedule.
         *
         * @param programs of the bundle, which it has to be for
         * @throws io.pflmobile.core.errors.SchemaVersionException it is of a newer schema
         * @throws io.pflmobile.core.errors.InvalidManifestException it is not JSON, breaks the schema, or is not for these programs
         */
        fun parse(
            data: ByteArray,
            programs: List<ProgramSpec>,
        ): Schedule = DOCUMENTS.parse(data) { ScheduleReader(programs).schedule(it) }
    }
}

/** Reads schedules for these programs; every fault is a `FieldFault`. */
private class ScheduleReader(
    programs: List<ProgramSpec>,
) {
    private val bundle = programs.associateBy { it.name }

    fun schedule(element: JsonElement): Schedule =
        fields(element, "") {
            head()
            val parts = required("parts", filled(JsonFields.list(ManifestReader::program)))
            Rules.unique("part", parts.map { it.name })
            for (part in parts) (part.inputs + part.outputs).forEach { Rules.checkSize("part '${part.name}'", it) }
            val constants = required("constants", JsonFields.map(::constantName) { value, where -> constant(value, where) })
            val read = Reader(parts.associateBy { it.name }, constants)
            val courses = required("programs", filledMap(JsonFields.map(ManifestReader::checkProgramName, read::course)))
            for (name in bundle.keys) if (name !in courses) fault("programs", "it has no program '$name'")
            Schedule(parts, constants, courses)
        }

    private fun constantName(
        name: String,
        where: String,
    ): String = name.also { if (!CONSTANT.matches(it)) fault(where, "'$it' is no name of a constant") }

    private fun constant(
        element: JsonElement,
        where: String,
    ): ConstantEntry =
        fields(element, where) {
            val spec =
                TensorSpec(
                    where.substringAfterLast('.'),
                    required("shape", ManifestReader::shape),
                    required("dtype", ManifestReader::dtype),
                )
            Rules.checkSize("the schedule", spec)
            val offset = required("offset", JsonFields.count)
            if (offset % ALIGNMENT != 0L) fault(where, "it begins at $offset, which is no multiple of $ALIGNMENT")
            ConstantEntry(spec, offset)
        }

    private inner class Reader(
        private val parts: Map<String, ProgramSpec>,
        private val constants: Map<String, ConstantEntry>,
    ) {
        fun course(
            element: JsonElement,
            where: String,
        ): Course =
            fields(element, where) {
                // Of a program that the bundle has not, which nobody will run, nothing is known.
                val program = bundle[where.substringAfterLast('.')]
                val known = HashMap<Reference, TensorForm>()
                constants.forEach { (name, entry) -> known[Reference.Constant(name)] = entry.spec }
                program?.inputs?.forEach { known[Reference.Input(it.name)] = it }
                val calls = required("calls", filled(JsonFields.list { call, at -> call(call, at, known, program != null) }))
                val outputs = required("outputs", filled(JsonFields.list(::reference)))
                val found =
                    outputs.map {
                        known[it] ?: if (it is Reference.Input &&
                            program == null
                        ) {
                            null
                        } else {
                            unknown("$where.outputs", it)
                        }
                    }
                if (program != null && found.map { it?.signature } != program.outputs.map { it.signature }) {
                    fault("$where.outputs", "they are ${found.map { it?.signature }}, and not ${program.outputs.map { it.signature }}")
                }
                Course(calls, outputs)
            }

        private fun call(
            element: JsonElement,
            where: String,
            known: MutableMap<Reference, TensorForm>,
            inputsKnown: Boolean,
        ): Call =
            fields(element, where) {
                val name = required("part", ManifestReader::programName)
                val part = parts[name] ?: fault(where, "there is no part '$name'; ${near(name, parts.keys)}")
                val inputs = required("inputs", JsonFields.list(::reference))
                val outputs = required("outputs", JsonFields.list(JsonFields.count)).map { Reference.Value(it) }
                if (inputs.size != part.inputs.size || outputs.size != part.outputs.size) {
                    fault(
                        where,
                        "it gives '$name' ${inputs.size} inputs and takes ${outputs.size} outputs; " +
                            "it has ${part.inputs.size} and ${part.outputs.size}",
                    )
                }
                for ((reference, want) in inputs.zip(part.inputs)) {
                    if (reference is Reference.Input && !inputsKnown) continue
                    val found = known[reference] ?: unknown(where, reference)
                    if (found.signature != want.signature) {
                        fault(where, "it reads $reference, ${found.signature}; the part takes ${want.signature}")
                    }
                }
                for ((value, output) in outputs.zip(part.outputs)) {
                    if (known.put(value, output) != null) fault(where, "it makes $value, which is there already")
                }
                Call(part, inputs, outputs)
            }

        private fun unknown(
            where: String,
            reference: Reference,
        ): Nothing = fault(where, "it reads $reference, which is not there")
    }

    private fun reference(
        element: JsonElement,
        where: String,
    ): Reference {
        val text = JsonFields.text(element, where)
        val name = text.substringAfter(':')
        return when {
            text.startsWith("input:") -> Reference.Input(JsonFields.checkName(name, where))
            text.startsWith("constant:") -> Reference.Constant(constantName(name, where))
            text.startsWith("value:") && VALUE.matches(name) -> Reference.Value(name.toLong())
            else -> fault(where, "'$text' is neither an input nor a constant nor a value")
        }
    }

    private companion object {
        // Each constant is aligned when the file is mapped.
        const val ALIGNMENT = 64L
        val CONSTANT = Regex("[a-z0-9_]{1,64}")

        // One spelling for each.
        val VALUE = Regex("0|[1-9][0-9]{0,6}")
    }
}
