"""The one update rule, over float32 tensors by name.

    g  = clip(gradients)
    d  = g + mu * (theta - anchor) + control
    theta <- theta - lr * M (*) opt(d)

Kotlin and Swift repeat this file operation by operation and get the same bits (conformance/). So:

* Every elementwise operation is one IEEE float32 operation, rounded at once; nothing is fused. Expressions
  are evaluated in the order written here.
* Scalars are computed in float64 and cast to float32 just before they meet an array: marked ``f32(...)``.
* The global norm is one float64 accumulator over all tensors in order of name (by Unicode code point), each
  in C order: total += double(x) * double(x), one element after the other.
* A power is computed by ``integer_power`` (multiplications only), because pow() differs between libraries.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import NonFiniteError, TensorMismatchError
from pfl_mobile.plan.optimizers import AdamW, Momentum, Sgd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Tensors = Mapping[str, np.ndarray]

f32 = np.float32


@np.errstate(over="ignore", invalid="ignore")  # what overflows is reported by check_finite
def mean_gradients(sums: Tensors, weight: float) -> dict[str, np.ndarray]:
    """Gradient of the mean loss: sums / f32(weight).

    Raises:
        NonFiniteError: the weight is not positive, or a sum is NaN or infinite.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise NonFiniteError(
            f"the batch has total weight {weight}",
            mend="check the weights of the examples: one must be positive",
        )
    for name in sorted(sums):
        check_finite(name, sums[name], "the gradient of")
    return {name: np.asarray(sums[name] / f32(weight), dtype=f32) for name in sums}


def global_norm(tensors: Tensors) -> float:
    """L2 norm over all tensors together, in float64 and in order of name."""
    if not tensors:
        return 0.0
    squares = [np.square(tensors[name].reshape(-1), dtype=np.float64) for name in sorted(tensors)]
    flat = np.concatenate([np.zeros(1), *squares])
    # add.accumulate adds strictly one after the other; np.sum would add in pairs.
    return math.sqrt(float(np.add.accumulate(flat)[-1]))


def clip(tensors: Tensors, limit: float | None) -> dict[str, np.ndarray]:
    """Scale all tensors by f32(limit / norm) when their global norm is above ``limit``."""
    norm = global_norm(tensors) if limit is not None else 0.0
    if limit is None or norm <= limit:
        return dict(tensors)
    scale = f32(limit / norm)
    return {name: np.asarray(value * scale, dtype=f32) for name, value in tensors.items()}


def integer_power(base: float, exponent: int) -> float:
    """base ** exponent in float64 by squaring, lowest bit of the exponent first."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


@np.errstate(over="ignore", invalid="ignore")
def update(
    theta: Tensors,
    gradients: Tensors,
    optimizer: Sgd | Momentum | AdamW,
    state: Tensors,
    *,
    lr: float | None = None,
    clip_norm: float | None = None,
    anchor: Tensors | None = None,
    mu: float | Tensors = 0.0,
    implicit: bool = False,
    control: Tensors | None = None,
    mask: Tensors | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One step; the arguments are not changed.

    Args:
        theta: float32 values of the trained group.
        gradients: of the mean loss, same names and shapes.
        optimizer: kind and hyper-parameters.
        state: what the previous call returned; empty at first. Keys: ``step`` int64 [1], ``m.<tensor>``,
            ``v.<tensor>``.
        lr: learning rate of this step when a schedule changes it.
        clip_norm: largest global norm of the gradients.
        anchor: where the proximal term pulls to.
        mu: strength of the pull, a number or one array per tensor (its shape, or one element).
        implicit: apply the pull as an exact proximal step after the optimizer, not through the gradient.
        control: added to the gradient.
        mask: multiplied into the change, weight decay and pull included. 0 keeps an entry bit for bit.

    Returns:
        The new theta and the new optimizer state.

    Raises:
        NonFiniteError: a new value is NaN or infinite.
        TensorMismatchError: a set lacks a tensor or has another shape.
    """
    rate = optimizer.lr if lr is None else lr
    step = int(state["step"][0]) + 1 if "step" in state else 1
    new_state: dict[str, np.ndarray] = {"step": np.array([step], dtype=np.int64)}
    new_theta: dict[str, np.ndarray] = {}
    clipped = clip({name: _same(gradients, name, theta[name], "gradients") for name in theta}, clip_norm)
    for name in sorted(theta):
        x = theta[name]
        d = clipped[name]
        pull = _strength(mu, name, x) if anchor is not None else f32(0)
        if anchor is not None and not implicit:
            d = d + pull * (x - _same(anchor, name, x, "anchor"))
        if control is not None:
            d = d + _same(control, name, x, "control")
        m = None if mask is None else _same(mask, name, x, "mask")
        change, decay = _optimizer_step(name, x, d, optimizer, rate, step, state, new_state)
        if decay is not None:
            x = x - (decay if m is None else m * decay)
        x = x - (change if m is None else m * change)
        if anchor is not None and implicit:
            a = _same(anchor, name, x, "anchor")
            strength = f32(rate) * pull
            back = (strength / (f32(1) + strength)) * (x - a)
            x = x - (back if m is None else m * back)
        x = np.asarray(x, dtype=f32)
        check_finite(name, x, "after this step")
        new_theta[name] = x
    return new_theta, new_state


def _optimizer_step(
    name: str,
    x: np.ndarray,
    d: np.ndarray,
    optimizer: Sgd | Momentum | AdamW,
    lr: float,
    step: int,
    old: Tensors,
    new: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray | None]:
    """What to subtract from x: lr * opt(d), and the decoupled weight decay that is subtracted before it."""
    if isinstance(optimizer, AdamW):
        beta1, beta2 = optimizer.betas
        m = _slot(old, f"m.{name}", x)
        v = _slot(old, f"v.{name}", x)
        m = m + (d - m) * f32(1 - beta1)
        v = v * f32(beta2) + (d * d) * f32(1 - beta2)
        new[f"m.{name}"], new[f"v.{name}"] = m, v
        correction1 = 1 - integer_power(beta1, step)
        correction2 = 1 - integer_power(beta2, step)
        denominator = np.sqrt(v) / f32(math.sqrt(correction2)) + f32(optimizer.eps)
        decay = f32(lr * optimizer.weight_decay) * x if optimizer.weight_decay else None
        return f32(lr / correction1) * (m / denominator), decay
    if optimizer.weight_decay:
        d = d + f32(optimizer.weight_decay) * x
    if isinstance(optimizer, Momentum):
        m = f32(optimizer.momentum) * _slot(old, f"m.{name}", x) + d
        new[f"m.{name}"] = m
        d = d + f32(optimizer.momentum) * m if optimizer.nesterov else m
    return f32(lr) * d, None


def mix(one: Tensors, other: Tensors, alpha: float) -> dict[str, np.ndarray]:
    """f32(alpha) * one + f32(1 - alpha) * other; exactly ``one`` at 1 and ``other`` at 0."""
    if alpha in (0, 1):
        source = one if alpha == 1 else other
        return {name: _same(source, name, one[name], "mix") for name in one}
    a, b = f32(alpha), f32(1 - alpha)
    return {n: np.asarray(a * one[n] + b * _same(other, n, one[n], "mix"), dtype=f32) for n in one}


def toward(x: Tensors, y: Tensors, rate: float) -> dict[str, np.ndarray]:
    """x - f32(rate) * (x - y); exactly y at rate 1."""
    if rate == 1:
        return {name: _same(y, name, x[name], "toward") for name in x}
    r = f32(rate)
    return {n: np.asarray(x[n] - r * (x[n] - _same(y, n, x[n], "toward")), dtype=f32) for n in x}


@np.errstate(over="ignore", invalid="ignore")
def combine(like: Tensors, terms: Sequence[tuple[Tensors, float]]) -> dict[str, np.ndarray]:
    """f32(times_1) * set_1 + f32(times_2) * set_2 + ..., added in order, of the tensors that ``like`` names.

    Raises:
        NonFiniteError: a new value is NaN or infinite.
        TensorMismatchError: a set lacks a tensor or has another shape.
    """
    made: dict[str, np.ndarray] = {}
    for name, x in like.items():
        parts = [f32(times) * _same(values, name, x, "a combined set") for values, times in terms]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        made[name] = np.asarray(total, dtype=f32)
        check_finite(name, made[name], "the combination for")
    return made


def minus(x: Tensors, gradients: Tensors, rate: float) -> dict[str, np.ndarray]:
    """x - f32(rate) * gradients: the lookahead point."""
    r = f32(rate)
    return {n: np.asarray(x[n] - r * gradients[n], dtype=f32) for n in x}


def check_finite(name: str, value: np.ndarray, what: str) -> None:
    """Raise NonFiniteError naming the tensor if any element is NaN or infinite."""
    if not np.isfinite(value).all():
        raise NonFiniteError(
            f"{what} {name!r}: {int((~np.isfinite(value)).sum())} of {value.size} values are NaN or infinite",
            mend="lower the learning rate or set clip; the state before training is kept",
        )


def _same(values: Tensors, name: str, like: np.ndarray, what: str) -> np.ndarray:
    value = values.get(name)
    if value is None:
        raise TensorMismatchError(
            f"{what} has no tensor {name!r}", mend="give a value for every trained tensor"
        )
    if value.shape != like.shape or value.dtype != f32:
        raise TensorMismatchError(
            f"{what} {name!r} is {value.dtype} {list(value.shape)}, the tensor float32 {list(like.shape)}",
            mend="give float32 of the tensor's shape",
        )
    return value


def _strength(mu: float | Tensors, name: str, like: np.ndarray) -> np.ndarray | np.float32:
    if isinstance(mu, int | float):
        return f32(mu)
    value = mu.get(name)
    if value is not None and value.size == 1:
        value = np.asarray(value, dtype=f32)
        return f32(value.reshape(-1)[0])
    return _same(mu, name, like, "mu")


def _slot(state: Tensors, key: str, like: np.ndarray) -> np.ndarray:
    return state[key] if key in state else np.zeros_like(like)
