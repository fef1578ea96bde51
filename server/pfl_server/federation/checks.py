"""What does not go together in a federation's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pfl_mobile.errors import ConfigError
from pfl_mobile.merge.rules import create_rule
from pfl_mobile.privacy.limits import check_guarantee
from pfl_server.federation.minimum_cohort import check_enough, check_minimum

if TYPE_CHECKING:
    from pfl_mobile.merge.rules import Rule
    from pfl_mobile.modules.roles import DeviceTensorInfo
    from pfl_mobile.strategies.strategy import Strategy
    from pfl_server.federation.config import FederationConfig


def check_config(config: FederationConfig, strategy: Strategy, table: Sequence[DeviceTensorInfo]) -> Rule:
    """Refuse settings that do not go together.

    Returns:
        The merge rule that the configuration names.

    Raises:
        ConfigError, UnknownNameError: naming them.
        PrivacyError: the strategy cannot merge with noise of the aggregator.
    """
    rounds, privacy = config.rounds, config.privacy
    if not config.groups:
        what = (
            "the model has tensors of groups"
            if any(t.role == "group" for t in table)
            else f"{type(strategy.weighting).__name__} weights groups"
            if strategy.weighting.needs_groups
            else ""
        )
        if what:
            raise ConfigError(
                f"{what}, but the federation has none",
                mend="name them: --group NAME for each (in federation.json: groups)",
            )
    rule = create_rule(config.rule.name, **config.rule.parameters)
    strategy.check_rule(rule)
    if privacy.noise_multiplier > 0:
        strategy.check_private(table)
        if not rule.additive:
            raise ConfigError(
                f"the merge rule {config.rule.name!r} is no bounded sum, so no noise hides a device in it",
                mend="use the rule 'average', or the mechanism 'local' or 'none'",
            )
    if privacy.sampling != "none" and privacy.mechanism != "none" and rounds.mode == "buffered":
        raise ConfigError(
            f"a buffered federation takes devices as they come, which is not the sampling {privacy.sampling!r}",
            mend="use synchronous rounds, or the sampling 'none'",
        )
    check_minimum(config)
    check_enough(config, rule)
    if privacy.noise_multiplier > 0 and privacy.cohort != rounds.cohort:
        raise ConfigError(
            f"privacy is computed for cohorts of {privacy.cohort}, rounds have {rounds.cohort}",
            mend="give both the same cohort",
        )
    if rounds.mode == "buffered" and (not strategy.merges_stale or strategy.sends_own_sets):
        raise ConfigError(
            f"{type(strategy).__name__} merges changes of one version only, a buffered federation has those of several",
            mend="use synchronous rounds, or a strategy like 'fedavg'",
        )
    check_guarantee(privacy, rounds.total)
    return rule
