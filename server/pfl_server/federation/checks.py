"""The rounds of a server's configuration, and what does not go together in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pfl_mobile.errors import ConfigError
from pfl_mobile.federation.round import Bounds, RoundDefinition
from pfl_mobile.merge.rules import create_rule
from pfl_mobile.privacy.limits import check_guarantee
from pfl_server.federation.minimum_cohort import check_enough, check_minimum

if TYPE_CHECKING:
    from pfl_mobile.modules.roles import DeviceTensorInfo
    from pfl_mobile.strategies.state import Local
    from pfl_mobile.strategies.strategy import Strategy
    from pfl_server.federation.config import FederationConfig


#: That split the columns of sums.
_THREADS = 2


def check_config(
    config: FederationConfig, strategy: Strategy, local: Local, table: Sequence[DeviceTensorInfo]
) -> RoundDefinition:
    """The rounds that a configuration asks for; settings that do not go together are refused.

    Beside what any driver of these rounds refuses: what takes several versions, a deadline or a minimum.

    Raises:
        ConfigError, UnknownNameError: naming them.
        PrivacyError: the strategy or the rule cannot merge with noise of the aggregator.
    """
    rounds, privacy = config.rounds, config.privacy
    rule = create_rule(config.rule.name, **config.rule.parameters)
    definition = RoundDefinition(
        strategy,
        local,
        table,
        cohort=rounds.cohort,
        rule=rule,
        privacy=privacy,
        groups=bool(config.groups),
        bounds=Bounds(examples=rounds.max_examples, part=rounds.max_part),
        threads=_THREADS,
    )
    if privacy.rests_on_sampling and rounds.mode == "buffered":
        raise ConfigError(
            f"a buffered federation takes devices as they come, which is not the sampling {privacy.sampling!r}",
            mend="use synchronous rounds, or the sampling 'none'",
        )
    check_minimum(config)
    check_enough(config, rule)
    if rounds.mode == "buffered" and (not strategy.merges_stale or strategy.sends_own_sets):
        raise ConfigError(
            f"{type(strategy).__name__} merges changes of one version only, a buffered federation has those of several",
            mend="use synchronous rounds, or a strategy like 'fedavg'",
        )
    check_guarantee(privacy, rounds.total)
    return definition
