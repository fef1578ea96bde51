"""What a strategy works with: local training, the context of a plan, the server's state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.optimizers import Optimizer, Sgd
from pfl_mobile.plan.phases import TrainPhase

if TYPE_CHECKING:
    from pfl_mobile.modules.roles import DeviceTensorInfo
    from pfl_mobile.strategies.strategy import Strategy


Values = Mapping[str, np.ndarray]


#: What ``Local`` has where no optimizer is given; it is known by being this object.
UNSET = Sgd(lr=0.1)


@dataclass(frozen=True, kw_only=True)
class Local:
    """Local training, as far as it is the same for all strategies.

    Attributes:
        epochs: passes over a device's examples in a round; 1 where ``steps`` is not given either.
        steps: optimizer steps in a round, in place of epochs.
        optimizer: of the device; where none is given plain SGD, with the rate 0.1 or, in a study, one that is tried
            out (``study.defaults``).
        clip: largest global L2 norm of a gradient; None for no limit, or what a study tries out with the rate.
    """

    epochs: int | None = None
    steps: int | None = None
    optimizer: Optimizer = field(default_factory=lambda: UNSET)
    clip: float | None = None

    def __post_init__(self) -> None:
        """Refuse epochs and steps together (ConfigError)."""
        if self.epochs is not None and self.steps is not None:
            raise ConfigError(
                f"local training has {self.epochs} epochs and {self.steps} steps", mend="give one of the two"
            )
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)

    @property
    def by_default(self) -> bool:
        """Whether no optimizer was given."""
        return self.optimizer is UNSET

    def train(self, **terms: Any) -> TrainPhase:
        """A train phase with these settings, and ``terms`` beside or in place of them.

        Raises:
            ConfigError: they do not fit together, for instance lr * mu diverges.
        """
        settings = {
            "epochs": self.epochs,
            "steps": self.steps,
            "optimizer": self.optimizer,
            "clip": self.clip,
        }
        if terms.keys() & {"epochs", "steps"}:
            settings |= {"epochs": None, "steps": None}
        try:
            return TrainPhase(**(settings | terms))
        except ValidationError as error:
            raise ConfigError(
                f"the train phase is invalid: {error.errors()[0]['msg']}",
                mend="change the local settings or the strategy's hyper-parameters",
            ) from error


@dataclass(frozen=True)
class RoundContext:
    """What a strategy may build a plan from.

    Attributes:
        table: the device tensors with their roles.
        local: local training.
        round: counted from 0.
        seed: for what the strategy draws in this round; another one every round.
    """

    table: Sequence[DeviceTensorInfo]
    local: Local
    round: int = 0
    seed: int = 0

    def has(self, role: str) -> bool:
        """Whether gradients train a tensor of this role."""
        return any(t.role == role and t.update == "gradient" for t in self.table)

    def need(self, role: str, strategy: Strategy) -> None:
        """Refuse a model without trained tensors of this role (ConfigError)."""
        if not self.has(role):
            raise ConfigError(
                f"{type(strategy).__name__} needs tensors with the role {role!r}, the model has none",
                mend=f"give some tensors the role {role!r}",
            )

    def plain_rate(self, strategy: Strategy) -> float:
        """The learning rate of plain SGD, which control variates rest on (ConfigError for another optimizer)."""
        if self.local.optimizer.kind != "sgd":
            raise ConfigError(
                f"{type(strategy).__name__} corrects the steps of plain SGD, the optimizer is "
                f"{self.local.optimizer.kind!r}",
                mend="use the optimizer 'sgd'",
            )
        return self.local.optimizer.lr

    @property
    def traveling(self) -> tuple[str, ...]:
        """Patterns of the trained tensors that are sent."""
        return tuple(f"role:{role}" for role in ("shared", "group") if self.has(role))


@dataclass
class Server:
    """What the aggregator keeps between rounds. Arrays and lists in it are replaced, never changed in place.

    Attributes:
        table: the device tensors.
        population: devices in all.
        values: the gradient-trained tensors, float32: latest of the shared ones, shipped of the others.
        groups: latest values of tensors with the role ``group``, by group and name.
        sets: further values by set and name (control variates, momenta, clusters).
        numbers: numbers and lists of numbers to keep.
        round: rounds merged.
    """

    table: Sequence[DeviceTensorInfo]
    population: int
    values: dict[str, np.ndarray]
    groups: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    sets: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    round: int = 0

    def names(self, *roles: str) -> list[str]:
        """The trained tensors that have one of these roles, in order of name."""
        return sorted(t.name for t in self.table if t.role in roles and t.update == "gradient")

    def zeros(self, *roles: str) -> dict[str, np.ndarray]:
        """A set of zeros of these tensors."""
        return {name: np.zeros_like(self.values[name]) for name in self.names(*roles)}

    @contextmanager
    def undo_on_error(self) -> Iterator[None]:
        """Leave everything as it was when the block raises; for merges that change more than ``values``."""
        values, numbers, at = dict(self.values), dict(self.numbers), self.round
        groups = {name: dict(tensors) for name, tensors in self.groups.items()}
        sets = {name: dict(tensors) for name, tensors in self.sets.items()}
        try:
            yield
        except BaseException:
            self.values, self.groups, self.sets, self.numbers, self.round = values, groups, sets, numbers, at
            raise
