"""What a privacy guarantee says and assumes, in sentences for those who were not there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pfl_mobile.privacy.limits import epsilon_problem, rounded_up

if TYPE_CHECKING:
    from pfl_mobile.privacy.config import PrivacyConfig

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
        "relation": config.alike,
        "mechanism": config.title,
        "noise_multiplier": config.counted_noise,
        "clip_norm": config.clip_norm,
        "sampling": config.sampling,
        "sampling_rate": config.sampling_rate,
        "epsilon_known": known[0],
        "epsilon_known_round": known[1],
        "accountant": accountant,
        "local_epsilon": local_epsilon,
        "budget_epsilon": config.budget_epsilon,
        "guarantee": _guarantee(config, epsilon, private),
        "assumptions": config.assumptions(known[1]) if private else [],
        "not_covered": list(_NOT_COVERED) if private else ["everything: there is no noise, or too little"],
    }


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
