"""The state of several clients that are trained side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from pfl_mobile.errors import TensorMismatchError, UnknownNameError, near
from pfl_mobile.rows import Rows
from pfl_mobile.vectorized.deferred import LateWeight
from pfl_mobile.vectorized.layout import Layout, non_finite

if TYPE_CHECKING:
    from pfl_mobile.vectorized.feed import Feed

Arrays = Mapping[str, np.ndarray]
#: Floats of all lanes that are worked on at a time, so that what is made in between stays in the cache.
_BLOCK = 1 << 17


@dataclass
class FlatSet:
    """A named set of tensors.

    Attributes:
        flat: float32 [lanes, size], or [1, size] where all clients have the same values.
        names: which tensors it has, one set of names for each row of ``flat``.
    """

    flat: Tensor
    names: list[frozenset[str]]

    def need(self, names: Sequence[str], what: str) -> None:
        """Raises TensorMismatchError when a tensor of ``names`` is missing."""
        for held in self.names:
            missing = [name for name in names if name not in held]
            if missing:
                raise TensorMismatchError(
                    f"{what} has no tensor {missing[0]!r}", mend="give a value for every trained tensor"
                )


class Flattened(Mapping[str, FlatSet]):
    """Common sets, each made flat when a plan first reads it."""

    def __init__(
        self,
        sets: Mapping[str, Mapping[str, np.ndarray]],
        flatten: Callable[[Mapping[str, np.ndarray], str], FlatSet],
    ) -> None:
        self._sets, self._flatten = sets, flatten
        self._made: dict[str, FlatSet] = {}

    @override
    def __getitem__(self, name: str) -> FlatSet:
        if name not in self._made:
            self._made[name] = self._flatten(self._sets[name], name)
        return self._made[name]

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._sets

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    @override
    def __len__(self) -> int:
        return len(self._sets)


@dataclass
class Lanes:
    """What a plan changes, for each client: theta, copies, reports.

    Attributes:
        clients: one for each lane.
        feed: their rows.
        layout: places of the tensors in a row.
        rows: the gradient-trained tensors, float32 [lanes, size], but for those that are ``late``.
        others: the device tensors that no gradient trains, by name, with a first axis of lanes.
        sets: common sets, already flat.
        late: weights that are not in ``rows`` yet, by name.
        copies: copies by name.
        losses: sum of the mean losses of all steps, float64 [lanes].
        done: steps of each lane.
        rate: sum of the learning rates in the last train phase, float64 [lanes].
        failures: why a lane must not be used, or None.
    """

    clients: Sequence[SimulatedClient]
    feed: Feed
    layout: Layout
    rows: Tensor
    others: dict[str, Tensor]
    sets: Mapping[str, FlatSet]
    copies: dict[str, FlatSet] = field(default_factory=dict)
    start: FlatSet | None = None
    own: dict[str, FlatSet] = field(default_factory=dict)
    late: dict[str, LateWeight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Counters at zero."""
        count = len(self.clients)
        self.losses = np.zeros(count)
        self.done = np.zeros(count, np.int64)
        self.rate = np.zeros(count)
        self.failures: list[str | None] = [None] * count
        self.reports: list[dict[str, float]] = [{} for _ in range(count)]
        self.all_names = frozenset(self.layout.places)

    @property
    def theta(self) -> Tensor:
        """The gradient-trained tensors, float32 [lanes, size], all written."""
        self.settle()
        return self.rows

    def settle(self, but: Collection[str] = ()) -> None:
        """Write the late weights, but for some."""
        for name in self.late.keys() - set(but):
            self.late.pop(name).settle()

    def add_changes(self, total: Tensor, sent: Tensor, weights: Sequence[float]) -> None:
        """total += the sum of weight * (theta - sent) over the lanes.

        Args:
            total, sent: float32 [size].
            weights: of each lane; one of weight 0 may have NaN.
        """
        for name, late in self.late.items():
            place, shape = self.layout.places[name], self.layout.shapes[name]
            late.add_changes(total[place].view(shape), sent[place].view(shape), weights)
        good = [lane for lane, weight in enumerate(weights) if weight]
        if not good:
            return
        rows = self.rows if len(good) == len(self.rows) else self.rows[good]
        column = torch.tensor([[weights[lane]] for lane in good], device=rows.device)
        width = max(_BLOCK // len(good), 1)
        for r in self.layout.ranges(self.all_names - self.late.keys()):
            for begin in range(r.start, r.stop, width):
                block = slice(begin, min(begin + width, r.stop))
                total[block] += (rows[:, block] - sent[block]).mul_(column).sum(0)

    def non_finite(self, flat: Tensor, late: Mapping[str, LateWeight], group: Sequence[str]) -> np.ndarray:
        """Which lanes hold a NaN or an infinity in the tensors of ``group`` in ``flat``, bool [lanes]."""
        bad: np.ndarray = non_finite(flat, self.layout.ranges(set(group) - late.keys())).cpu().numpy()
        for name in late.keys() & set(group):
            for segment in late[name].segments:
                bad[: len(segment.x)] |= ~segment.finite().numpy()
        return bad

    def named(self, name: str) -> FlatSet:
        """The set that a plan calls ``name``.

        Raises:
            UnknownNameError: there is none, or only some of the clients have it.
        """
        if name == "theta":
            return FlatSet(self.theta, [self.all_names])
        if name == "start" and self.start is not None:
            return self.start
        if name == "zero":
            return FlatSet(torch.zeros(1, self.layout.size, device=self.rows.device), [self.all_names])
        if name in self.copies:
            return self.copies[name]
        if name not in self.own and any(name in client.sets for client in self.clients):
            self.own[name] = self._own(name)
        if name in self.own:
            return self.own[name]
        if name in self.sets:
            return self.sets[name]
        known = ["theta", "start", "zero", *self.copies, *self.sets]
        raise UnknownNameError(f"the plan names a set {name!r} that is not there", mend=near(name, known))

    def _own(self, name: str) -> FlatSet:
        for client in self.clients:
            if name not in client.sets and name not in self.sets:
                raise UnknownNameError(
                    f"the plan names a set {name!r} that only some clients have",
                    mend="give every client its own, or one to all",
                )
        rows = np.zeros((len(self.clients), self.layout.size), np.float32)
        common = self.sets.get(name)
        held = []
        for row, client in zip(rows, self.clients, strict=True):
            if name in client.sets:
                held.append(self.layout.write_scaled(row, client.sets[name], name))
            elif common is not None:
                row[:] = common.flat[0].cpu().numpy()
                held.append(common.names[0])
        return FlatSet(torch.from_numpy(rows).to(self.rows.device), held)

    def load_copies(self) -> None:
        """The copies that the clients bring along."""
        for name in sorted({copy for client in self.clients for copy in client.copies}):
            rows = np.zeros((len(self.clients), self.layout.size), np.float32)
            held = [
                self.layout.write(row, client.copies.get(name, {}), f"copy {name!r}")
                for row, client in zip(rows, self.clients, strict=True)
            ]
            self.copies[name] = FlatSet(torch.from_numpy(rows).to(self.rows.device), held)

    def writable(self, name: str, names: Sequence[str], source: FlatSet, *, keep: bool) -> Tensor:
        """The flat rows of theta or a copy, where the tensors ``names`` hold ``source``'s values.

        Args:
            name: ``theta`` or a copy, which is made if it is not there.
            names: the tensors.
            source: where their values come from.
            keep: leave values that a lane has already.
        """
        ranges = self.layout.ranges(names)
        if name == "theta":
            if not keep:
                for r in ranges:
                    self.theta[:, r] = source.flat[:, r]
            return self.theta
        if name not in self.copies:
            lanes = len(self.clients)
            flat = torch.zeros(lanes, self.layout.size, device=self.rows.device)
            self.copies[name] = FlatSet(flat, [frozenset()] * lanes)
        copy = self.copies[name]
        if not keep or not any(held.intersection(names) for held in copy.names):
            for r in ranges:
                copy.flat[:, r] = source.flat[:, r]
        else:
            for lane, held in enumerate(copy.names):
                for r in self.layout.ranges(set(names) - held):
                    copy.flat[lane, r] = source.flat[min(lane, len(source.flat) - 1), r]
        copy.names = [held.union(names) for held in copy.names]
        return copy.flat

    def fail(self, lanes: Sequence[int] | np.ndarray, why: str) -> None:
        """Note a failure of lanes that have none yet."""
        for lane in lanes:
            if self.failures[lane] is None:
                self.failures[lane] = why


@dataclass
class SimulatedClient:
    """One client of a cohort.

    Attributes:
        rows: training rows.
        seed: of the plan's shuffles for this client in this round.
        tensors: device tensors that differ from the common start.
        copies: kept copies of earlier rounds.
        sets: sets of this client alone; one of the same name as a common set takes its place.
    """

    rows: Rows
    seed: int
    tensors: Arrays = field(default_factory=dict)
    copies: Mapping[str, Arrays] = field(default_factory=dict)
    sets: Mapping[str, Arrays] = field(default_factory=dict)
