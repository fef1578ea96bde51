package io.pflmobile.core.bundle

import io.pflmobile.core.bundle.JsonFields.Companion.fault
import io.pflmobile.core.errors.InvalidManifestException
import io.pflmobile.core.errors.SchemaVersionException
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.tensors.DType
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive

/** Reads the bytes of a `manifest.json`; `pfl_mobile/bundle/manifest.schema.json` is its schema. */
internal object ManifestReader {
    /** The newest manifest schema that this version reads. */
    const val SCHEMA_VERSION = 1

    // A manifest with a thousand tensors and three programs has 40,000.
    private const val MOST_VALUES = 300_000

    // The newest version of the piece rules that this version cuts text by.
    private const val PIECE_RULES = 2
    private const val AGAIN = "obtain the bundle again, or export it again"
    private val DIGEST = Regex("[0-9a-f]{64}")
    private val PROGRAM = Regex("[a-z][a-z0-9_]{0,63}")
    private val SCRIPT = Regex("[A-Z][a-z]{3}")

    /**
     * Parses and checks a manifest.
     *
     * @throws SchemaVersionException it is of a newer schema; nothing else of it is looked at
     * @throws io.pflmobile.core.errors.UnsafePathException it names a file outside the bundle
     * @throws InvalidManifestException it is not JSON, or breaks the schema; the first fault is named
     */
    fun parse(data: ByteArray): Manifest {
        val raw =
            try {
                parseJson(data, MOST_VALUES)
            } catch (error: IllegalArgumentException) {
                throw InvalidManifestException("${Paths.MANIFEST} is not valid JSON: ${error.message}", AGAIN, error)
            }
        val version = ((raw as? JsonObject)?.get("schema_version") as? JsonPrimitive)?.takeUnless { it.isString }
        val number = version?.content?.toBigIntegerOrNull()
        if (number != null && number > SCHEMA_VERSION.toBigInteger()) {
            throw SchemaVersionException(
                "${Paths.MANIFEST} has schema version $number; this version reads up to $SCHEMA_VERSION",
                "update the app, or export the bundle with the version in use here",
            )
        }
        val kind = (raw as? JsonObject)?.get("kind") as? JsonPrimitive
        if (number == null || kind?.isString != true || kind.content != "pfl-bundle") {
            throw InvalidManifestException(
                "${Paths.MANIFEST} is not of a bundle: it needs an integer schema_version and kind 'pfl-bundle'",
                AGAIN,
            )
        }
        try {
            if (data[0] != '{'.code.toByte() && data[0] !in SPACE) fault("", "it is not plain UTF-8")
            if (!whole(raw)) fault("", "it has a half of a surrogate pair")
            // Before other faults: whoever leads out of a bundle is told so.
            paths(raw).forEach(Paths::check)
            return manifest(raw).also(Rules::check)
        } catch (error: FieldFault) {
            throw InvalidManifestException("${Paths.MANIFEST} is not valid:\n  ${error.message}", AGAIN, error)
        }
    }

    private val SPACE = " \t\r\n".map { it.code.toByte() }

    private fun manifest(raw: JsonObject): Manifest =
        fields(raw, "") {
            required("schema_version") { element, where ->
                if ((element as JsonPrimitive).content !=
                    "1"
                ) {
                    fault(where, "it is not 1")
                } else {
                    1
                }
            }
            required("kind", JsonFields::text)
            Manifest(
                name = required("name", JsonFields::name),
                version = required("version", JsonFields::name),
                programs = required("programs", filled(JsonFields.list(::program))),
                engines = required("engines", filledMap(JsonFields.map(JsonFields::checkName, ::engine))),
                tensors = required("tensors", JsonFields.list(::deviceTensor)),
                frozenSha256 = nullable("frozen_sha256", ::digest),
                modules = or("modules", emptyList(), JsonFields.list(::module)),
                task = required("task", ::task),
                encoder = nullable("encoder", ::encoder),
                tokenizer = nullable("tokenizer", JsonFields::text),
                plan = or("plan", "plan.json", JsonFields::text),
                strategy = nullable("strategy", ::strategy),
                values = or("values", "tensors.safetensors", JsonFields::text),
                golden = or("golden", "golden.safetensors", JsonFields::text),
                limits = or("limits", Limits(), ::limits),
                measured = required("measured", ::measured),
                files = required("files", JsonFields.map({ path, _ -> path }, ::file)),
                weights = nullable("weights", ::weights),
            )
        }

    private inline fun <T> fields(
        element: JsonElement,
        where: String,
        take: JsonFields.() -> T,
    ): T = JsonFields(element, where).let { fields -> fields.take().also { fields.done() } }

    private fun program(
        element: JsonElement,
        where: String,
    ): ProgramSpec =
        fields(element, where) {
            val name = required("name", JsonFields::text)
            if (!PROGRAM.matches(name)) fault(where, "it has no name of a program")
            ProgramSpec(name, required("inputs", JsonFields.list(::tensor)), required("outputs", filled(JsonFields.list(::tensor))))
        }.also {
            Rules.unique("input of program '${it.name}'", it.inputs.map(TensorSpec::name))
            Rules.unique("output of program '${it.name}'", it.outputs.map(TensorSpec::name))
        }

    private fun tensor(
        element: JsonElement,
        where: String,
    ): TensorSpec =
        fields(element, where) {
            TensorSpec(required("name", JsonFields::name), required("shape", ::shape), required("dtype", ::dtype))
        }

    private fun deviceTensor(
        element: JsonElement,
        where: String,
    ): DeviceTensor =
        fields(element, where) {
            DeviceTensor(
                name = required("name", JsonFields::name),
                role = required("role", choice(Role.entries, Role::wireName)),
                group = nullable("group", JsonFields::name),
                shape = required("shape", ::shape),
                dtype = required("dtype", ::dtype),
                update = required("update", choice(TensorUpdate.entries, TensorUpdate::wireName)),
                module = nullable("module", JsonFields::name),
            )
        }.also {
            if ((it.role == Role.GROUP) != (it.group != null)) {
                fault(where, "a group is named when, and only when, the role is 'group'")
            }
        }

    private fun module(
        element: JsonElement,
        where: String,
    ): ModuleEntry =
        fields(element, where) {
            ModuleEntry(
                required("name", JsonFields::name),
                required("kind", JsonFields::name),
                or("config", JsonObject(emptyMap()), JsonFields::obj),
            )
        }

    private fun engine(
        element: JsonElement,
        where: String,
    ): EngineEntry =
        fields(element, where) {
            EngineEntry(
                required("files", filledMap(JsonFields.map(JsonFields::checkName, JsonFields::text))),
                or("measured", emptyMap(), JsonFields.map(JsonFields::checkName, JsonFields.count)),
                nullable("runtime", ::runtime),
                nullable("precision", ::precision),
            )
        }

    private fun precision(
        element: JsonElement,
        where: String,
    ): PrecisionEntry =
        fields(element, where) {
            required("kind") { kind, at -> if (JsonFields.text(kind, at) != "mixed") JsonFields.fault(at, "it is no precision") }
            PrecisionEntry(
                required("loss_scale", above(0.0)),
                required("products", JsonFields.count),
                required("of_products", JsonFields.count),
                required("tolerance", above(0.0)).also { if (it > 0.1) JsonFields.fault("$where.tolerance", "it is above 0.1") },
                required("steps", JsonFields.positive),
                required("trained_rel_err", atLeastZero),
            )
        }

    private fun weights(
        element: JsonElement,
        where: String,
    ): WeightsEntry =
        fields(element, where) {
            WeightsEntry(
                kind = required("kind", JsonFields::text),
                group = nullable("group", JsonFields.positive),
                tensors = required("tensors", filledMap(JsonFields.map(JsonFields::checkName, atLeastZero))),
                loss = required("loss", JsonFields::number),
                lossFloat32 = required("loss_float32", JsonFields::number),
                outputRelErr = nullable("output_rel_err", atLeastZero),
            )
        }.also {
            if (it.kind != "int8" && it.kind != "int4") fault("$where.kind", "it is no format of weights")
            if ((it.kind == "int4") != (it.group != null)) fault(where, "a group goes with 'int4'")
        }

    private fun runtime(
        element: JsonElement,
        where: String,
    ): RuntimeEntry = fields(element, where) { RuntimeEntry(required("at_least", ::version), required("verified", ::version)) }

    private fun version(
        element: JsonElement,
        where: String,
    ): String = JsonFields.text(element, where).also { if (!Versions.isPlain(it)) JsonFields.fault(where, "it is no version") }

    private fun file(
        element: JsonElement,
        where: String,
    ): FileEntry = fields(element, where) { FileEntry(required("sha256", ::digest), required("bytes", JsonFields.count)) }

    private fun task(
        element: JsonElement,
        where: String,
    ): TaskEntry =
        fields(element, where) {
            TaskEntry(
                required("kind", choice(TaskKind.entries, TaskKind::wireName)),
                or("metrics", emptyList(), JsonFields.list(JsonFields::name)),
                nullable("vocabulary", JsonFields.positive),
            )
        }

    private fun encoder(
        element: JsonElement,
        where: String,
    ): EncoderEntry =
        fields(element, where) {
            when (required("kind", JsonFields::text)) {
                "text" -> {
                    EncoderEntry.Text(
                        length = required("length", JsonFields.positive),
                        batch = required("batch", JsonFields.positive),
                        vocabulary = required("vocabulary", JsonFields.positive),
                        slots = or("slots", 0L, JsonFields.count),
                        rules = or("rules", 1L, ::rules),
                        subwords = nullable("subwords", ::subwords),
                        scriptsNotServed = or("scripts_not_served", emptyList(), JsonFields.list(::script)),
                    )
                }

                "arrays" -> {
                    EncoderEntry.Arrays(required("batch", JsonFields.positive))
                }

                else -> {
                    fault(where, "its kind is neither 'text' nor 'arrays'")
                }
            }
        }

    private fun rules(
        element: JsonElement,
        where: String,
    ): Long {
        val version = JsonFields.positive(element, where)
        if (version > PIECE_RULES) {
            throw SchemaVersionException(
                "${Paths.MANIFEST} says version $version of the piece rules; this version knows up to $PIECE_RULES",
                "update the app, or export the bundle with the version in use here",
            )
        }
        return version
    }

    private fun script(
        element: JsonElement,
        where: String,
    ): String {
        val code = JsonFields.text(element, where)
        return if (SCRIPT.matches(code)) code else fault(where, "it is no code of a script")
    }

    private fun subwords(
        element: JsonElement,
        where: String,
    ): Subwords =
        fields(element, where) {
            Subwords(
                required("pad", JsonFields.count),
                required("bos", JsonFields.count),
                required("eos", JsonFields.count),
                nullable("unk", JsonFields.count),
            )
        }

    private fun limits(
        element: JsonElement,
        where: String,
    ): Limits =
        fields(element, where) {
            Limits(
                nullable("max_examples", JsonFields.positive),
                nullable("max_steps", JsonFields.positive),
                nullable("max_seconds", JsonFields.positive),
            )
        }

    private fun measured(
        element: JsonElement,
        where: String,
    ): BundleSizes =
        fields(element, where) {
            BundleSizes(
                required("total_bytes", JsonFields.count),
                nullable("planned_memory_bytes", JsonFields.count),
                nullable("frozen_bytes", JsonFields.count),
            )
        }

    private fun strategy(
        element: JsonElement,
        where: String,
    ): JsonObject {
        val settings = JsonFields.map(JsonFields::checkName) { value, _ -> value }
        fields(element, where) {
            required("name", JsonFields::name)
            or("parameters", emptyMap(), settings)
            nullable("fairness", JsonFields::name)
            or("fairness_parameters", emptyMap(), settings)
            nullable("epochs", JsonFields.positive)
            nullable("steps", JsonFields.positive)
            nullable("optimizer", ::optimizer)
            nullable("clip", above(0.0))
        }
        return element as JsonObject
    }

    private fun optimizer(
        element: JsonElement,
        where: String,
    ) {
        fields(element, where) {
            val kind = required("kind", JsonFields::text)
            required("lr", above(0.0))
            or("weight_decay", 0.0, atLeastZero)
            when (kind) {
                "sgd" -> {
                    Unit
                }

                "momentum" -> {
                    or("momentum", 0.9, fraction)
                    or("nesterov", false, JsonFields::boolean)
                }

                "adamw" -> {
                    if (or("betas", listOf(0.9, 0.999), JsonFields.list(fraction)).size != 2) fault(where, "betas are two")
                    or("eps", 1e-8, above(0.0))
                }

                else -> {
                    fault(where, "there is no optimizer '$kind'")
                }
            }
        }
    }

    private fun above(least: Double): (JsonElement, String) -> Double =
        { element, where -> JsonFields.number(element, where).also { if (it <= least) fault(where, "it is not above $least") } }

    private val atLeastZero: (JsonElement, String) -> Double =
        { element, where -> JsonFields.number(element, where).also { if (it < 0) fault(where, "it is below 0") } }

    private val fraction: (JsonElement, String) -> Double =
        { element, where -> atLeastZero(element, where).also { if (it >= 1) fault(where, "it is not below 1") } }

    private fun digest(
        element: JsonElement,
        where: String,
    ): String = JsonFields.text(element, where).also { if (!DIGEST.matches(it)) fault(where, "it is no sha256 in hex") }

    private fun dtype(
        element: JsonElement,
        where: String,
    ): DType = choice(DType.entries, DType::wireName)(element, where)

    private fun shape(
        element: JsonElement,
        where: String,
    ): List<Int> {
        val lengths = JsonFields.list(JsonFields.count)(element, where)
        if (lengths.any { it > Int.MAX_VALUE }) fault(where, "no array of a device is as long")
        return lengths.map { it.toInt() }
    }

    private fun <T : Any> choice(
        all: List<T>,
        name: (T) -> String,
    ): (JsonElement, String) -> T =
        { element, where ->
            val given = JsonFields.text(element, where)
            all.find { name(it) == given } ?: fault(where, "it is none of ${all.joinToString { name(it) }}")
        }

    private fun <T> filled(read: (JsonElement, String) -> List<T>): (JsonElement, String) -> List<T> =
        { element, where -> read(element, where).also { if (it.isEmpty()) fault(where, "it is empty") } }

    private fun <T> filledMap(read: (JsonElement, String) -> Map<String, T>): (JsonElement, String) -> Map<String, T> =
        { element, where -> read(element, where).also { if (it.isEmpty()) fault(where, "it is empty") } }

    /** All texts that stand where a path should. */
    private fun paths(raw: JsonObject): List<String> {
        val engines = (raw["engines"] as? JsonObject)?.values.orEmpty().mapNotNull { (it as? JsonObject)?.get("files") as? JsonObject }
        val named = engines.flatMap { it.values } + listOf("tokenizer", "plan", "values", "golden").mapNotNull { raw[it] }
        return named.mapNotNull { (it as? JsonPrimitive)?.takeIf { path -> path.isString }?.content } +
            (raw["files"] as? JsonObject)?.keys.orEmpty()
    }

    /** Whether all its text can be written in UTF-8. */
    private fun whole(element: JsonElement): Boolean =
        when (element) {
            is JsonNull -> true
            is JsonPrimitive -> whole(element.content)
            is JsonArray -> element.all(::whole)
            is JsonObject -> element.all { (key, value) -> whole(key) && whole(value) }
        }

    private fun whole(text: String): Boolean = text.none(Char::isSurrogate) || Charsets.UTF_8.newEncoder().canEncode(text)
}
