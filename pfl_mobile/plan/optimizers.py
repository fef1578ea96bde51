"""The optimizers that a train phase can name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pfl_mobile.fields import Frozen, NotNegative, Positive
from pfl_mobile.plan.fields import Fraction


class Sgd(Frozen):
    """theta <- theta - lr * (d + weight_decay * theta), as ``torch.optim.SGD``."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive
    weight_decay: NotNegative = 0.0


class Momentum(Frozen):
    """SGD with heavy-ball or Nesterov momentum, as ``torch.optim.SGD(momentum=...)``; momentum 0 is SGD."""

    kind: Literal["momentum"] = "momentum"
    lr: Positive
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 0.0


class AdamW(Frozen):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as ``torch.optim.AdamW``."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.01


#: Any of the above, told apart by its ``kind``.
Optimizer = Annotated[Sgd | Momentum | AdamW, Field(discriminator="kind")]
