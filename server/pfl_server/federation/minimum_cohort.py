"""What Poisson sampling gives away when everybody sees whether a round had enough updates to be merged.

One device more or less decides that only where the others are just one short of the minimum: with probability
q P(Binomial(N - 1, q) = minimum - 1) a round, if all who are drawn send an update. Where many do not, a small minimum
is all the more needed, and nothing is promised (``not_covered`` of the statement). This is no part of epsilon, so it
comes on top of delta and has to be small beside it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pfl_mobile.errors import ConfigError, TooFewUpdatesError
from pfl_mobile.privacy import Poisson

if TYPE_CHECKING:
    from pfl_mobile.merge.rules import MergeRule
    from pfl_mobile.privacy import PrivacyConfig
    from pfl_server.federation.config import FederationConfig

#: Share of delta that may come on top of it.
SHARE = 0.1


def deciding_delta(privacy: PrivacyConfig, minimum: int) -> float:
    """Probability that a device is drawn for a round and decides whether it is merged; 0 without Poisson sampling.

    Args:
        privacy: of the federation.
        minimum: updates that a round needs, 1 or more.
    """
    if not (privacy.rests_on_sampling and isinstance(privacy.participation, Poisson)):
        return 0.0
    q, others, wanted = privacy.sampling_rate, privacy.devices - 1, minimum - 1
    if wanted > others:
        return 0.0
    if q >= 1:
        return float(wanted == others)
    ways = math.lgamma(others + 1) - math.lgamma(wanted + 1) - math.lgamma(others - wanted + 1)
    return q * math.exp(ways + wanted * math.log(q) + (others - wanted) * math.log1p(-q))


def largest_minimum(privacy: PrivacyConfig, rounds: int, most: int) -> int:
    """The largest minimum up to ``most`` with which all rounds together add little to delta; 1 where none does.

    Args:
        privacy: of the federation.
        rounds: that there will be.
        most: 1 or more.
    """
    found = 1
    while found < most and deciding_delta(privacy, found + 1) * rounds <= SHARE * privacy.delta:
        found += 1
    return found


def least_minimum(rule: MergeRule, cohort: int) -> int | None:
    """The smallest minimum with which a merge rule has enough updates in every round; None: a cohort is too few.

    Args:
        rule: that merges.
        cohort: updates of a round at most.
    """
    for count in range(cohort, 0, -1):
        try:
            rule.check_count(count)
        except TooFewUpdatesError:
            return None if count == cohort else count + 1
    return 1


def check_enough(config: FederationConfig, rule: MergeRule) -> None:
    """Refuse rounds that close with fewer updates than the merge rule needs; a full one has enough (`check_cohort`).

    Raises:
        ConfigError: some would.
    """
    rounds = config.rounds
    fewest = rounds.cohort if rounds.mode == "buffered" else rounds.minimum
    least = least_minimum(rule, rounds.cohort)
    if least is None or fewest >= least:
        return
    try:
        rule.check_count(least - 1)
    except TooFewUpdatesError as error:
        raise ConfigError(
            f"a round of {fewest} to {rounds.cohort} updates may be too small for the merge rule {config.rule.name!r}: "
            f"{error.message}",
            mend=f"set rounds.minimum (--minimum) to {least} or more",
        ) from error


def check_minimum(config: FederationConfig) -> None:
    """Refuse Poisson sampling where it shows too often whether a device took part.

    Raises:
        ConfigError: it does, or there is no last round to count up to.
    """
    privacy, minimum = config.privacy, config.rounds.minimum
    once = deciding_delta(privacy, minimum)
    if not once:
        return
    rounds = config.rounds.total or privacy.rounds
    if rounds is None:
        raise ConfigError(
            "with Poisson sampling every round shows whether it had enough updates, and there is no last round",
            mend="set rounds.total, or the sampling 'none'",
        )
    if once * rounds <= SHARE * privacy.delta:
        return
    best = largest_minimum(privacy, rounds, minimum)
    enough = deciding_delta(privacy, best) * rounds <= SHARE * privacy.delta
    raise ConfigError(
        f"with Poisson sampling and a minimum of {minimum} updates, {rounds} rounds show with probability "
        f"{once * rounds:.2g} whether a device took part, by being merged or not; that may be a tenth of delta "
        f"{privacy.delta:g}",
        mend=f"set rounds.minimum to {best} or less"
        if enough
        else "use a larger cohort with a small rounds.minimum, or the sampling 'none' (mechanism 'matrix')",
    )
