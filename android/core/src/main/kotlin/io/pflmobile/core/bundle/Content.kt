package io.pflmobile.core.bundle

import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.errors.near
import io.pflmobile.core.tensors.Tensor

/**
 * One call of a program: complete inputs, and the outputs that PyTorch gave for them.
 *
 * @property inputs by name; all that the program takes
 * @property outputs by name, as PyTorch gave them at the export
 */
public class GoldenCase(
    public val inputs: Map<String, Tensor>,
    public val outputs: Map<String, Tensor>,
)

/** What the tensor files of a bundle must hold: the manifest says which tensors, these functions check it. */
internal object Content {
    private const val EXPORT_AGAIN = "export the bundle again"

    /**
     * Checks that [values] are exactly the device tensors of [manifest].
     *
     * @throws TensorMismatchException one is missing, unknown, or of another shape or dtype
     */
    fun checkValues(
        manifest: Manifest,
        values: Map<String, Tensor>,
    ) {
        sameNames(manifest.values, manifest.tensors.map { it.name }, values.keys)
        for (tensor in manifest.tensors) sameForm(manifest.values, tensor, values.getValue(tensor.name))
    }

    /**
     * The calls in a golden file, by program.
     *
     * @param golden tensors named `in.<program>.<input>` and `out.<program>.<output>`
     * @param values initial values, for the device tensors that a call takes but the file does not hold
     * @throws TensorMismatchException a tensor is missing, unknown, or of another shape or dtype than the program's; or there is no
     *   call at all
     */
    fun goldenCases(
        manifest: Manifest,
        golden: Map<String, Tensor>,
        values: Map<String, Tensor>,
    ): Map<String, GoldenCase> {
        val cases = LinkedHashMap<String, GoldenCase>()
        val taken = HashSet<String>()
        for (program in manifest.programs) {
            val given = withPrefix(golden, "in.${program.name}.")
            val outputs = withPrefix(golden, "out.${program.name}.")
            if (given.isEmpty() && outputs.isEmpty()) continue
            val case = case(manifest, program, given, outputs, values)
            cases[program.name] = case
            case.inputs.keys.mapTo(taken) { "in.${program.name}.$it" }
            case.outputs.keys.mapTo(taken) { "out.${program.name}.$it" }
        }
        val unknown = golden.keys.filterNot { it in taken }.minOrNull()
        if (unknown != null || cases.isEmpty()) {
            val what = if (unknown != null) "tensor '$unknown', which belongs to no program" else "no call of any program"
            throw TensorMismatchException("${manifest.golden} has $what", EXPORT_AGAIN)
        }
        return cases
    }

    private fun case(
        manifest: Manifest,
        program: ProgramSpec,
        given: Map<String, Tensor>,
        outputs: Map<String, Tensor>,
        values: Map<String, Tensor>,
    ): GoldenCase {
        val where = "program '${program.name}' in ${manifest.golden}"
        val names = program.inputs.map { it.name }
        val inputs = names.filter { it in values && it !in given }.associateWith { values.getValue(it) } + given
        sameNames("the inputs of $where", names, inputs.keys)
        sameNames("the outputs of $where", program.outputs.map { it.name }, outputs.keys)
        program.inputs.forEach { sameForm("input of $where", it, inputs.getValue(it.name)) }
        program.outputs.forEach { sameForm("output of $where", it, outputs.getValue(it.name)) }
        return GoldenCase(names.associateWith { inputs.getValue(it) }, program.outputs.associate { it.name to outputs.getValue(it.name) })
    }

    private fun withPrefix(
        tensors: Map<String, Tensor>,
        prefix: String,
    ) = tensors.filterKeys { it.startsWith(prefix) }.mapKeys { it.key.removePrefix(prefix) }

    private fun sameNames(
        where: String,
        expected: List<String>,
        found: Set<String>,
    ) {
        expected.firstOrNull { it !in found }?.let { throw TensorMismatchException("$where: tensor '$it' is missing", EXPORT_AGAIN) }
        val unknown = (found - expected.toSet()).minOrNull() ?: return
        throw TensorMismatchException("$where: unknown tensor '$unknown'", near(unknown, expected))
    }

    private fun sameForm(
        where: String,
        spec: TensorForm,
        tensor: Tensor,
    ) {
        if (tensor.shape != spec.shape || tensor.dtype != spec.dtype) {
            throw TensorMismatchException(
                "$where: '${spec.name}' is ${tensor.signature}, but the manifest says ${spec.signature}",
                EXPORT_AGAIN,
            )
        }
    }
}
