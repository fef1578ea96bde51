"""Compiled functions with the clients' tensors in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfl_mobile.vectorized.compiled import SCALE
from pfl_mobile.vectorized.deferred import LateWeight
from pfl_mobile.vectorized.feed import Chunk
from pfl_mobile.vectorized.lanes import Lanes
from pfl_mobile.vectorized.steps import DeferredStep, Steps


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
    """Steps of plain SGD in which some weights are changed later."""

    def __init__(
        self,
        steps: Steps,
        lanes: Lanes,
        flat: Tensor,
        group: Sequence[str],
        late: dict[str, LateWeight],
        sizes: Sequence[int],
    ) -> None:
        self.steps, self.lanes, self.flat, self.group, self.sizes = steps, lanes, flat, group, sizes
        self.deferrals = _found(steps, len(lanes.clients), group).deferrals
        for deferral in self.deferrals:
            if deferral.weight not in late:
                late[deferral.weight] = LateWeight(lanes.layout.view(flat, deferral.weight), None)
        lanes.settle({deferral.weight for deferral in self.deferrals} if late is lanes.late else ())
        self.late = [late[d.weight] for d in self.deferrals]
        self._known: dict[int, tuple[Callable[..., Any], list[str], list[Tensor]]] = {}

    @property
    def entries(self) -> set[str]:
        """The entries of the batch that are wanted by lane."""
        return {deferral.entry for deferral in self.deferrals}

    def descend(self, chunk: Chunk, counts: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """All steps of a chunk, as one segment; the sums of the mean losses, float64 [lanes].

        Args:
            chunk: helpings of one batch each.
            counts: steps that each lane has in it, not increasing.
            rates: learning rates, float64 [helpings, lanes].
        """
        batch = self.steps.size
        rows = (counts[: self._fit(int(np.count_nonzero(counts)))] * batch).tolist()
        biases = [
            None if d.bias is None else self.lanes.layout.view(self.flat[: len(rows)], d.bias)
            for d in self.deferrals
        ]
        segments = [
            late.begin(chunk.by_lane[deferral.entry], rows, bias, batch)
            for late, deferral, bias in zip(self.late, self.deferrals, biases, strict=True)
        ]
        scales = _quotient(rates, chunk.weights, self.steps.device)
        columns = {n: value[:, 0].unbind(0) for n, value in chunk.entries.items()} | {SCALE: scales.unbind(0)}
        total = np.zeros(len(counts))
        losses: dict[int, list[Tensor]] = {}
        for step, live in enumerate((counts > np.arange(len(scales))[:, None]).sum(1).tolist()):
            lanes = self._fit(live)
            function, before, tensors = self._program(lanes)
            arguments = [columns[n][step][0] if lanes == 1 else columns[n][step][:lanes] for n in before]
            products = [segment.before(step, lanes) for segment in segments]
            loss, *gradients = function(*arguments, *tensors, *products)
            losses.setdefault(lanes, []).append(loss)
            for segment, gradient in zip(segments, gradients, strict=True):
                segment.after(step, gradient, lanes)
        for segment, bias in zip(segments, biases, strict=True):
            segment.finish()
            if bias is not None:
                bias.sub_(segment.total)
        step = 0
        for lanes, found in losses.items():
            total[:lanes] += _mean_losses(found, chunk.weights[step : step + len(found), :lanes])
            step += len(found)
        return total

    def _fit(self, live: int) -> int:
        """The smallest compiled number of lanes that holds so many."""
        return next(size for size in self.sizes if size >= live)

    def _program(self, size: int) -> tuple[Callable[..., Any], list[str], list[Tensor]]:
        """The function for so many lanes, the names of its first arguments, and the tensors that follow."""
        if size not in self._known:
            found = _found(self.steps, size, self.group)
            assert found.deferrals == self.deferrals
            before: list[str] = []
            tensors: list[Tensor] = []
            for name in found.inputs:
                if name == SCALE or name in self.steps.batch:
                    before.append(name)
                elif name in self.lanes.layout.places:
                    source = self.flat if name in self.group else self.lanes.rows
                    tensors.append(self.lanes.layout.view(source[:size], name, single=size == 1))
                elif name in self.lanes.others:
                    value = self.lanes.others[name]
                    tensors.append(value[0] if size == 1 else value[:size])
            self._known[size] = found.function, before, tensors
        return self._known[size]


def _found(steps: Steps, lanes: int, group: Sequence[str]) -> DeferredStep:
    found = steps.deferred(lanes, group)
    assert found is not None  # a layer that is wide for one number of lanes is so for all
    return found


def _quotient(rates: np.ndarray, weights: np.ndarray, device: torch.device) -> Tensor:
    """rates / weights as float32; 0 where a lane has no weight."""
    quotient = np.divide(rates, weights, out=np.zeros_like(weights), where=weights > 0)
    return torch.from_numpy(quotient.astype(np.float32)).to(device)


def _mean_losses(losses: list[Tensor], weights: np.ndarray) -> np.ndarray:
    """Sum over the steps of each lane's mean loss, from its loss sums and weights [steps, lanes]."""
    sums = torch.stack(losses).cpu().numpy().reshape(weights.shape).astype(np.float64)
    total: np.ndarray = np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0).sum(0)
    return total
