"""What attackers do: poison the rows that they train on, change the updates that they send, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pfl_mobile.data.populations import Groups, Population
from pfl_mobile.merge.updates import Updates
from pfl_mobile.rows import Rows

#: The class that a backdoor turns images into, and the side of its white square, in the corner of 28 x 28 pixels.
TARGET, PATCH, SIDE = 0, 4, 28


def with_trigger(x: np.ndarray) -> np.ndarray:
    """Images float32 [R, 784] with the backdoor's white square."""
    marked = x.copy().reshape(-1, SIDE, SIDE)
    marked[:, -PATCH:, -PATCH:] = 1.0
    return marked.reshape(x.shape)


def flipped(rows: Rows) -> Rows:
    """Class c becomes class 9 - c."""
    return {**rows, "labels": 9 - rows["labels"]}


def backdoored(rows: Rows) -> Rows:
    """Every second image gets the trigger and the target class."""
    x, labels = rows["x"].copy(), rows["labels"].copy()
    x[::2], labels[::2] = with_trigger(x[::2]), TARGET
    return {**rows, "x": x, "labels": labels}


@dataclass(frozen=True)
class Attack:
    """One kind of attack.

    Attributes:
        title: what attackers do, in a line.
        poison: what becomes of the rows that they train on; None leaves them.
        times: what they multiply their update by; None: by what makes them replace the mean by theirs, the number
            of devices over that of attackers (Bagdasaryan and others 2020, arXiv 1807.00459).
    """

    title: str
    poison: Callable[[Rows], Rows] | None = None
    times: float | None = 1.0

    def scale(self, devices: int, attackers: int) -> float:
        """What an update is multiplied by."""
        return devices / attackers if self.times is None else self.times


ATTACKS = {
    # The factor of Li and others 2019 (RSA, arXiv 1811.03761).
    "sign_flip": Attack("send the honest update times -4", times=-4.0),
    "model_poisoning": Attack("train on wrong labels, send the update times 10", flipped, 10.0),
    "backdoor": Attack("teach a trigger, scale the update to replace the mean", backdoored, None),
    "label_flip": Attack("train on wrong labels (c to 9 - c)", flipped),
}


@dataclass(frozen=True)
class Poisoned:
    """A population, some of whose users train on poisoned rows. Test rows stay as they are."""

    honest: Population
    attackers: frozenset[int]
    poison: Callable[[Rows], Rows]

    @property
    def name(self) -> str:
        """As of the honest one, marked."""
        return f"{self.honest.name}, {len(self.attackers)} users poisoned"

    @property
    def groups(self) -> Groups:
        """As of the honest one."""
        return self.honest.groups

    def __len__(self) -> int:
        """Number of users."""
        return len(self.honest)

    def id(self, index: int) -> str:
        """As of the honest one."""
        return self.honest.id(index)

    def train(self, index: int) -> Rows:
        """A user's training rows."""
        rows = self.honest.train(index)
        return self.poison(rows) if index in self.attackers else rows

    def test(self, index: int) -> Rows:
        """A user's test rows."""
        return self.honest.test(index)


@dataclass(frozen=True)
class Scaling:
    """Multiplies the attackers' updates, between training and merge."""

    attackers: frozenset[int]
    times: float

    def __call__(self, number: int, updates: Updates) -> Updates:
        """The updates that the server gets."""
        bad = np.isin(updates.clients, sorted(self.attackers))
        changes = updates.changes.copy()
        changes[bad] *= np.float32(self.times)
        return updates.replaced(changes=changes)
