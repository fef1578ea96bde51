"""The federation that ``pfl serve`` makes of its options: safe where nothing is said."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pfl_mobile.errors import ConfigError
from pfl_mobile.federation.default_privacy import CLIP_NORM, DELTA, EPSILON, default_privacy
from pfl_mobile.merge.rules import create_rule
from pfl_mobile.privacy import NoNoise, Poisson, PrivacyConfig
from pfl_server.federation.config import FederationConfig
from pfl_server.federation.minimum_cohort import largest_minimum, least_minimum

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Fields of the privacy that say something without noise too.
WITHOUT_NOISE = ("clip_norm", "example_cap", "population")
#: Share of the cohort that a round needs at its deadline.
MINIMUM_SHARE = 0.4


def no_privacy(*, cohort: int, clip_norm: float = CLIP_NORM, base: PrivacyConfig | None = None) -> NoNoise:
    """Updates are clipped, and nothing else protects them.

    Args:
        cohort: updates of a round.
        clip_norm: L2 bound on an update.
        base: what there is instead of noise goes on from here: clip norm, cap on examples, population.
    """
    kept: dict[str, Any] = {"clip_norm": clip_norm}
    if base is not None:
        kept = {name: getattr(base, name) for name in WITHOUT_NOISE}
    return NoNoise.checked(cohort=cohort, **kept)


def federation_config(
    given: Mapping[str, Any],
    *,
    base: FederationConfig | None = None,
    privacy: PrivacyConfig | None = None,
    private: bool = True,
    epsilon: float = EPSILON,
    delta: float = DELTA,
    clip_norm: float = CLIP_NORM,
) -> FederationConfig:
    """A configuration from what is given; the rest from ``base``, or safe defaults.

    Args:
        given: fields of `FederationConfig` by name, of ``rounds`` and ``strategy`` again by name.
        base: of ``federation.json``.
        privacy: given as a whole; says cohort and number of rounds where ``given`` and ``base`` do not.
        private: False: no noise at all; ``base`` still says how updates are clipped.
        epsilon, delta, clip_norm: where neither ``privacy`` nor ``base`` says what protects.

    Raises:
        ConfigError: a value is out of range, or some do not go together.
        UnknownNameError: no such merge rule.
    """
    plain: dict[str, Any] = base.model_dump(mode="json") if base is not None else {}
    for name, value in given.items():
        plain[name] = {**plain.get(name, {}), **value} if isinstance(value, dict) else value
    rounds = plain.setdefault("rounds", {})
    if privacy is not None:  # its noise is for so many devices and rounds
        rounds.setdefault("cohort", privacy.cohort)
        if privacy.rounds is not None:
            rounds.setdefault("total", privacy.rounds)
    chosen = "minimum" in rounds
    if "cohort" in rounds and not chosen:
        rounds["minimum"] = max(1, ceil(MINIMUM_SHARE * rounds["cohort"]))
    # once without the real privacy, so that its inputs are checked first
    first = _checked(plain | {"privacy": {"mechanism": "none", "clip_norm": 1.0, "cohort": 1}})
    found = first.rounds
    if not chosen:
        least = least_minimum(create_rule(first.rule.name, **first.rule.parameters), found.cohort)
        rounds["minimum"] = max(found.minimum, least or 1)
    if privacy is None and not private:
        given_privacy = None if base is None else base.privacy
        privacy = no_privacy(cohort=found.cohort, clip_norm=clip_norm, base=given_privacy)
    elif privacy is None and base is None:
        privacy = default_privacy(
            cohort=found.cohort,
            rounds=found.total,
            min_separation=found.min_separation,
            epsilon=epsilon,
            delta=delta,
            clip_norm=clip_norm,
        )
    if privacy is not None:
        plain["privacy"] = privacy.model_dump(mode="json")
        ahead = found.total or privacy.rounds
        if not chosen and isinstance(privacy.participation, Poisson) and ahead is not None:
            rounds["minimum"] = largest_minimum(privacy, ahead, found.minimum)
    made = _checked(plain)
    total, planned = made.rounds.total, made.privacy.rounds
    if made.privacy.guarantees and planned is not None and total is not None and total > planned:
        raise ConfigError(
            f"the noise is computed for {planned} rounds, and there are to be {total}",
            mend=f"leave --rounds out, give {planned} or less, or plan for {total}: pfl privacy plan --rounds {total}",
        )
    return made


def _checked(plain: Mapping[str, Any]) -> FederationConfig:
    try:
        return FederationConfig.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "federation"
        raise ConfigError(f"{where}: {first['msg']}", mend="correct that setting") from error
