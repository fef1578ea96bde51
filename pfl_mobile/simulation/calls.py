"""Compiled functions with the clients' tensors in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfl_mobile.simulation.compiled import SCALE
from pfl_mobile.simulation.deferred import MOST_ROWS, Deferral, Segment
from pfl_mobile.simulation.feed import Chunk
from pfl_mobile.simulation.lanes import Lanes
from pfl_mobile.simulation.steps import Steps


class Call:
    """One compiled function with the clients' tensors in place."""

    def __init__(
        self,
        steps: Steps,
        lanes: Lanes,
        size: int,
        flat: Tensor,
        group: Sequence[str] | None,
        *,
        sgd: bool,
        common: bool = False,
    ) -> None:
        kind = "evaluate" if group is None else "step"
        common = common and size > 1
        single = size == 1 or common
        self.function = steps.function(kind, size, names=group, sgd=sgd, common=common)
        self.size, self.device = size, steps.device
        self.before: list[str] = []
        self.tensors: list[Tensor] = []
        for name in steps.inputs(kind, size, common=common):
            if name == SCALE or name in steps.batch:
                self.before.append(name)
            elif name in lanes.layout.places:
                source = flat if group is None or name in group else lanes.theta
                self.tensors.append(lanes.layout.view(source[:size], name, single=single))
            else:
                self.tensors.append(lanes.others[name][0] if single else lanes.others[name][:size])

    def __call__(self, batch: dict[str, Tensor], scale: np.ndarray | None) -> tuple[Tensor, ...]:
        """The outputs for one batch of every lane."""
        arguments = []
        for name in self.before:
            if name == SCALE and scale is not None:
                value = torch.from_numpy(scale.astype(np.float32)).to(self.device)
                arguments.append(value[0] if self.size == 1 else value)
            else:
                arguments.append(batch[name][0] if self.size == 1 else batch[name][: self.size])
        result: tuple[Tensor, ...] = self.function(*arguments, *self.tensors)
        return result

    def descend(self, chunk: Chunk, part: slice, rates: np.ndarray) -> np.ndarray:
        """Steps of plain SGD over a part of a chunk; the sums of the mean losses, float64 [lanes].

        Args:
            chunk: helpings of one batch each.
            part: which of them.
            rates: learning rates, float64 [helpings of the part, lanes].
        """
        size = self.size
        w = chunk.weights[part, :size]
        scales = _quotient(rates[:, :size], w, self.device)
        columns: list[Sequence[Tensor]] = []
        for name in self.before:
            value = scales if name == SCALE else chunk.entries[name][part, 0, :size]
            columns.append((value[:, 0] if size == 1 else value).unbind(0))
        function, tensors = self.function, self.tensors
        losses = [function(*arguments, *tensors) for arguments in zip(*columns, strict=True)]
        return _mean_losses(losses, w)


class DeferredCall:
    """Steps of plain SGD with some weights changed at the end of each segment only."""

    def __init__(
        self,
        steps: Steps,
        lanes: Lanes,
        flat: Tensor,
        group: Sequence[str],
        function: Callable[..., Any],
        inputs: Sequence[str],
        deferrals: Sequence[Deferral],
    ) -> None:
        self.function, self.device = function, steps.device
        self.lanes, self.size = len(lanes.clients), steps.size
        self.before: list[str] = []
        self.tensors: list[Tensor] = []
        for name in inputs:
            if name == SCALE or name in steps.batch:
                self.before.append(name)
            elif name in lanes.layout.places:
                source = flat if name in group else lanes.theta
                self.tensors.append(lanes.layout.view(source, name, single=self.lanes == 1))
            elif name in lanes.others:
                value = lanes.others[name]
                self.tensors.append(value[0] if self.lanes == 1 else value)
        self.weights = [(lanes.layout.view(flat, d.weight), d.entry) for d in deferrals]

    def descend(self, chunk: Chunk, counts: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """All steps of a chunk; the sums of the mean losses, float64 [lanes].

        Args:
            chunk: helpings of one batch each.
            counts: steps that each lane has left.
            rates: learning rates, float64 [helpings, lanes].
        """
        w = chunk.weights
        scales = _quotient(rates, w, self.device)
        single = self.lanes == 1
        columns: list[Sequence[Tensor]] = []
        for name in self.before:
            value = scales if name == SCALE else chunk.entries[name][:, 0]
            columns.append((value[:, 0] if single else value).unbind(0))
        arguments = list(zip(*columns, strict=True))
        losses: list[Tensor] = []
        parts = -(-len(w) * self.size // MOST_ROWS)
        ends = [len(w) * (k + 1) // parts for k in range(parts)]
        for begin, end in zip([0, *ends], ends, strict=False):
            own = np.clip(counts - begin, 0, end - begin).tolist()
            rows = slice(begin * self.size, end * self.size)
            segments = [
                Segment(chunk.entries[e][:, rows], weight, self.size, own) for weight, e in self.weights
            ]
            for step in range(end - begin):
                products = [segment.before(step) for segment in segments]
                loss, *gradients = self.function(*arguments[begin + step], *self.tensors, *products)
                losses.append(loss)
                for segment, gradient in zip(segments, gradients, strict=True):
                    segment.after(step, gradient)
            for segment in segments:
                segment.finish()
        return _mean_losses(losses, w)


def _quotient(rates: np.ndarray, weights: np.ndarray, device: torch.device) -> Tensor:
    """rates / weights as float32; 0 where a lane has no weight."""
    quotient = np.divide(rates, weights, out=np.zeros_like(weights), where=weights > 0)
    return torch.from_numpy(quotient.astype(np.float32)).to(device)


def _mean_losses(losses: list[Tensor], weights: np.ndarray) -> np.ndarray:
    """Sum over the steps of each lane's mean loss, from its loss sums and weights [steps, lanes]."""
    sums = torch.stack(losses).cpu().numpy().reshape(weights.shape).astype(np.float64)
    total: np.ndarray = np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0).sum(0)
    return total
