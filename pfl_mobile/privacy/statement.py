"""What a privacy guarantee says and assumes, in sentences for those who were not there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pfl_mobile.privacy.events import relation
from pfl_mobile.privacy.limits import epsilon_problem

if TYPE_CHECKING:
    from pfl_mobile.privacy.config import PrivacyConfig

_ALIKE = {
    "add_or_remove_one": "add-or-remove-one: a device takes part in the federation or is not there at all",
    "replace_one": "replace-one: a device has its own data or any other; the number of devices is public",
    "zero_out": "zero-out: a device's updates are its own or zeros; all other devices are unchanged",
}

_NOT_COVERED = (
    "evaluation reports and what else devices send beside their updates, such as numbers of examples",
    "that a device is enrolled, when it checks in, how many devices took part and whether they were enough for a "
    "round to be merged, and network traffic",
    "what the aggregator shows its operators beside the models, such as norms and anomaly scores of updates",
    "what tensors that stay on a device reveal to those who hold the device",
    "several devices of one person, which are protected one by one; a device that enrols anew is another one",
    "other federations of these devices, also one that begins anew, and the data that the bundle was made from",
    "floating point: noise is drawn and added in float64 with defences against known attacks, but the guarantee is "
    "that of real numbers",
)


def statement(
    config: PrivacyConfig,
    rounds_done: int,
    epsilon: float,
    accountant: str,
    *,
    local_epsilon: float | None = None,
    known: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """The guarantee after some rounds, as JSON values.

    Args:
        config: of the federation.
        rounds_done: that were released.
        epsilon: of all of them; infinite, or too large to be called private (``limits.py``), where nothing is
            guaranteed.
        accountant: what computed it.
        local_epsilon: of the devices' own noise.
        known: epsilon of a device that is known to take part in all those rounds, and in one; None without sampling.
    """
    private = not epsilon_problem(epsilon)
    return {
        "private": private,
        "epsilon": epsilon if private else None,
        "delta": config.delta if private else None,
        "rounds": rounds_done,
        "unit": "device: all updates of a device in all rounds together",
        "relation": _alike(config) if config.mechanism != "none" else None,
        "mechanism": _mechanism(config),
        "noise_multiplier": config.local_noise_multiplier
        if config.mechanism == "local"
        else config.noise_multiplier,
        "clip_norm": config.clip_norm,
        "sampling": config.sampling,
        "sampling_rate": config.sampling_rate,
        "epsilon_known": known[0],
        "epsilon_known_round": known[1],
        "accountant": accountant,
        "local_epsilon": local_epsilon,
        "budget_epsilon": config.budget_epsilon,
        "guarantee": _guarantee(config, epsilon, private),
        "assumptions": _assumptions(config, known[1]) if private else [],
        "not_covered": list(_NOT_COVERED) if private else ["everything: there is no noise, or too little"],
    }


def _alike(config: PrivacyConfig) -> str:
    """The relation in words.

    An update of zeros is below any clip norm, so it would be counted, and the count moves by 1 and not by the 1/2 that
    is accounted for. What is guaranteed with an adaptive clip norm is that a device is there or left out.
    """
    if relation(config) == "zero_out" and config.adaptive is not None:
        return "zero-out: a device's updates are in all sums and counts or in none; all other devices are unchanged"
    return _ALIKE[relation(config)]


def rounded_up(value: float, digits: int = 4) -> float:
    """To so many significant digits, never down: a guarantee must not look better than it is."""
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1)
    return math.ceil(value / unit * (1 - 1e-12)) * unit


def _guarantee(config: PrivacyConfig, epsilon: float, private: bool) -> str:
    if not private:
        much = f": {epsilon_problem(epsilon)}" if math.isfinite(epsilon) else ""
        return f"There is no guarantee of differential privacy{much}."
    times = rounded_up(math.exp(min(epsilon, 700)), 3)
    return (
        f"All model versions so far together are ({rounded_up(epsilon):.4g}, {config.delta:g})-differentially private "
        f"for each device: whatever they are used for, any outcome is at most {times:.3g} times as probable with the "
        f"device's data as without it, except with probability {config.delta:g}."
    )


def _mechanism(config: PrivacyConfig) -> str:
    if config.mechanism == "none":
        return "none"
    if config.mechanism == "local":
        return "local: every device adds Gaussian noise to its clipped update"
    kind = (
        f"matrix: noise correlated over {config.noise_band} rounds (banded square root)"
        if config.mechanism == "matrix"
        else "gaussian: independent noise on the sum of each round"
    )
    return kind + (", with a private adaptive clip norm" if config.adaptive else "")


def _assumptions(config: PrivacyConfig, known: float | None) -> list[str]:
    if config.mechanism == "local":
        found = [
            "Nobody is trusted but the device itself, which clips and adds noise before anything leaves it.",
            "A device sends at most one update for a task. Every round that gave out tasks is counted, also one that "
            "was not merged, as the aggregator saw what was sent.",
        ]
    else:
        found = [
            "The aggregator is trusted to clip, to add the noise, and to show nobody the updates it receives; the "
            "guarantee is against everybody who sees the models.",
        ]
    if config.sampling == "poisson":
        found.append(
            f"Every device of at least {config.population} is in a round by a coin of its own, with probability "
            f"{config.sampling_rate:.4g}, and who is in a round is kept secret."
        )
    elif config.sampling == "fixed":
        found.append(
            f"Every round has {config.cohort} devices drawn uniformly without replacement from {config.population} "
            "that could all have been drawn, and who is in a round is kept secret: devices that tell each other "
            "whether they were drawn count together how many others were, so they must be few of all."
        )
    if known is not None:
        found.append(
            "Sampling protects from those who do not know which rounds a device is in. Who watches its traffic knows; "
            f"to them one round costs epsilon {rounded_up(known):.4g} (epsilon_known_round), and all rounds "
            "epsilon_known if it is in every one."
        )
    else:
        found.append("Nothing is assumed about how devices are chosen or when they are available.")
        limits = []
        if config.min_separation > 1:
            limits.append(f"rounds of one device are at least {config.min_separation} apart")
        if config.max_participations is not None:
            limits.append(f"a device takes part at most {config.max_participations} times")
        if limits:
            found.append("The aggregator enforces that " + " and ".join(limits) + ".")
    if config.mechanism != "local":
        found.append(
            "Sums are divided by a number fixed in advance, and a device's weight is at most 1, so one device moves a "
            "sum by at most the clip norm."
        )
        found.append("The noise is secret and unpredictable, and every release is drawn anew.")
    if config.local_noise_multiplier and config.mechanism != "local":
        found.append(
            "The devices' own noise is not counted here; local_epsilon is what it alone guarantees against the "
            "aggregator for the merged rounds. Updates sent in rounds that were not merged come on top of that."
        )
    return found
