"""What a device asks for before anything leaves it, and what it does to its update itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import ConfigError
from pfl_mobile.privacy import Noise, SecureNoise, clip_factor, l2_norm, private_update

if TYPE_CHECKING:
    from collections.abc import Collection

    from pfl_mobile.device.sent import SentNoise
    from pfl_mobile.protocol.bodies import TaskPrivacy


@dataclass(frozen=True)
class PrivacyPolicy:
    """Fail closed: without protection nothing is sent.

    Attributes:
        require: False sends updates also where nothing protects them; only the device's user can say so.
        only_local: True trusts no aggregator: nothing that was trained or measured leaves the device but updates under
            its own noise, no evaluation reports either, whatever mechanism the task names; counts of examples and
            steps do leave. Needs ``min_noise`` or ``max_epsilon``, as a task may ask for hardly any noise.
        min_noise: with ``only_local``, the smallest noise multiplier (relative to the clip norm) of that noise.
        max_epsilon: largest epsilon; None for any. Where the aggregator adds the noise, and is trusted to, that which
            the task names for the time when the update is in a model; with the mechanism ``local``, or
            ``only_local``, that which the device computes from its own noise and its own count of updates under it,
            this one among them.
        max_delta: largest delta at which the device computes epsilon; the task's statement may make it smaller.
        report: whether evaluation reports (sums, without noise) may be sent.

    Raises:
        ConfigError: a number is out of range, or some settings contradict each other.
    """

    require: bool = True
    only_local: bool = False
    min_noise: float = 0.0
    max_epsilon: float | None = None
    max_delta: float = 1e-6
    report: bool = True

    def __post_init__(self) -> None:
        """Refuse what would protect less than it seems to."""
        if self.max_epsilon is not None and not 0 < self.max_epsilon < math.inf:
            raise ConfigError(f"the largest epsilon is {self.max_epsilon:g}", mend="give one above 0")
        if not 0 < self.max_delta < 1:
            raise ConfigError(f"the largest delta is {self.max_delta:g}", mend="give one between 0 and 1")
        if not 0 <= self.min_noise < math.inf:
            raise ConfigError(f"the smallest noise is {self.min_noise:g}", mend="give 0 or more")
        if self.only_local and not self.require:
            raise ConfigError(
                "updates cannot need this device's own noise and be sent without any", mend="decide for one"
            )
        if self.only_local and not self.min_noise and self.max_epsilon is None:
            raise ConfigError(
                "it is not said how much noise of its own this device asks for",
                mend="give a largest epsilon (--max-epsilon) or a smallest noise (--min-noise)",
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
        if not self.require:
            return None
        if privacy.mechanism == "none":
            return "nothing protects the updates (mechanism 'none')"
        if privacy.clip_norm is None or not privacy.clip_norm > 0:
            return "updates are not clipped, so noise could not hide one"
        own, local = self._own(privacy), privacy.local_noise_multiplier
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
        return self._too_much(privacy, sent, counted)

    def _own(self, privacy: TaskPrivacy) -> bool:
        """Whether only the device's own noise counts."""
        return self.only_local or privacy.mechanism == "local"

    def _too_much(self, privacy: TaskPrivacy, sent: SentNoise, counted: bool) -> str | None:
        if self.max_epsilon is None:
            return None
        epsilon: float | None
        if self._own(privacy):
            more = () if counted else (privacy.local_noise_multiplier,)
            epsilon = sent.epsilon(self._delta(privacy), *more)
        else:
            epsilon = privacy.epsilon_after
        if epsilon is None or math.isnan(epsilon):
            return "the task names no epsilon for after its round"
        if epsilon > self.max_epsilon:
            return f"epsilon is {epsilon:.4g}, the most that is accepted here is {self.max_epsilon:.4g}"
        return None

    def may_report(self, privacy: TaskPrivacy) -> bool:
        """Whether the evaluation report may be sent: not to an aggregator that is not trusted with updates either."""
        return self.report and not (self.require and self._own(privacy))

    def _delta(self, privacy: TaskPrivacy) -> float:
        """The statement's where it is stricter."""
        told = privacy.statement.get("delta")
        return told if isinstance(told, float) and 0 < told < self.max_delta else self.max_delta


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
