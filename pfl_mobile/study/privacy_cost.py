"""A study as a measure of what privacy costs: rounds with the noise of a planned federation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.merge.rules import Average, Mean, MergeRule
from pfl_mobile.merge.update_rows import norms
from pfl_mobile.privacy.cost import simulated

if TYPE_CHECKING:
    from pfl_mobile.merge.update_rows import UpdateRows
    from pfl_mobile.privacy.config import PrivacyConfig
    from pfl_mobile.study import Study

#: Rounds that the norms of updates are measured in.
_LOOK = 3


@dataclass(frozen=True, kw_only=True)
class _Noted(MergeRule):
    """The weighted mean; notes the norms that it sees."""

    seen: list[float] = field(default_factory=list)

    @override
    def mean(self, rows: UpdateRows, weights: np.ndarray, *, threads: int = 1) -> Mean:
        self.seen.extend(norms(rows).tolist())
        return Average().mean(rows, weights, threads=threads)


def typical_norm(study: Study) -> float:
    """Median L2 norm of the updates in the first rounds of a study: a good clip norm (Andrew et al. 2021).

    Raises:
        ConfigError: the strategy sends nothing, or does not merge by a mean.
    """
    noted = _Noted()
    with study.replace(robust=noted, privacy=None, folder=None).run(_LOOK):
        pass
    if not noted.seen:
        raise ConfigError(
            f"devices send nothing with the strategy {study.strategy_name!r}, so there is nothing to protect",
            mend="choose a strategy that shares something",
        )
    return float(np.median(noted.seen))


class StudyCost:
    """What a study reaches with and without privacy; the measure that ``accuracy_cost`` takes.

    Args:
        study: of any users; its own cohort is what is simulated.
        rounds: of each run.
        clip_norm: in the study; None measures it.
        width: values of an update that the study stands for, P; None: its own.

    Raises:
        ConfigError, PrivacyError: the strategy cannot be private.
    """

    def __init__(
        self, study: Study, rounds: int, clip_norm: float | None = None, width: int | None = None
    ) -> None:
        self.study, self.rounds = study.replace(folder=None, privacy=None), rounds
        self.clip_norm = typical_norm(self.study) if clip_norm is None else clip_norm
        self.scale = 1.0 if width is None else math.sqrt(width / self.width)
        #: Name of what is measured; known after the first run.
        self.metric = ""

    @property
    def width(self) -> int:
        """Values of an update."""
        from pfl_mobile.plan.upload import update_shapes

        shapes = update_shapes(self.study.plan(), self.study.model.device_tensors())
        return sum(int(np.prod(shape)) for shape in shapes.values())

    def run(self, config: PrivacyConfig | None) -> float:
        """Mean over users of their metric, with their own models where the strategy makes any.

        Args:
            config: of the planned federation; None for no privacy.
        """
        privacy = None
        if config is not None:
            fitted = config.model_copy(update={"clip_norm": self.clip_norm, "denominator": None})
            privacy = simulated(fitted, self.study.cohort.size, self.scale)
        with self.study.replace(privacy=privacy).run(self.rounds) as result:
            found = result.evaluate()
        self.metric = found.metric
        return found.personalized_acc if found.has_own else found.global_acc
