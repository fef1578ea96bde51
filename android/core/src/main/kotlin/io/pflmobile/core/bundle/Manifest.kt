package io.pflmobile.core.bundle

import io.pflmobile.core.errors.EngineUnavailableException
import io.pflmobile.core.errors.UnknownNameException
import io.pflmobile.core.errors.near
import io.pflmobile.core.tensors.DType
import kotlinx.serialization.json.JsonObject

/** What may happen to a tensor: merged for all devices, within a group of them, or never sent. */
public enum class Role(
    internal val wireName: String,
) {
    SHARED("shared"),
    GROUP("group"),
    PERSONAL("personal"),
}

/** Who writes a tensor on the device: the update rule, a memorize phase, or the host when it gives vocabulary slots to words. */
public enum class TensorUpdate(
    internal val wireName: String,
) {
    GRADIENT("gradient"),
    MEMORIZE("memorize"),
    ASSIGN("assign"),
}

/** What the model predicts. */
public enum class TaskKind(
    internal val wireName: String,
) {
    TOKENS("tokens"),
    CLASSIFICATION("classification"),
    REGRESSION("regression"),
    CUSTOM("custom"),
}

/** What tensors of programs and of devices have in common. */
public interface TensorForm {
    /** Unique among the tensors of its kind, for instance `blocks.0.attn.q.lora_A`. */
    public val name: String

    /** Length of each axis; empty for a scalar. */
    public val shape: List<Int>

    /** What an element is. */
    public val dtype: DType

    /** `float32[2, 3]`, as messages name it. */
    public val signature: String get() = "${dtype.wireName}$shape"
}

/**
 * An input or output of a program; the shape is fixed at export.
 *
 * @property name of the input or output
 * @property shape fixed lengths; the first axis of an input of data is the batch
 * @property dtype of its elements
 */
public data class TensorSpec(
    override val name: String,
    override val shape: List<Int>,
    override val dtype: DType,
) : TensorForm

/**
 * A pure function with named inputs and outputs, the same on every engine.
 *
 * @property name `gradients`, `evaluate` or `predict`
 * @property inputs in the order in which engines take them
 * @property outputs in the order in which engines give them
 */
public data class ProgramSpec(
    val name: String,
    val inputs: List<TensorSpec>,
    val outputs: List<TensorSpec>,
)

/**
 * A tensor that changes on the device.
 *
 * @property name as in programs, states and updates
 * @property role whether its change may be sent
 * @property group of a tensor of [Role.GROUP]; null for others
 * @property shape length of each axis
 * @property dtype float32 where gradients train it
 * @property update who writes it
 * @property module the module it belongs to; null for a tensor of the backbone itself
 */
public data class DeviceTensor(
    override val name: String,
    val role: Role,
    val group: String?,
    override val shape: List<Int>,
    override val dtype: DType,
    val update: TensorUpdate,
    val module: String?,
) : TensorForm

/**
 * A module put into the backbone, with the configuration it was made from.
 *
 * @property name unique in the bundle; [DeviceTensor.module] refers to it
 * @property kind for instance `lora` or `slots`
 * @property config its configuration, as Python wrote it
 */
public data class ModuleEntry(
    val name: String,
    val kind: String,
    val config: JsonObject,
)

/**
 * What one engine loads.
 *
 * @property files paths in the bundle by purpose (`model`, `weights`)
 * @property measured what was measured at the export
 * @property runtime which versions of the runtime load the files; null where that is not known
 * @property precision in what precision the programs compute; null for float32
 */
public data class EngineEntry(
    val files: Map<String, String>,
    val measured: Map<String, Long>,
    val runtime: RuntimeEntry? = null,
    val precision: PrecisionEntry? = null,
)

/**
 * What programs are that compute in mixed precision: some products in 16 bits, all else in 32.
 *
 * @property lossScale of the loss inside `gradients`; what comes out is not scaled
 * @property products how many products compute in 16 bits
 * @property ofProducts of how many
 * @property tolerance the largest error, relative to the largest entry of an output, with which a device may train
 * @property steps of a comparison with training in 32 bits
 * @property trainedRelErr how far the tensors were from those of 32 bits after it, relative to their way
 */
public data class PrecisionEntry(
    val lossScale: Double,
    val products: Long,
    val ofProducts: Long,
    val tolerance: Double,
    val steps: Long,
    val trainedRelErr: Double,
)

/**
 * How frozen weights are stored that have fewer than 32 bits; the programs compute in float32 with them.
 *
 * @property kind `int8` or `int4`
 * @property group how many numbers of `int4` share a scale; null for `int8`
 * @property tensors the weights that are stored so, and how far each is from the model's own, relative to its length
 * @property loss on the example batch
 * @property lossFloat32 on it with the model's own weights
 * @property outputRelErr how far the output on it is from that of the model's own weights, relative to its length; null
 *   where a model gives no single tensor
 */
public data class WeightsEntry(
    val kind: String,
    val group: Long?,
    val tensors: Map<String, Double>,
    val loss: Double,
    val lossFloat32: Double,
    val outputRelErr: Double?,
)

/**
 * Versions of an engine's runtime.
 *
 * @property atLeast the oldest that loads the programs
 * @property verified the one that they were compared with PyTorch on
 */
public data class RuntimeEntry(
    val atLeast: String,
    val verified: String,
)

/**
 * A file of the bundle.
 *
 * @property sha256 digest, as 64 hex digits
 * @property bytes length
 */
public data class FileEntry(
    val sha256: String,
    val bytes: Long,
)

/**
 * What the model predicts.
 *
 * @property kind which of the tasks it is
 * @property metrics names of what `evaluate` measures besides the loss
 * @property vocabulary number of classes, of tokens all ids with slots; null for a task without classes
 */
public data class TaskEntry(
    val kind: TaskKind,
    val metrics: List<String>,
    val vocabulary: Long?,
)

/**
 * Ids of the special tokens of a tokenizer of subwords.
 *
 * @property pad fills rows up
 * @property bos begins a text
 * @property eos ends a text
 * @property unk stands for what the tokenizer does not know; null where it has none
 */
public data class Subwords(
    val pad: Long,
    val bos: Long,
    val eos: Long,
    val unk: Long?,
)

/** How examples become rows. */
public sealed interface EncoderEntry {
    /** Rows that go into a program at once. */
    public val batch: Long

    /**
     * Text to rows of tokens.
     *
     * @property length tokens in a row
     * @property vocabulary words or subwords of the tokenizer
     * @property slots ids behind them for words of the user
     * @property rules version of the piece rules that the tokenizer's words were cut by
     * @property subwords special tokens of a tokenizer of subwords, whose file says alone how a text is cut; null for words
     * @property scriptsNotServed ISO 15924 codes of scripts in which the model is of no use; empty where the bundle does not say
     */
    public data class Text(
        val length: Long,
        override val batch: Long,
        val vocabulary: Long,
        val slots: Long = 0,
        val rules: Long = 1,
        val subwords: Subwords? = null,
        val scriptsNotServed: List<String> = emptyList(),
    ) : EncoderEntry

    /** Examples are arrays already. */
    public data class Arrays(
        override val batch: Long,
    ) : EncoderEntry
}

/**
 * What a device must not exceed; null means that the bundle sets no limit.
 *
 * @property maxExamples of more examples the newest are taken
 * @property maxSteps a plan that makes more optimizer steps on the examples is not begun
 * @property maxSeconds training that takes longer in one go is stopped
 */
public data class Limits(
    val maxExamples: Long? = null,
    val maxSteps: Long? = null,
    val maxSeconds: Long? = null,
)

/**
 * Sizes in bytes.
 *
 * @property totalBytes of all files listed
 * @property plannedMemoryBytes of the memory that the programs plan; null where the engine does not say
 * @property frozenBytes of the frozen tensors as float32; null where it was not measured
 */
public data class BundleSizes(
    val totalBytes: Long,
    val plannedMemoryBytes: Long?,
    val frozenBytes: Long?,
)

/**
 * Everything a phone must know of a bundle before it opens another file.
 *
 * @property name of the bundle
 * @property version as its author counts; a newer one keeps what was learned where the frozen weights are the same
 * @property programs signatures, the same on every engine
 * @property engines files by name of the engine
 * @property tensors what changes on the device
 * @property frozenSha256 digest of the frozen weights, 64 hex digits; null where the bundle does not say
 * @property modules what was put into the backbone
 * @property task what the model predicts
 * @property encoder how examples become rows; null for arrays of any kind
 * @property tokenizer path of the tokenizer in the bundle; null without text
 * @property plan path of the plan
 * @property strategy which `pfl serve` runs in rounds with the bundle; a device only keeps it
 * @property values path of the device tensors' shipped values
 * @property golden path of the golden calls
 * @property limits what a device must not exceed
 * @property measured sizes
 * @property files every other file by its path
 * @property weights how frozen weights are stored; null for float32
 */
public data class Manifest(
    val name: String,
    val version: String,
    val programs: List<ProgramSpec>,
    val engines: Map<String, EngineEntry>,
    val tensors: List<DeviceTensor>,
    val frozenSha256: String?,
    val modules: List<ModuleEntry>,
    val task: TaskEntry,
    val encoder: EncoderEntry?,
    val tokenizer: String?,
    val plan: String,
    val strategy: JsonObject?,
    val values: String,
    val golden: String,
    val limits: Limits,
    val measured: BundleSizes,
    val files: Map<String, FileEntry>,
    val weights: WeightsEntry? = null,
) {
    /**
     * The program called [name].
     *
     * @throws UnknownNameException there is none
     */
    public fun program(name: String): ProgramSpec =
        programs.find { it.name == name }
            ?: throw UnknownNameException("bundle '${this.name}' has no program '$name'", near(name, programs.map { it.name }))

    /**
     * The files of the engine called [name].
     *
     * @throws EngineUnavailableException the bundle has none for it
     */
    public fun engine(name: String): EngineEntry =
        engines[name] ?: throw EngineUnavailableException(
            "bundle '${this.name}' has no programs for engine '$name'",
            "${near(name, engines.keys)} Or export the model for that engine too",
        )

    /** The inputs of a program that come from data, not from device tensors. */
    public fun batchInputs(program: String): List<TensorSpec> {
        val state = tensors.mapTo(HashSet()) { it.name }
        return program(program).inputs.filter { it.name !in state }
    }
}
