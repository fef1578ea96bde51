@file:UseSerializers(StrictDouble::class, StrictBoolean::class)

package io.pflmobile.core.plan

import io.pflmobile.core.files.StrictBoolean
import io.pflmobile.core.files.StrictDouble
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.UseSerializers

/** The optimizers that a train phase can name. */
@Serializable
internal sealed interface Optimizer {
    val lr: Double
    val weightDecay: Double

    /** Its name in JSON. */
    val kind: String
}

/** theta <- theta - lr * (d + weightDecay * theta), as `torch.optim.SGD`. */
@Serializable
@SerialName("sgd")
internal data class Sgd(
    override val lr: Double,
    override val weightDecay: Double = 0.0,
) : Optimizer {
    override val kind: String get() = "sgd"

    init {
        checkPositive("lr", lr)
        checkNotNegative("weight_decay", weightDecay)
    }
}

/** SGD with heavy-ball or Nesterov momentum, as `torch.optim.SGD(momentum=...)`; momentum 0 is SGD. */
@Serializable
@SerialName("momentum")
internal data class Momentum(
    override val lr: Double,
    val momentum: Double = 0.9,
    val nesterov: Boolean = false,
    override val weightDecay: Double = 0.0,
) : Optimizer {
    override val kind: String get() = "momentum"

    init {
        checkPositive("lr", lr)
        checkFraction("momentum", momentum)
        checkNotNegative("weight_decay", weightDecay)
    }
}

/** Adam with decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW`. */
@Serializable
@SerialName("adamw")
internal data class AdamW(
    override val lr: Double,
    val betas: List<Double> = listOf(0.9, 0.999),
    val eps: Double = 1e-8,
    override val weightDecay: Double = 0.01,
) : Optimizer {
    override val kind: String get() = "adamw"

    init {
        checkPositive("lr", lr)
        if (betas.size != 2) invalid("betas: two numbers are needed")
        betas.forEach { checkFraction("betas", it) }
        checkPositive("eps", eps)
        checkNotNegative("weight_decay", weightDecay)
    }
}
