"""What does not go together in a federation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pfl_mobile.errors import PrivacyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pfl_mobile.merge.rules import Rule
    from pfl_mobile.modules.roles import DeviceTensorInfo
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.privacy.config import PrivacyConfig
    from pfl_mobile.strategies.strategy import Strategy


def check_own_noise(config: PrivacyConfig, plan: Plan) -> None:
    """Refuse reports beside updates that devices protect by noise of their own.

    Raises:
        PrivacyError: the plan sends reports, which that noise does not hide from the aggregator.
    """
    if config.local_noise_multiplier and plan.reports:
        raise PrivacyError(
            f"devices add noise to their updates themselves, but would report {', '.join(plan.reports)} without any",
            mend="choose a strategy whose devices report nothing, or set local_noise_multiplier to 0",
        )


def check_merge(
    strategy: Strategy, table: Sequence[DeviceTensorInfo], rule: Rule | None, private: bool
) -> None:
    """Refuse what cannot go together, before anything runs.

    Raises:
        ConfigError: the merge would go around the rule.
        PrivacyError: the strategy or the rule would read more than a private merge lets out.
    """
    if rule is not None:
        strategy.check_rule(rule)
    if private:
        strategy.check_private(table)
        if rule is not None:
            raise PrivacyError(
                f"{type(rule).__name__} reads single updates, so it cannot be combined with privacy",
                mend="leave the rule out: a private merge bounds every update by its clip norm",
            )
