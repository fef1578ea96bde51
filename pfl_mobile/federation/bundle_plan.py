"""The strategy of a bundle that names none: its own plan, merged by federated averaging."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.schema import Plan
from pfl_mobile.strategies.state import RoundContext
from pfl_mobile.strategies.strategy import Strategy, take_over

#: The strategy that is what the bundle says, by name.
BUNDLE = "bundle"


@dataclass(frozen=True, kw_only=True)
class BundlePlan(Strategy):
    """The bundle's own plan, merged by federated averaging.

    Every round gives it a seed of its own. It takes the aggregator's values over first, where it does not do so itself.

    Attributes:
        text: the plan, JSON.
    """

    text: str = field(repr=False)

    @override
    def plan(self, at: RoundContext) -> Plan:
        """The device's part of a round.

        Raises:
            ConfigError: the plan is invalid, the model shares nothing, or the plan sends nothing.
        """
        own = Plan.load(self.text)
        if not at.traveling:
            raise ConfigError(
                "no tensor of the bundle is shared, so there is nothing to merge",
                mend="export it with tensors of the role 'shared'",
            )
        if not own.upload:
            raise ConfigError(
                "the bundle's plan sends nothing, and the bundle names no strategy, so there is nothing to merge",
                mend="name the strategy of the rounds: --strategy NAME (`pfl strategies`)",
            )
        takes_over = any(phase.takes_over == "global" for phase in own.distinct_steps())
        before = () if takes_over else take_over(at)
        changes: dict[str, Any] = {
            "phases": (*before, *self.weighting.measures(at), *own.phases),
            "seed": at.seed % 2**63,
        }
        return own.model_copy(update=changes)
