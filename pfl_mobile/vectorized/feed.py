"""The batches of several clients, step by step, gathered by one index operation for many steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.rows import Rows, epoch_order

#: Bytes of gathered rows that are held at a time.
CHUNK_BYTES = 1 << 25


@dataclass
class Helping:
    """What one gradient is taken of: one or several batches of every lane.

    Attributes:
        batches: entry name to tensor [lanes, batch, ...], in order; rows that only pad have weight 0.
        weights: total weight over all batches, float64 [lanes]; 0 for a lane that has no step any more.
    """

    batches: list[dict[str, Tensor]]
    weights: np.ndarray


@dataclass
class Chunk:
    """Several helpings in a row.

    Attributes:
        entries: entry name to tensor [helpings, batches, lanes, batch, ...].
        by_lane: those that were asked for by lane: only the rows of helpings that a lane has, lane after lane,
            [rows, ...].
        weights: total weight of each helping, float64 [helpings, lanes].
    """

    entries: dict[str, Tensor]
    by_lane: dict[str, Tensor]
    weights: np.ndarray

    def helpings(self) -> Iterator[Helping]:
        """One after the other."""
        columns = {name: [t.unbind(0) for t in value.unbind(0)] for name, value in self.entries.items()}
        for t, weights in enumerate(self.weights):
            deep = len(next(iter(columns.values()))[t])
            yield Helping([{name: c[t][j] for name, c in columns.items()} for j in range(deep)], weights)


class Feed:
    """The rows of a group of clients.

    Args:
        rows: of each client, all with positive weight, at least one row each.
        seeds: of each client's shuffles.
        size: rows of a batch.
        entries: which arrays are wanted, ``weight`` among them.
        device: where they go.
    """

    def __init__(
        self,
        rows: Sequence[Rows],
        seeds: Sequence[int],
        size: int,
        entries: Sequence[str],
        device: torch.device,
    ) -> None:
        self.counts = [len(r["weight"]) for r in rows]
        self.seeds, self.size, self.device = list(seeds), size, device
        self.bases = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        self.parts = {n: [torch.from_numpy(np.ascontiguousarray(r[n])) for r in rows] for n in entries}
        self._joined: dict[str, Tensor] = {}

    def steps(self, phase: TrainPhase) -> list[int]:
        """Optimizer steps of each client in this phase."""
        return [phase.optimizer_steps(count, self.size) for count in self.counts]

    def in_order(self) -> Iterator[Helping]:
        """Every row once as it is, one batch at a time, for evaluation."""
        lanes = [_Lane(n, b, self.size, 1, lambda _, n=n: np.arange(n)) for n, b in self._lanes()]  # type: ignore[misc]
        for chunk in self._gather(lanes, [lane.helpings for lane in lanes], 1):
            yield from chunk.helpings()

    def train(self, phase: TrainPhase, index: int) -> Iterator[Helping]:
        """The batches of a train phase, until every lane has done its steps; with lookahead, two for each step."""
        for chunk in self.chunks(phase, index):
            yield from chunk.helpings()

    def chunks(
        self, phase: TrainPhase, index: int, by_lane: Collection[str] = (), most: int | None = None
    ) -> Iterator[Chunk]:
        """The helpings of a train phase, many at a time.

        Args:
            phase: the phase.
            index: its place among the plan's unrolled phases.
            by_lane: entries that are wanted by lane.
            most: helpings in a chunk, at most.
        """
        used = phase.gradients_per_step
        lanes = []
        for (count, base), seed in zip(self._lanes(), self.seeds, strict=True):
            each = phase.batches_per_gradient(-(-count // self.size))
            order = functools.partial(epoch_order, count, seed, index)
            lanes.append(_Lane(count, base, self.size, each, order))
        totals = [steps * used for steps in self.steps(phase)]
        if phase.hold_batch:
            first = list(self._gather(lanes, [used] * len(lanes), used, by_lane))
            for _ in range(max(totals) // used):
                yield from first
        else:
            yield from self._gather(lanes, totals, used, by_lane, most)

    def _lanes(self) -> list[tuple[int, int]]:
        return [(count, int(base)) for count, base in zip(self.counts, self.bases, strict=True)]

    def _gather(
        self,
        lanes: list[_Lane],
        totals: list[int],
        used: int,
        by_lane: Collection[str] = (),
        most: int | None = None,
    ) -> Iterator[Chunk]:
        deep = max(lane.each for lane in lanes)
        row_bytes = sum(own[0][0].numel() * own[0].element_size() for own in self.parts.values())
        chunk = max(CHUNK_BYTES // (row_bytes * self.size * len(lanes) * deep) // used, 1) * used
        chunk = chunk if most is None else min(chunk, most)
        for begin in range(0, max(totals), chunk):
            end = min(begin + chunk, max(totals))
            index = np.empty((end - begin, deep, len(lanes), self.size), np.int64)
            valid = np.zeros(index.shape, bool)
            for k, (lane, total) in enumerate(zip(lanes, totals, strict=True)):
                lane.write(index[:, :, k], valid[:, :, k], begin, min(end, total))
            own = [max(min(end, total) - begin, 0) for total in totals]
            yield self._take(index, valid, by_lane, own)

    def _take(
        self, index: np.ndarray, valid: np.ndarray, by_lane: Collection[str], helpings: list[int]
    ) -> Chunk:
        flat = torch.from_numpy(index.reshape(-1)).to(self.device)
        entries, apart = {}, {}
        for name, own in self.parts.items():
            if name in by_lane:
                apart[name] = self._take_by_lane(own, index, helpings)
                continue
            if name not in self._joined:
                self._joined[name] = (own[0] if len(own) == 1 else torch.cat(own)).to(self.device)
            rows = torch.index_select(self._joined[name], 0, flat)
            if name == "weight" and not valid.all():
                rows[torch.from_numpy(np.flatnonzero(~valid.reshape(-1))).to(self.device)] = 0
            entries[name] = rows.view(*index.shape, *own[0].shape[1:])
        weights = entries["weight"].cpu().numpy().reshape(*index.shape[:3], -1).sum((1, 3), dtype=np.float64)
        return Chunk(entries, apart, weights)

    def _take_by_lane(self, own: list[Tensor], index: np.ndarray, helpings: list[int]) -> Tensor:
        counts = [n * index.shape[1] * index.shape[3] for n in helpings]
        taken = torch.empty(sum(counts), *own[0].shape[1:], dtype=own[0].dtype)
        for k, (part, place) in enumerate(zip(own, taken.split(counts), strict=True)):
            local = torch.from_numpy(index[: helpings[k], :, k].reshape(-1) - self.bases[k])
            torch.index_select(part, 0, local, out=place)
        return taken.to(self.device)


class _Lane:
    """Row numbers of one client's helpings, epoch after epoch; ``order`` gives the rows' order in an epoch."""

    def __init__(
        self, count: int, base: int, size: int, each: int, order: Callable[[int], np.ndarray]
    ) -> None:
        self.count, self.base, self.size, self.each, self.order = count, base, size, each, order
        self.helpings = -(-count // (size * each))

    def write(self, index: np.ndarray, valid: np.ndarray, begin: int, end: int) -> None:
        """Fill helpings begin..end - 1 into [helpings, batches, size]; the rest repeats the first row, invalid."""
        index[...] = self.base
        shape = (self.helpings, self.each, self.size)
        padded = np.full(self.helpings * self.each * self.size, self.base, np.int64)
        true = (np.arange(len(padded)) < self.count).reshape(shape)
        for epoch in range(begin // self.helpings, -(-end // self.helpings)):
            padded[: self.count] = self.order(epoch)
            padded[: self.count] += self.base
            first = epoch * self.helpings
            own = slice(max(begin - first, 0), min(end - first, self.helpings))
            place = slice(max(first - begin, 0), min(first + self.helpings, end) - begin)
            index[place, : self.each] = padded.reshape(shape)[own]
            valid[place, : self.each] = true[own]
