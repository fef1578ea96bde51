"""EWC: training held near its starting point, most where the old task depends on a value."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.hyperparameters import Param
from pfl_mobile.local.update import check_finite
from pfl_mobile.plan.phases import Phase
from pfl_mobile.rows import take, weighted_rows
from pfl_mobile.strategies.fedavg_finetune import FedAvgFineTune
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext, Server, Values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pfl_mobile.local.session import Programs
    from pfl_mobile.rows import Rows


@register(
    "ewc",
    title="Elastic weight consolidation",
    paper="Kirkpatrick and others 2017, Overcoming catastrophic forgetting in neural networks (arXiv 1612.00796)",
    shares="all trained tensors",
    keeps="the fine-tuned model, once the rounds are over",
)
@dataclass(frozen=True, kw_only=True)
class EWC(FedAvgFineTune):
    """Each device minimizes F_k(theta) + sum_j lambda/2 * F_j (theta_j - theta*_j)^2, the paper's equation 3.

    F_j is the diagonal of the Fisher information on the old task, for instance general text: ``fisher_diagonal``
    computes it, and the server sends lambda * F as the set ``importance``. In the update rule: mu = importance,
    one strength for each value; anchor = initial (theta*) in the rounds, global for the fine-tuning after them.

    Without ``fisher`` every value counts the same, which is L2-SP with mu = lambda, and a warning says so.

    Limits: lambda = 0 is FedAvg + fine-tuning; fisher = 1 is L2-SP.
    """

    lam: Annotated[float, Param("lambda, how much the old task counts; 0 is FedAvg", low=0.0)] = 1.0
    fisher: Mapping[str, np.ndarray] | None = field(default=None, repr=False, compare=False)

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """One train phase, held near the shipped values."""
        return (at.local.train(mu="importance", anchor="initial", prox="implicit"),)

    @override
    def tuning(self) -> dict[str, Any]:
        """Held near the global model."""
        return {"mu": "importance", "anchor": "global", "prox": "implicit"}

    @override
    def begin(self, server: Server) -> None:
        """Set up ``importance``.

        Raises:
            ConfigError: ``fisher`` lacks a trained tensor, has another shape or a negative value.
        """
        if self.fisher is None:
            warnings.warn("EWC without fisher: every value counts the same, as in L2-SP", stacklevel=2)
        importance = {}
        for name, value in server.values.items():
            given = np.ones_like(value) if self.fisher is None else self.fisher.get(name)
            if given is None or given.shape != value.shape or not (given >= 0).all():
                raise ConfigError(
                    f"the Fisher diagonal of {name!r} is missing, has another shape or a negative value",
                    mend="compute it with fisher_diagonal for this model",
                )
            importance[name] = np.asarray(self.lam * given, np.float32)
            check_finite(name, importance[name], "lam * fisher of")
        server.sets["importance"] = importance

    @override
    def sets(self, server: Server) -> dict[str, Values]:
        """The global values and ``importance``."""
        return {**super().sets(server), "importance": server.sets["importance"]}


def fisher_diagonal(
    programs: Programs, tensors: Mapping[str, np.ndarray], trained: Sequence[str], rows: Rows
) -> dict[str, np.ndarray]:
    """Diagonal of the empirical Fisher information: the mean over examples of the squared gradient.

    The loss must be a negative log-likelihood. Labels are those of the rows, not drawn from the model, so it is the
    empirical form. One call of ``gradients`` for each example.

    Args:
        programs: of a session with the model loaded.
        tensors: all device tensors, at the values that were good for the old task.
        trained: names of the tensors to compute it for.
        rows: examples of the old task; some hundreds are enough.

    Returns:
        float32 arrays of the tensors' shapes.

    Raises:
        NoExamplesError: no row has a positive weight.
        NonFiniteError: a gradient is NaN or infinite.
    """
    rows = weighted_rows(rows, "rows of the old task")
    count = len(rows["weight"])
    sums = {name: np.zeros(tensors[name].shape) for name in trained}
    for index in range(count):
        out = programs.gradients(take(rows, np.array([index]), programs.batch_size), tensors)
        for name in trained:
            gradient = np.asarray(out[f"grad.{name}"], np.float64).reshape(sums[name].shape)
            check_finite(name, gradient, "the gradient of")
            sums[name] += gradient**2
    return {name: (total / count).astype(np.float32) for name, total in sums.items()}
