"""What a device asks for before anything leaves it, and what it does to its update itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import ConfigError
from pfl_mobile.privacy import Noise, SecureNoise, clip_factor, l2_norm, private_update
from pfl_mobile.privacy.limits import (
    DEVICE_DELTA,
    DEVICE_EPSILON,
    LEAST_CLIP_NORM,
    LEAST_DELTA,
    MOST_CLIP_NORM,
    MOST_DELTA,
    MOST_EPSILON,
    is_number,
)
from pfl_mobile.privacy.local import release_epsilon, sampled_epsilon

if TYPE_CHECKING:
    from collections.abc import Collection

    from pfl_mobile.device.sent import SentNoise
    from pfl_mobile.protocol.bodies import TaskPrivacy

#: Share by which numbers of a statement may differ from those computed here: they are rounded, and computed otherwise.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class PrivacyPolicy:
    """Fail closed: without protection nothing is sent.

    Attributes:
        require: False sends updates also where nothing protects them; only the device's user can say so.
        only_local: True trusts no aggregator: nothing that was trained or measured leaves the device but updates under
            its own noise, no evaluation reports either, whatever mechanism the task names; counts of examples and
            steps do leave.
        min_noise: with ``only_local``, the smallest noise multiplier (relative to the clip norm) of that noise.
        max_epsilon: largest epsilon. Where the aggregator adds the noise, and is trusted to, that which
            the task names for the time when the update is in a model; with the mechanism ``local``, or
            ``only_local``, that which the device computes from its own noise and its own count of updates under it,
            this one among them.
        max_delta: largest delta of the aggregator's guarantee, and that at which the device computes the epsilon of its
            own noise, where the task's statement does not make it smaller.
        report: whether sums that no noise hides may be sent: evaluation reports on the user's own test examples, and
            the numbers that a task asks for along with its update; False refuses such a task.

    Raises:
        ConfigError: a number is out of range, or some settings contradict each other.
    """

    require: bool = True
    only_local: bool = False
    min_noise: float = 0.0
    max_epsilon: float = DEVICE_EPSILON
    max_delta: float = DEVICE_DELTA
    report: bool = True

    def __post_init__(self) -> None:
        """Refuse what would protect less than it seems to."""
        if not 0 < self.max_epsilon <= MOST_EPSILON:
            raise ConfigError(
                f"the largest epsilon is {self.max_epsilon:g}",
                mend=f"give one above 0 and up to {MOST_EPSILON:g}; with more nothing is protected, and there is "
                "--allow-no-privacy for that",
            )
        if not LEAST_DELTA <= self.max_delta <= MOST_DELTA:
            raise ConfigError(
                f"the largest delta is {self.max_delta:g}",
                mend=f"give one from {LEAST_DELTA:g} to {MOST_DELTA:g}, well below 1 / number of devices",
            )
        if not 0 <= self.min_noise < math.inf:
            raise ConfigError(f"the smallest noise is {self.min_noise:g}", mend="give 0 or more")
        if self.only_local and not self.require:
            raise ConfigError(
                "updates cannot need this device's own noise and be sent without any", mend="decide for one"
            )
        if self.min_noise and not self.only_local:
            raise ConfigError(
                "a smallest noise is about this device's own, which is not asked for",
                mend="ask for it too (--only-local-noise)",
            )

    def refusal(
        self, privacy: TaskPrivacy, reports: Collection[str], sent: SentNoise, *, counted: bool = False
    ) -> str | None:
        """Why an update must not be sent; None when it may.

        Args:
            privacy: of its task, as the aggregator gave it.
            reports: names of the numbers that go along.
            sent: what left this device under its own noise so far.
            counted: whether this update is in ``sent`` already.
        """
        if not self.report and reports:
            return (
                f"the numbers {', '.join(reports)} are asked for, which no noise protects, and reports are not allowed "
                "here"
            )
        if not self.require:
            return None
        if not privacy.guarantees:
            return "nothing protects the updates (mechanism 'none')"
        clip_norm = privacy.clip_norm
        if clip_norm is None or not LEAST_CLIP_NORM <= clip_norm <= MOST_CLIP_NORM:
            return f"updates are not clipped (clip norm {clip_norm}), so noise could not hide one"
        own, local = self._own(privacy), privacy.local_noise_multiplier
        if not (math.isfinite(local) and math.isfinite(privacy.noise_multiplier)):
            return f"noise of {privacy.noise_multiplier} and {local} clip norms is none"
        if own and not local > 0:
            return f"this device adds no noise of its own (mechanism {privacy.mechanism!r})"
        if not (local > 0 or privacy.noise_multiplier > 0):
            return f"the mechanism {privacy.mechanism!r} adds no noise"
        if local < self.min_noise:
            return f"this device's own noise is {local:.4g}, the least that is accepted here is {self.min_noise:.4g}"
        if own and reports:
            return (
                f"the numbers {', '.join(reports)} are asked for, which no noise protects from the aggregator"
            )
        if own:
            more = () if counted else (local,)
            return self._above(sent.epsilon(self._delta(privacy), *more))
        return self._untold(privacy) or self._contradiction(privacy)

    def _own(self, privacy: TaskPrivacy) -> bool:
        """Whether only the device's own noise counts."""
        return self.only_local or not privacy.trusts_aggregator

    def _above(self, epsilon: float) -> str | None:
        if not epsilon <= self.max_epsilon:
            return f"epsilon is {epsilon:.4g}, the most that is accepted here is {self.max_epsilon:.4g}"
        return None

    def _untold(self, privacy: TaskPrivacy) -> str | None:
        """What the aggregator's guarantee lacks, by its own words; None where it is enough."""
        told, after = privacy.statement, privacy.epsilon_after
        if told.get("private") is not True:
            return "the aggregator's statement does not say that anything is private"
        delta = told.get("delta")
        if not is_number(delta) or not delta > 0:
            return f"the aggregator's statement names no delta ({delta!r})"
        if delta > self.max_delta * (1 + _ROUNDING):
            return f"delta is {delta:g}, the most that is accepted here is {self.max_delta:g}"
        if after is None or math.isnan(after):
            return "the task names no epsilon for after its round"
        return self._above(after)

    def _contradiction(self, privacy: TaskPrivacy) -> str | None:
        """What in a guarantee that is enough by its own words cannot be true; None where nothing shows it.

        The sampling is believed, as it happens where a device does not see it. But no sampling makes noise hide an
        update that hides nothing from those who know that it is there, and no number of rounds costs less than one.
        """
        told, after, noise = privacy.statement, privacy.epsilon_after or 0.0, privacy.noise_multiplier
        delta = max(float(told["delta"]), LEAST_DELTA)
        known = release_epsilon(1 / noise, delta) if noise > 1e-100 else math.inf
        if known > MOST_EPSILON:
            return (
                f"the noise is too small: to those who know that it is in the round this update alone costs epsilon "
                f"{known:.4g}, the most that is private is {MOST_EPSILON:g}"
            )
        said = told.get("noise_multiplier", noise)
        if not is_number(said) or abs(said - noise) > _ROUNDING * noise:
            return f"the statement is of a noise multiplier of {said!r}, the task's is {noise:g}"
        before = told.get("epsilon")
        if not is_number(before) or not 0 <= before <= after * (1 + _ROUNDING):
            return f"the statement names epsilon {before!r} before the round, and the task {after:g} after it"
        sampling, rate = told.get("sampling"), told.get("sampling_rate")
        if sampling == "none":
            rate = 1.0
        elif sampling in ("poisson", "fixed"):
            if not is_number(rate) or not 0 < rate <= 1:
                return f"the statement names no sampling rate ({rate!r})"
        elif sampling is not None or rate is not None:
            return f"the statement names a sampling that is not known here ({sampling!r})"
        else:  # an aggregator that does not tell
            return None
        least = sampled_epsilon(1 / noise, rate, delta)
        if after < least * (1 - _ROUNDING):
            return (
                f"the task names epsilon {after:.4g} for after its round, but one round with a noise multiplier of "
                f"{noise:g} and the sampling {sampling!r} costs {least:.4g}"
            )
        return None

    def may_report(self, privacy: TaskPrivacy) -> bool:
        """Whether the evaluation report may be sent: not to an aggregator that is not trusted with updates either."""
        return self.report and not (self.require and self._own(privacy))

    def _delta(self, privacy: TaskPrivacy) -> float:
        """The statement's where it is stricter."""
        told = privacy.statement.get("delta")
        if not is_number(told) or not 0 < told < self.max_delta:
            return self.max_delta
        return max(float(told), LEAST_DELTA)


@dataclass(frozen=True)
class Protected:
    """An update as it may leave the device.

    Attributes:
        flat: float32 [P].
        norm: L2 norm before clipping.
        clipped: whether clipping shortened it.
    """

    flat: np.ndarray
    norm: float
    clipped: bool


def protect(flat: np.ndarray, privacy: TaskPrivacy, noise: Noise | None = None) -> Protected:
    """Clip a whole update, all tensors together, and add the device's own noise where the task asks for it.

    Args:
        flat: the change, float32 [P].
        privacy: of the task.
        noise: None for the secure source.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    norm = l2_norm(flat)
    if privacy.clip_norm is None:
        return Protected(flat, norm, clipped=False)
    sent = private_update(flat, privacy.clip_norm, privacy.local_noise_multiplier, noise or SecureNoise())
    return Protected(sent, norm, clip_factor(norm, privacy.clip_norm) < 1.0)
