"""The updates of one round, stacked: one row for each device that answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from pfl_mobile.errors import ConfigError, near


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in a flat vector.

    Attributes:
        shapes: names and shapes in order; copies are named as ``local.upload.copy_key`` does.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(prod(shape) for shape in self.shapes.values())

    def items(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """Name, place and shape of every tensor."""
        start = 0
        for name, shape in self.shapes.items():
            yield name, slice(start, start + prod(shape)), shape
            start += prod(shape)

    def unpack(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views on a flat vector [P], or on a stack of them [n, P], by name."""
        return {
            name: flat[..., place].reshape(*flat.shape[:-1], *shape) for name, place, shape in self.items()
        }

    def pack(self, values: Mapping[str, np.ndarray], out: np.ndarray) -> None:
        """Copy tensors into a flat vector [P]; a missing one becomes zero."""
        for name, place, _ in self.items():
            out[place] = values[name].reshape(-1) if name in values else 0.0


@dataclass(frozen=True)
class Updates:
    """What the devices of a round sent; devices that failed are not among them.

    Attributes:
        layout: of a row of ``changes``.
        changes: float32 [n, P], after minus before (``local.upload.change``).
        clients: index of each device in the population.
        examples: how many training examples each has, int64 [n].
        steps: optimizer steps of each, int64 [n].
        reports: what the plan measured, by name, float64 [n].
        groups: name of each device's group; empty where there are no groups.
        population: devices in all.
    """

    layout: Layout
    changes: np.ndarray
    clients: Sequence[int]
    examples: np.ndarray
    steps: np.ndarray
    reports: Mapping[str, np.ndarray]
    groups: Sequence[str]
    population: int

    def __len__(self) -> int:
        """How many devices answered."""
        return len(self.clients)

    def of(self, name: str) -> np.ndarray:
        """The changes of one tensor, float32 [n, *shape]."""
        return self.layout.unpack(self.changes)[name]

    def report(self, name: str) -> np.ndarray:
        """What each device reported under a name, float64 [n].

        Raises:
            ConfigError: the plan reports nothing of this name.
        """
        if name not in self.reports:
            raise ConfigError(
                f"the devices' plan reports no {name!r}",
                mend=f"add a measure phase to it; {near(name, self.reports)}",
            )
        return self.reports[name]

    def weighted_sum(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """sum_i weights_i * change_i by name, float32.

        Args:
            weights: float [n].
        """
        # Not a product by BLAS: its threads would go on spinning on the cores that train, and the last bits would
        # depend on how many there are.
        return self.layout.unpack(np.einsum("n,np->p", np.asarray(weights, np.float32), self.changes))

    def select(self, rows: np.ndarray) -> Updates:
        """Only some of the devices.

        Args:
            rows: indexes or a mask over the rows.
        """
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        chosen = [int(i) for i in rows]
        return Updates(
            self.layout,
            self.changes[rows],
            [self.clients[i] for i in chosen],
            self.examples[rows],
            self.steps[rows],
            {name: values[rows] for name, values in self.reports.items()},
            [self.groups[i] for i in chosen] if self.groups else [],
            self.population,
        )


@dataclass(frozen=True)
class Sums(Updates):
    """Updates whose changes were added up where the devices trained: there are none of single devices.

    Attributes:
        changes: float32 [jobs, P], the sums of weight * change over the devices of a job.
        weights: of each device in them, float64 [n].
    """

    weights: np.ndarray

    def of(self, name: str) -> np.ndarray:
        """Refused (ConfigError)."""
        raise _only_sums()

    def weighted_sum(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """As of other updates, for weights in proportion to those of the sums.

        Raises:
            ConfigError: the weights are others.
        """
        factor = float(np.sum(weights)) / float(np.sum(self.weights))
        if not np.allclose(weights, self.weights * factor):
            raise _only_sums()
        return self.layout.unpack(self.changes.sum(axis=0) * np.float32(factor))

    def select(self, rows: np.ndarray) -> Updates:
        """Refused (ConfigError)."""
        raise _only_sums()


def _only_sums() -> ConfigError:
    return ConfigError(
        "the changes of single devices are not there: they were added up where the devices trained",
        mend="let summed_by() of the strategy return None",
    )
