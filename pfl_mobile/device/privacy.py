"""What a device asks for before anything leaves it, and what it does to its update itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.privacy import Noise, SecureNoise, clip_factor, l2_norm, private_update

if TYPE_CHECKING:
    from pfl_mobile.device.sent import SentNoise
    from pfl_mobile.protocol.bodies import Task, TaskPrivacy

#: A local guarantee is computed at no larger delta, whatever the task's statement says.
LARGEST_DELTA = 1e-6


@dataclass(frozen=True)
class PrivacyPolicy:
    """Fail closed: without protection nothing is sent.

    Attributes:
        require: False sends updates also where nothing protects them; only the device's user can say so.
        max_epsilon: largest epsilon; None for any. Where the aggregator adds the noise, and is trusted to, that which
            the task names for the time when the update is in a model; with the mechanism ``local``, that which the
            device computes from its own noise and its own count of updates, this one among them.
        report: whether evaluation reports (sums, without noise) may be sent.
    """

    require: bool = True
    max_epsilon: float | None = None
    report: bool = True

    def refusal(self, task: Task, sent: SentNoise) -> str | None:
        """Why this task must not be done; None when it may.

        Args:
            task: as the aggregator gave it.
            sent: what left this device under its own noise so far.
        """
        if not self.require:
            return None
        privacy = task.privacy
        if privacy.mechanism == "none":
            return "nothing protects the updates (mechanism 'none')"
        if privacy.clip_norm is None or not privacy.clip_norm > 0:
            return "updates are not clipped, so noise could not hide one"
        central, local = privacy.noise_multiplier > 0, privacy.local_noise_multiplier > 0
        if not local and (privacy.mechanism == "local" or not central):
            return f"the mechanism {privacy.mechanism!r} adds no noise"
        if privacy.mechanism == "local" and task.reports:
            return f"the numbers {', '.join(task.reports)} are asked for, which no noise protects from the aggregator"
        return self._too_much(privacy, sent)

    def _too_much(self, privacy: TaskPrivacy, sent: SentNoise) -> str | None:
        if self.max_epsilon is None:
            return None
        epsilon: float | None
        if privacy.mechanism == "local":
            epsilon = sent.epsilon_with(privacy.local_noise_multiplier, _delta(privacy))
        else:
            epsilon = privacy.epsilon_after
        if epsilon is None or math.isnan(epsilon):
            return "the task names no epsilon for after its round"
        if epsilon > self.max_epsilon:
            return f"epsilon is {epsilon:.4g}, the most that is accepted here is {self.max_epsilon:.4g}"
        return None

    def may_report(self, task: Task) -> bool:
        """Whether the evaluation report may be sent: not to an aggregator that is not trusted with updates either."""
        return self.report and not (self.require and task.privacy.mechanism == "local")


def _delta(privacy: TaskPrivacy) -> float:
    """The statement's where it is stricter."""
    told = privacy.statement.get("delta")
    if isinstance(told, float) and 0 < told < LARGEST_DELTA:
        return told
    return LARGEST_DELTA


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
