"""What local training tells the app."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from pfl_mobile.local.guard import GuardReport
    from pfl_mobile.local.state import PersonalState, StateWarning


class Cancel(Protocol):
    """A token such as ``threading.Event``."""

    def is_set(self) -> bool:
        """Whether to stop."""


@dataclass(frozen=True)
class Progress:
    """After each optimizer step.

    Attributes:
        step: steps done, from 1.
        of: steps of the whole plan.
        loss: mean loss of this step's batch, before the step.
        seconds: since training began.
    """

    step: int
    of: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """What training gave, whatever the guard decided; a device sends its change.

    Attributes:
        tensors: device tensors after training.
        copies: copies after training, also those that the personal state does not keep.
        copies_before: copies before it; those that were not there are missing.
    """

    tensors: Mapping[str, np.ndarray]
    copies: Mapping[str, Mapping[str, np.ndarray]]
    copies_before: Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class TrainReport:
    """The result of ``LocalTrainer.personalize``.

    Attributes:
        status: ``adopted``; ``kept`` (the guard kept the old state); ``skipped`` (nothing was trained);
            ``cancelled``.
        guard: the decision; None when cancelled before it.
        state: what serves now; None = the shipped values.
        version: its number in the store; None without a store. With ``publish=False`` an adopted state is written
            but does not serve before ``PersonalStateStore.adopt``.
        before, after: metrics on the held-out examples.
        steps: optimizer steps of this job, those before a resume included.
        losses: of each step.
        reports: what ``measure`` and ``choose`` phases found; sent beside the update.
        seconds: training and evaluation in this call.
        ms_per_step: median over the steps of this call; None when there was none.
        words: slot words after training.
        resumed_at: steps that a checkpoint had already done; None when training began afresh.
        warnings: what loading the state had to repair.
        notes: other things worth knowing, in plain words.
        trained: what training gave; None when it was skipped or cancelled.
    """

    status: Literal["adopted", "kept", "skipped", "cancelled"]
    guard: GuardReport | None
    state: PersonalState | None
    version: int | None
    before: Mapping[str, float]
    after: Mapping[str, float]
    steps: int
    losses: tuple[float, ...]
    seconds: float
    ms_per_step: float | None
    words: tuple[str, ...] = ()
    reports: Mapping[str, float] = field(default_factory=dict)
    resumed_at: int | None = None
    warnings: tuple[StateWarning, ...] = ()
    notes: tuple[str, ...] = field(default=())
    trained: Trained | None = field(default=None, repr=False, compare=False)

    @property
    def adopted(self) -> bool:
        """Whether the trained state serves now."""
        return self.status == "adopted"

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON: all fields but the tensors and the words."""
        out = {
            name: getattr(self, name)
            for name in ("status", "version", "steps", "seconds", "ms_per_step", "resumed_at")
        }
        out |= {"before": dict(self.before), "after": dict(self.after), "losses": list(self.losses)}
        out["reports"] = dict(self.reports)
        out |= {"slots_assigned": len(self.words), "notes": list(self.notes)}
        out["guard"] = None if self.guard is None else asdict(self.guard)
        out["warnings"] = [asdict(w) for w in self.warnings]
        return out
