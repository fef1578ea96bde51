package io.pflmobile.core.device

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.bundle.TensorUpdate
import io.pflmobile.core.engines.Session
import io.pflmobile.core.engines.goldenCheck
import io.pflmobile.core.errors.EngineException
import io.pflmobile.core.errors.EngineMismatchException
import io.pflmobile.core.errors.NonFiniteException
import io.pflmobile.core.errors.ProtocolException
import io.pflmobile.core.local.Encoder
import io.pflmobile.core.local.Most
import io.pflmobile.core.local.Programs
import io.pflmobile.core.local.TrainingEncoder
import io.pflmobile.core.local.textEncoder
import io.pflmobile.core.protocol.BundleId
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.Tensor

/**
 * The model that a device trains: a bundle whose programs were checked on this device; see [open].
 *
 * @property id which model it is
 */
public class Model internal constructor(
    public val id: ModelId,
    internal val session: Session,
    internal val tensors: List<DeviceTensor>,
    internal val initial: Map<String, Tensor>,
    internal val encoder: Encoder? = null,
    internal val most: Int? = null,
    internal val work: Most = Most(),
) {
    /** Name of the engine. */
    internal val engine: String get() = session.name

    /** As the protocol names it. */
    internal val bundle: BundleId get() = BundleId(id.name, id.version, id.fingerprint)

    /** No set of values that belongs to this model has more bytes. */
    internal val mostSetBytes: Long get() = 4 * initial.values.sumOf { it.size.toLong() * it.dtype.bytes + 1024 } + (1 shl 20)

    /**
     * Refuses values that do not belong to the model.
     *
     * @throws ProtocolException a tensor that the model does not have, or of another shape or type. One value may stand for a whole
     *   tensor, except in `global`
     * @throws NonFiniteException a value is NaN or infinite
     */
    internal fun checkSet(
        name: String,
        values: Map<String, Tensor>,
    ) {
        val shapes = tensors.filter { it.update == TensorUpdate.GRADIENT }.associate { it.name to it.shape }
        for ((tensor, value) in values) {
            val shape = shapes[tensor]
            val fits = shape != null && (value.shape == shape || (value.size == 1 && name != "global"))
            if (!fits || value !is FloatTensor) {
                throw ProtocolException(
                    "the set '$name' has a tensor '$tensor', ${value.signature}, that this model has not",
                    mend = "update the bundle, or the aggregator's",
                )
            }
            if (!value.values.all { it.isFinite() }) {
                throw NonFiniteException("'$tensor' in the set '$name' is not finite", mend = "ask the operator")
            }
        }
    }

    /** Opens models. */
    public companion object {
        /**
         * Checks that this engine trains as PyTorch did at the export.
         *
         * @param bundle an open bundle
         * @param session its programs on an engine; both stay the caller's to close
         * @throws EngineException there is no program `gradients`, or no golden call of it
         * @throws EngineMismatchException other numbers than PyTorch's. Such a device must not train
         * @throws io.pflmobile.core.errors.DataException the bundle's tokenizer cannot be read
         */
        public fun open(
            bundle: Bundle,
            session: Session,
        ): Model {
            val model = unchecked(bundle, session)
            goldenCheck(bundle, session).require()
            return model
        }

        /** The same before the golden check, for a session that does it when it is first used. */
        internal fun unchecked(
            bundle: Bundle,
            session: Session,
        ): Model {
            val manifest = bundle.manifest
            if ("gradients" !in bundle.golden()) {
                throw EngineException(
                    "bundle '${manifest.name}' has no golden call of the program 'gradients', so nobody knows whether this engine trains " +
                        "it right",
                    mend = "export it again",
                )
            }
            val limits = manifest.limits
            Programs(session, manifest.tensors.mapTo(HashSet()) { it.name })
            return Model(
                ModelId.of(manifest),
                session,
                manifest.tensors,
                bundle.values(),
                textEncoder(bundle)?.let { TrainingEncoder(it) },
                limits.maxExamples?.coerceAtMost(Int.MAX_VALUE.toLong())?.toInt(),
                Most(limits.maxSteps, limits.maxSeconds?.toDouble()),
            )
        }
    }
}
