"""Privacy spent and left, from the statement of the newest version and the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pfl_server.federation.config import FederationConfig
from pfl_server.storage.models import Version


@dataclass(frozen=True)
class BudgetReport:
    """What the models published so far cost.

    Attributes:
        private: whether anything is guaranteed.
        spent: epsilon of all versions together; None where nothing is guaranteed.
        delta: of it.
        budget: epsilon before which training stops; None: it does not.
        rounds: merged rounds that were counted.
        statement: the whole statement, with assumptions.
    """

    private: bool
    spent: float | None
    delta: float | None
    budget: float | None
    rounds: int
    statement: Mapping[str, Any]

    @property
    def left(self) -> float | None:
        """Epsilon that is left; None without a budget."""
        if self.budget is None or self.spent is None:
            return None
        return max(0.0, self.budget - self.spent)


def budget_of(newest: Version, config: FederationConfig) -> BudgetReport:
    """What was spent up to the newest version; roll-backs keep what was spent."""
    statement = newest.privacy
    epsilon = statement.get("epsilon")
    return BudgetReport(
        private=epsilon is not None,
        spent=epsilon,
        delta=statement.get("delta"),
        budget=config.privacy.budget_epsilon,
        rounds=int(statement.get("rounds", 0)),
        statement=statement,
    )
