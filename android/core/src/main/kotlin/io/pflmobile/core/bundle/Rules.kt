package io.pflmobile.core.bundle

import io.pflmobile.core.errors.near
import java.math.BigInteger

/** The rules between the fields of a manifest, which its JSON Schema cannot say. */
internal object Rules {
    // NumPy has no more.
    private const val MOST_DIMENSIONS = 32
    private const val MOST_TENSOR_BYTES = 4L shl 30

    /**
     * Checks that the fields agree.
     *
     * @throws FieldFault naming the first two things that do not
     * @throws io.pflmobile.core.errors.UnsafePathException two of its paths are one file on some system
     */
    fun check(manifest: Manifest) {
        checkSizes(manifest)
        unique("program", manifest.programs.map { it.name })
        unique("tensor", manifest.tensors.map { it.name })
        unique("module", manifest.modules.map { it.name })
        checkModules(manifest)
        checkPrograms(manifest)
        checkFiles(manifest)
        checkEncoder(manifest)
    }

    fun unique(
        what: String,
        names: List<String>,
    ) {
        val seen = HashSet<String>()
        for (name in names) if (!seen.add(name)) wrong("$what '$name' is listed more than once")
    }

    private fun checkSizes(manifest: Manifest) {
        for (program in manifest.programs) (program.inputs + program.outputs).forEach { checkSize("program '${program.name}'", it) }
        manifest.tensors.forEach { checkSize("the bundle", it) }
    }

    /** No tensor is larger than any bundle: said before room is made for one. */
    fun checkSize(
        where: String,
        spec: TensorForm,
    ) {
        if (spec.shape.size > MOST_DIMENSIONS) wrong("$where has '${spec.name}' of ${spec.shape.size} dimensions")
        val bytes = spec.shape.fold(spec.dtype.bytes.toBigInteger()) { product, length -> product * length.toBigInteger() }
        if (bytes > BigInteger.valueOf(MOST_TENSOR_BYTES)) wrong("$where has '${spec.name}' of ${spec.signature}, which no device can hold")
    }

    private fun checkModules(manifest: Manifest) {
        val known = manifest.modules.mapTo(HashSet()) { it.name }
        for (tensor in manifest.tensors) {
            val module = tensor.module ?: continue
            if (module !in known) {
                wrong("tensor '${tensor.name}' belongs to module '$module', which is not listed; ${near(module, known)}")
            }
        }
    }

    private fun checkPrograms(manifest: Manifest) {
        val tensors = manifest.tensors.associateBy { it.name }
        for (program in manifest.programs) {
            for (spec in program.inputs) {
                val tensor = tensors[spec.name] ?: continue
                if (tensor.signature != spec.signature) {
                    wrong(
                        "program '${program.name}' takes '${spec.name}' as ${spec.signature}, but the device tensor is ${tensor.signature}",
                    )
                }
            }
            for (spec in program.outputs) {
                if (!spec.name.startsWith(GRADIENT)) continue
                val tensor = tensors[spec.name.removePrefix(GRADIENT)]
                if (tensor == null || tensor.update != TensorUpdate.GRADIENT) {
                    wrong("output '${spec.name}' is not the gradient of a tensor trained by gradients")
                }
                if (tensor.shape != spec.shape) wrong("output '${spec.name}' is ${spec.signature}, but the tensor is ${tensor.signature}")
            }
        }
    }

    private fun checkFiles(manifest: Manifest) {
        // As a list: the manifest is not to be among its files.
        Paths.checkDistinct(manifest.files.keys.toList() + Paths.MANIFEST + Paths.SIGNATURE)
        val named = mutableListOf("plan" to manifest.plan, "values" to manifest.values, "golden" to manifest.golden)
        manifest.tokenizer?.let { named += "tokenizer" to it }
        for ((engine, entry) in manifest.engines) entry.files.mapTo(named) { (use, path) -> "engine '$engine' as '$use'" to path }
        for ((use, path) in named) {
            if (path !in manifest.files) wrong("file '$path' (for $use) is not in files; ${near(path, manifest.files.keys)}")
        }
        val total = manifest.files.values.fold(BigInteger.ZERO) { sum, entry -> sum + entry.bytes.toBigInteger() }
        if (total != manifest.measured.totalBytes.toBigInteger()) {
            wrong("total_bytes is ${manifest.measured.totalBytes}, but the files have $total together")
        }
    }

    private fun checkEncoder(manifest: Manifest) {
        val encoder = manifest.encoder as? EncoderEntry.Text ?: return
        if (manifest.tokenizer == null) wrong("the encoder is for text, but no tokenizer is named")
        if (encoder.subwords != null && encoder.slots > 0) wrong("the encoder has vocabulary slots over subwords")
        val total = encoder.vocabulary + encoder.slots
        val vocabulary = manifest.task.vocabulary
        if (vocabulary != null && vocabulary != total) wrong("task.vocabulary is $vocabulary, but words and slots are $total")
        for (program in manifest.programs.filter { it.name == "gradients" || it.name == "evaluate" }) {
            for (spec in program.inputs.filter { it.name == "tokens" }) {
                if (spec.shape.map { it.toLong() } != listOf(encoder.batch, encoder.length)) {
                    wrong(
                        "program '${program.name}' takes tokens of shape ${spec.shape}, " +
                            "but the encoder gives ${listOf(encoder.batch, encoder.length)}",
                    )
                }
            }
        }
    }

    private fun wrong(what: String): Nothing = throw FieldFault("", what)
}

/** How names of the outputs of `gradients` that are gradients begin. */
internal const val GRADIENT: String = "grad."
