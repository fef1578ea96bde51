"""FedPer: some layers are shared, the others never leave the device; both are trained together."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from pfl_mobile.plan.phases import Phase
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext
from pfl_mobile.strategies.strategy import Strategy


@register(
    "fedper",
    title="Personal layers, trained together with the shared ones",
    paper="Arivazhagan and others 2019, Federated learning with personalization layers (arXiv 1912.00818)",
    shares="base layers",
    keeps="personalization layers",
    split=True,
)
@dataclass(frozen=True, kw_only=True)
class FedPer(Strategy):
    """The paper's algorithms 1 and 2: device j gets W_B, has its own W_Pj, and takes SGD steps on both.

        (W_B,j, W_Pj) <- SGD_j(W_B, W_Pj),    W_B <- sum_j (n_j / n) W_B,j

    W_B are the tensors with the role ``shared``, W_P those with the role ``personal``. The paper starts W_Pj at
    random on each device; here it starts at the shipped values.

    Limits: with no personal tensor it would be FedAvg, which is refused here, as it is surely a mistake.
    """

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """One train phase on all tensors.

        Raises:
            ConfigError: the model has no personal tensors.
        """
        at.need("personal", self)
        return (at.local.train(),)
