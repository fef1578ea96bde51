package io.pflmobile.core.privacy

/** What may be called private: the one rule of plans, aggregators, studies and devices. */
internal object Limits {
    /** The largest epsilon that a device accepts where its user says nothing. */
    const val DEVICE_EPSILON = 10.0

    /** The largest delta that a device accepts where its user says nothing. */
    const val DEVICE_DELTA = 1e-6

    /** No guarantee is said, planned or accepted with a larger epsilon: with 20 an outcome may be 5 * 10^8 times as probable. */
    const val MOST_EPSILON = 20.0

    /** The same of delta. */
    const val MOST_DELTA = 1e-3

    /** Smaller ones are lost in the arithmetic. */
    const val LEAST_DELTA = 1e-100

    /** Norms outside could not be told from zero or infinity in float32. */
    val CLIP_NORMS = 1e-12..1e12
}
