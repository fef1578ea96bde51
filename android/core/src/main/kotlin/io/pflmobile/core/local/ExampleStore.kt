package io.pflmobile.core.local

import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.errors.TensorFileException
import io.pflmobile.core.files.Safetensors
import io.pflmobile.core.tensors.Tensor

/** What an example is. */
public sealed interface Payload {
    /** The word for it in a database: `text` or `arrays`. */
    public val kind: String

    /** The bytes to store. */
    public fun encode(): ByteArray

    /**
     * A text, for a bundle with an encoder.
     *
     * @property text as it was said
     */
    public class Text(
        public val text: String,
    ) : Payload {
        /** `text`. */
        override val kind: String get() = TEXT

        override fun encode(): ByteArray = text.encodeToByteArray()
    }

    /**
     * One row.
     *
     * @property arrays by name as the inputs of the bundle's programs, `weight` among them, each with a first axis of 1
     */
    public class Arrays(
        public val arrays: Map<String, Tensor>,
    ) : Payload {
        /** `arrays`. */
        override val kind: String get() = ARRAYS

        override fun encode(): ByteArray = Safetensors.write(arrays)
    }

    /** Reads what was stored. */
    public companion object {
        private const val TEXT = "text"
        private const val ARRAYS = "arrays"

        /**
         * What was encoded.
         *
         * @throws StateException the bytes are damaged, or of another kind
         */
        public fun decode(
            kind: String,
            data: ByteArray,
        ): Payload =
            try {
                when (kind) {
                    TEXT -> Text(data.decodeToString(throwOnInvalidSequence = true))
                    ARRAYS -> Arrays(Safetensors.read(data, "an example").tensors)
                    else -> throw StateException("an example is of the kind '$kind'", "update the app, or erase the example")
                }
            } catch (error: TensorFileException) {
                throw damaged(error)
            } catch (error: CharacterCodingException) {
                throw damaged(error)
            }

        private fun damaged(error: Exception) = StateException("an example is damaged: ${error.message}", "erase it", error)
    }
}

/**
 * One stored example.
 *
 * @property id increases with every addition; never used twice, until all are erased
 * @property created seconds since 1970, by the clock of that moment
 * @property payload the text or the arrays
 */
public class Example(
    public val id: Long,
    public val created: Double,
    public val payload: Payload,
)

/**
 * What is kept; the oldest examples go first. Null is no limit.
 *
 * @property maxExamples number of examples
 * @property maxAge seconds since an example was made
 * @property maxBytes payload bytes in all
 * @throws ConfigException a limit that keeps nothing
 */
public data class Retention(
    val maxExamples: Int? = 10_000,
    val maxAge: Double? = null,
    val maxBytes: Long? = 64L shl 20,
) {
    init {
        for ((name, value) in mapOf("maxExamples" to maxExamples, "maxAge" to maxAge, "maxBytes" to maxBytes)) {
            if (value != null && !(value.toDouble() > 0)) {
                throw ConfigException("$name is $value", "give a limit above 0, or null for no limit")
            }
        }
    }
}

/**
 * The device's own examples: bounded, inspectable, erasable. A trained state can still remember what was erased here.
 *
 * Calls may come from any thread; they are done one after the other. All of them throw [StateException] where the store is damaged or
 * closed, and [io.pflmobile.core.errors.StorageFullException] where the disk is full; nothing is changed then.
 */
public interface ExampleStore : AutoCloseable {
    /** Keeps an example, durable when this returns, then applies the limits; its id, or null where a limit removed it at once. */
    public fun add(payload: Payload): Long?

    /** The examples, oldest first; with [newest] only so many of the newest. */
    public fun examples(newest: Int? = null): List<Example>

    /** How many there are. */
    public fun count(): Int

    /** Erases examples by their ids, leaving no trace in the store's files; returns how many there were. */
    public fun erase(ids: Collection<Long>): Int

    /** Erases everything; returns how many there were. */
    public fun eraseAll(): Int

    /** Frees the store; what was kept stays. */
    override fun close()
}
