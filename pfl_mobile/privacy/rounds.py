"""The privacy of a run from its first round to its last: clip norm, noise and ledger in one object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import StateError
from pfl_mobile.merge.update_rows import norms
from pfl_mobile.privacy.accounting import Ledger
from pfl_mobile.privacy.clipping import AdaptiveClip, clip_factors
from pfl_mobile.privacy.private_mean import PrivateMean

if TYPE_CHECKING:
    from pfl_mobile.merge.update_rows import UpdateRows
    from pfl_mobile.privacy.config import PrivacyConfig
    from pfl_mobile.privacy.noise import Noise

_CLIP, _NOISE = "clip_norm", "mechanism."


class PrivateRounds:
    """Private means, round after round.

    For each round: ``check_budget``, tell the devices ``clip_norm``, ``merge`` their updates, then save the model,
    ``state`` and ``ledger`` in ONE transaction. After a crash before it, ``restore`` the last saved state and merge
    again: what was not saved was not released.

    Args:
        config: of the federation.
        source: of noise. A server asserts ``require_secure(source)``; a simulation gives ``SimulatedNoise(seed)``.
        ledger: of the rounds before; by default there were none.
    """

    def __init__(self, config: PrivacyConfig, source: Noise, ledger: Ledger | None = None) -> None:
        self.config, self.source = config, source
        self.ledger = Ledger(config) if ledger is None else ledger.reconfigured(config)
        self.noise = config.round_noise(source)
        self._adaptive = (
            None
            if config.adaptive is None
            else AdaptiveClip(config.adaptive, float(config.cohort), config.clip_norm)
        )
        #: Noisy share of unclipped updates in the last round; None where clipping is not adaptive. May be published.
        self.last_share: float | None = None

    @property
    def clip_norm(self) -> float:
        """C of the coming round."""
        return self.config.clip_norm if self._adaptive is None else self._adaptive.clip_norm

    @property
    def secure(self) -> bool:
        """Whether the noise is fit for real devices."""
        return self.source.secure

    def check_budget(self) -> None:
        """Call before each round.

        Raises:
            PrivacyBudgetError: one more round would exceed the budget.
        """
        self.ledger.check_budget()

    def merge(
        self, rows: UpdateRows, weights: np.ndarray, *, row_norms: np.ndarray | None = None
    ) -> np.ndarray:
        """The private mean of a round, float32 [P]; the round is recorded in the ledger.

        The budget is checked first, so that no caller can forget it.

        Args:
            rows: the devices' changes, n of P values each.
            weights: of the devices, [n]; clamped to 0..1.
            row_norms: L2 norms of the rows where they are known, float64 [n].

        Raises:
            PrivacyBudgetError: the round would exceed the budget.
            NonFiniteError: a row or weight is NaN or infinite; nothing is released or recorded.
        """
        self.check_budget()
        found = norms(rows) if row_norms is None else np.asarray(row_norms, np.float64)
        clip_factors(found, self.clip_norm)  # fails before anything changes
        self.source.begin(self.ledger.rounds)
        mean = PrivateMean(self.config, self.noise, self.clip_norm).mean(rows, weights, row_norms=found)
        if self._adaptive is not None:
            self.last_share = self._adaptive.noisy_share(found, self.source)
            self._adaptive = self._adaptive.after(self.last_share)
        self.ledger.record()
        return mean

    def state(self) -> dict[str, np.ndarray]:
        """What coming rounds depend on, beside the ledger: arrays by name, to be saved with the model."""
        kept = {_NOISE + name: value for name, value in self.noise.state().items()}
        return kept | {_CLIP: np.array([self.clip_norm])}

    def restore(self, state: dict[str, np.ndarray], ledger: Ledger) -> None:
        """Go on from a saved state.

        Args:
            state: what ``state`` returned.
            ledger: of the same moment.

        Raises:
            StateError: the state is damaged, or of another configuration.
            LedgerError: the ledger's rounds are of another kind.
        """
        if _CLIP not in state:
            raise StateError(
                "the saved privacy state has no clip norm",
                mend="restore it from the state saved with the model",
            )
        if self._adaptive is not None:
            self._adaptive = self._adaptive.restored({_CLIP: state[_CLIP][0]})
        elif float(state[_CLIP][0]) != self.config.clip_norm:
            raise StateError(
                f"the saved rounds clipped to {float(state[_CLIP][0]):g}, the configuration says "
                f"{self.config.clip_norm:g}",
                mend="go on with the privacy configuration that the state was saved with",
            )
        self.noise.restore({k.removeprefix(_NOISE): v for k, v in state.items() if k.startswith(_NOISE)})
        self.ledger = ledger.reconfigured(self.config)
