"""The update rule of ``local/update.py`` over rows of floats, one row for each client."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pfl_mobile.local.update import integer_power
from pfl_mobile.plan.optimizers import AdamW, Momentum
from pfl_mobile.plan.phases import TrainPhase

if TYPE_CHECKING:
    from pfl_mobile.vectorized.lanes import Lanes


#: Floats of all lanes that the rule works on at a time, so that what it makes in between stays in the cache.
BLOCK = 1 << 15


def lane_column(values: np.ndarray, device: torch.device) -> Tensor:
    """One float32 number for each lane, as a column."""
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(device).unsqueeze(1)


def _factor(values: np.ndarray, device: torch.device) -> float | Tensor:
    """A float32 factor for each lane: one number where all are the same, as they mostly are."""
    if (values == values[0]).all():
        return float(np.float32(values[0]))
    return lane_column(values, device)


class LaneUpdateRule:
    """The rule of one train phase with its optimizer state.

    Args:
        phase: names the terms.
        lanes: where the sets come from.
        group: names of the trained tensors.
        flat: the trained values [lanes, size], changed in place.

    Raises:
        UnknownNameError, TensorMismatchError: a set is missing, or lacks a tensor.
    """

    def __init__(self, phase: TrainPhase, lanes: Lanes, group: list[str], flat: Tensor) -> None:
        self.phase, self.flat = phase, flat
        self.ranges = lanes.layout.ranges(group)

        def needed(name: str | None) -> Tensor | None:
            if name is None:
                return None
            values = lanes.named(name)
            values.need(group, f"the set {name!r}")
            # what trains may be its own anchor: then the pull is taken as it stands, and is zero
            return values.flat

        self.anchor, self.control, self.mask = (
            needed(name) for name in (phase.anchor, phase.control, phase.mask)
        )
        self.mu = needed(phase.mu) if isinstance(phase.mu, str) else phase.mu
        width = max(BLOCK // len(flat), 64) if flat.device.type == "cpu" else flat.shape[1]
        self.blocks = [
            slice(a, min(a + width, r.stop)) for r in self.ranges for a in range(r.start, r.stop, width)
        ]
        self.state: list[dict[str, Tensor]] = [{} for _ in self.blocks]
        optimizer = phase.optimizer
        self.plain = (
            optimizer.kind == "sgd"
            and not optimizer.weight_decay
            and phase.clip is None
            and (phase.anchor is None or phase.mu == 0)
            and phase.control is None
            and phase.mask is None
        )

    def mix(self, out: Tensor, one: Tensor, other: Tensor, alpha: float) -> None:
        """out <- alpha * one + (1 - alpha) * other."""
        for r in self.ranges:
            if alpha == 1:
                out[:, r] = one[:, r]
            elif alpha == 0:
                out[:, r] = other[:, r]
            else:
                out[:, r] = one[:, r] * alpha + other[:, r] * (1 - alpha)

    def look(self, out: Tensor, x: Tensor, gradient: Tensor, step: float) -> None:
        """out <- x - step * gradient."""
        for r in self.ranges:
            out[:, r] = x[:, r] - gradient[:, r] * step

    def apply(self, step: int, active: int, gradient: Tensor, rates: np.ndarray) -> None:
        """One step of the first ``active`` lanes.

        Args:
            step: number of the step, from 0.
            active: how many lanes take it.
            gradient: of the mean loss [lanes, size].
            rates: learning rates, float64 [active].
        """
        scale = self._clip(gradient[:active])
        for r, state in zip(self.blocks, self.state, strict=True):
            self._range(step, active, gradient[:active, r], rates, r, state, scale)

    def _clip(self, gradient: Tensor) -> Tensor | None:
        limit = self.phase.clip
        if limit is None:
            return None
        parts = [gradient[:, r] for r in self.ranges]
        squares = torch.stack([torch.bmm(g.unsqueeze(1), g.unsqueeze(2)).view(-1) for g in parts])
        norm = squares.sum(0, dtype=torch.float64).sqrt()
        if not (
            (norm > 1e-15) & (norm < 1e15)
        ).all():  # the squares may not fit float32; rare, and ten times slower
            wide = [torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in parts]
            norm = torch.linalg.vector_norm(torch.stack(wide), dim=0)
        return torch.where(norm > limit, limit / norm, 1.0).to(torch.float32).unsqueeze(1)

    def _range(
        self,
        step: int,
        active: int,
        d: Tensor,
        rates: np.ndarray,
        r: slice,
        state: dict[str, Tensor],
        scale: Tensor | None,
    ) -> None:
        def part(values: Tensor) -> Tensor:
            return values[:active, r] if len(values) > 1 else values[:, r]

        x = self.flat[:active, r]
        if scale is not None:
            d = d * scale
        pull = part(self.mu) if isinstance(self.mu, Tensor) else self.mu
        explicit = self.phase.prox == "explicit"
        if self.anchor is not None and explicit:
            d = d + (x - part(self.anchor)) * pull
        if self.control is not None:
            d = d + part(self.control)
        mask = None if self.mask is None else part(self.mask)
        change, decay = self._optimizer(step, active, x, d, rates, state)
        if decay is not None:
            x.sub_(decay if mask is None else mask * decay)
        x.sub_(change if mask is None else mask * change)
        if self.anchor is not None and not explicit:
            if isinstance(pull, Tensor):
                strength = _factor(rates, x.device) * pull
            else:
                strength = _factor(rates.astype(np.float32) * np.float32(pull), x.device)
            back = (x - part(self.anchor)) * (strength / (strength + 1))
            x.sub_(back if mask is None else mask * back)

    def _optimizer(
        self, step: int, active: int, x: Tensor, d: Tensor, rates: np.ndarray, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        optimizer = self.phase.optimizer

        def slot(name: str) -> Tensor:
            if name not in state:
                state[name] = torch.zeros_like(x)
            return state[name][:active]

        if isinstance(optimizer, AdamW):
            beta1, beta2 = optimizer.betas
            m, v = slot("m"), slot("v")
            m.add_((d - m).mul_(1 - beta1))
            v.mul_(beta2).add_((d * d).mul_(1 - beta2))
            first = 1 - integer_power(beta1, step + 1)
            second = 1 - integer_power(beta2, step + 1)
            denominator = v.sqrt().div_(math.sqrt(second)).add_(optimizer.eps)
            decay = None
            if optimizer.weight_decay:
                decay = x * _factor(rates * optimizer.weight_decay, x.device)
            return torch.div(m, denominator, out=denominator).mul_(_factor(rates / first, x.device)), decay
        if optimizer.weight_decay:
            d = d + x * optimizer.weight_decay
        if isinstance(optimizer, Momentum):
            m = slot("m")
            m.mul_(optimizer.momentum).add_(d)
            d = d + m * optimizer.momentum if optimizer.nesterov else m
        return d * _factor(rates, x.device), None
