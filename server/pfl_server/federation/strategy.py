"""The strategy that a federation's configuration names, and what does not go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pfl_mobile.errors import ConfigError
from pfl_mobile.merge.rules import create_rule
from pfl_mobile.plan.schema import MovePhase, Plan
from pfl_mobile.privacy.limits import check_guarantee
from pfl_mobile.strategies import create, fairness_names
from pfl_mobile.strategies.state import Context, Local
from pfl_mobile.strategies.strategy import Strategy, take_over
from pfl_mobile.strategies.weighting import Weighting
from pfl_server.federation.config import BUNDLE
from pfl_server.federation.minimum_cohort import check_enough, check_minimum

if TYPE_CHECKING:
    from pfl_mobile.bundle.manifest import StrategyEntry
    from pfl_mobile.merge.rules import Rule
    from pfl_mobile.modules.roles import DeviceTensorInfo
    from pfl_server.federation.config import FederationConfig, StrategyConfig


@dataclass(frozen=True, kw_only=True)
class BundlePlan(Strategy):
    """The bundle's own plan, merged by federated averaging.

    Every round gives it a seed of its own. It takes the aggregator's values over first, where it does not do so itself.

    Attributes:
        text: the plan, JSON.
    """

    text: str = field(repr=False)

    def plan(self, at: Context) -> Plan:
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
        takes_over = any(
            isinstance(p, MovePhase) and (p.moves, p.toward, p.rate) == ("theta", "global", 1.0)
            for p in own.steps()
        )
        before = () if takes_over else take_over(at)
        changes: dict[str, Any] = {
            "phases": (*before, *self.weighting.measures(at), *own.phases),
            "seed": at.seed % 2**63,
        }
        return own.model_copy(update=changes)


def effective(config: StrategyConfig, bundle: StrategyEntry | None) -> StrategyEntry:
    """What a configuration means with a bundle: itself, or for ``bundle`` the strategy that the bundle names, if any.

    Raises:
        ConfigError: something is set that the bundle says, or a fairness's parameters without a fairness.
    """
    if config.fairness is None and config.fairness_parameters:
        raise ConfigError(
            "fairness_parameters are set, but no fairness", mend="name a fairness, or leave them out"
        )
    if config.name != BUNDLE:
        return config
    extra = sorted({**_training(config), **config.parameters})
    if extra:
        raise ConfigError(
            f"the bundle says how to train, so {extra[0]!r} cannot be set",
            mend="leave it out, or name a strategy (`pfl strategies`)",
        )
    if bundle is None or config.fairness is None:
        return bundle or config
    fair = {"fairness": config.fairness, "fairness_parameters": config.fairness_parameters}
    return bundle.model_copy(update=fair)


def make_strategy(said: StrategyEntry, plan: str) -> tuple[Strategy, Local]:
    """The strategy and the local training.

    Args:
        said: what is `effective`.
        plan: the bundle's own plan, JSON.

    Raises:
        UnknownNameError, ConfigError: no such strategy or hyper-parameter, or it is out of range.
    """
    strategy: Strategy
    strategy = BundlePlan(text=plan) if said.name == BUNDLE else create(said.name, **said.parameters)
    own = next(iter(strategy.for_steps(1)), None)
    if own is not None and (said.epochs is not None or said.steps is not None):
        raise ConfigError(
            f"epochs or steps are set, but how long devices train with {said.name} is its {own!r}",
            mend=f"set {own} among the strategy's parameters, and leave epochs and steps out",
        )
    if said.fairness is not None:
        strategy = replace(strategy, weighting=_weighting(said))
    return strategy, Local(**_training(said))


def _training(said: StrategyEntry) -> dict[str, Any]:
    """The local training that is set."""
    names = ("epochs", "steps", "optimizer", "clip")
    return {name: value for name in names if (value := getattr(said, name)) is not None}


def _weighting(said: StrategyEntry) -> Weighting:
    found = create(str(said.fairness), **said.fairness_parameters).weighting
    if found == Strategy().weighting:
        raise ConfigError(
            f"{said.fairness!r} does not weight devices, so it is no kind of fairness",
            mend=f"choose one of {', '.join(fairness_names())}",
        )
    return found


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
    if privacy.rests_on_sampling and rounds.mode == "buffered":
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
