"""What does not go together in a federation, wherever it runs: refused before anything does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pfl_mobile.errors import ConfigError, PrivacyError, TooFewUpdatesError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pfl_mobile.merge.rules import MergeRule
    from pfl_mobile.modules.roles import DeviceTensorInfo
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.privacy.config import PrivacyConfig
    from pfl_mobile.strategies.strategy import Strategy


def check_groups(strategy: Strategy, table: Sequence[DeviceTensorInfo], *, groups: bool) -> None:
    """Refuse a weighting of groups, and tensors of groups, where devices have none.

    Raises:
        ConfigError: naming what needs groups.
    """
    if groups:
        return
    if strategy.weighting.needs_groups:
        what = f"{type(strategy.weighting).__name__} weights groups"
    elif any(t.role == "group" for t in table):
        what = "the model has tensors of groups"
    else:
        return
    raise ConfigError(
        f"{what}, but the devices have no groups",
        mend="name them: in a study groups=, or data whose users have groups; on a server --group NAME for each "
        "(in federation.json: groups)",
    )


def check_merge(
    strategy: Strategy, table: Sequence[DeviceTensorInfo], rule: MergeRule, privacy: PrivacyConfig | None
) -> None:
    """Refuse a rule that the strategy's merge goes around, and noise of the aggregator that would hide nobody.

    Only the aggregator's noise restricts the merge. Where devices add noise themselves, or nobody does, nothing is
    promised of what the aggregator does with the updates, so any strategy and rule may read them.

    Raises:
        ConfigError: the merge would go around the rule.
        PrivacyError: the strategy or the rule would read more than a private merge lets out.
    """
    strategy.check_rule(rule)
    if privacy is None or not privacy.central:
        return
    strategy.check_private(table)
    if not rule.additive:
        raise PrivacyError(
            f"{type(rule).__name__} reads single updates and is no bounded sum, so no noise of the aggregator hides a "
            "device in it",
            mend="use the rule 'average': a private merge bounds every update by its clip norm; or let no noise be "
            "added by the aggregator (mechanism 'local' or 'none')",
        )


def check_cohort(rule: MergeRule, privacy: PrivacyConfig | None, cohort: int) -> None:
    """Refuse cohorts that the noise was not computed for, or of which a full one is too few for the rule.

    Raises:
        ConfigError: naming both numbers.
    """
    if privacy is not None and privacy.central and privacy.cohort != cohort:
        raise ConfigError(
            f"privacy is computed for a cohort of {privacy.cohort}, rounds have a cohort of {cohort}",
            mend="give both the same cohort",
        )
    try:
        rule.check_count(cohort)
    except TooFewUpdatesError as error:
        raise ConfigError(
            f"a full round of {cohort} updates is too small for the merge rule: {error.message}",
            mend="take larger cohorts (rounds.cohort, --cohort), or let the rule assume fewer attackers",
        ) from error


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
