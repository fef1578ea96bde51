"""What the database says of a federation's privacy, sealed with each model version in the store of files.

Settings and ledger lie in the database, models in the store. A digest of the first is kept with the second, so that a
budget, a noise or a ledger that was changed in the database alone is noticed at the next start and before each round.
Against somebody who changes both places alike nothing but a backup helps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.errors import LedgerError

if TYPE_CHECKING:
    from pfl_mobile.privacy import Ledger, PrivacyConfig

_SETTINGS, _LEDGER, _ENTRIES = "seal.settings", "seal.ledger", "seal.entries"
_MEND = (
    "restore the database from a backup; what was promised to devices cannot be changed, so begin another federation "
    "(another --data folder, --db and --blobs) for other settings"
)


def seal(config: Mapping[str, Any], ledger: Ledger) -> dict[str, np.ndarray]:
    """Arrays to save with the state of a version.

    Args:
        config: as it is stored.
        ledger: after the version.
    """
    count = _released(ledger)
    return {
        _SETTINGS: _bytes(_digest(config)),
        _LEDGER: _bytes(_chain(ledger, count)),
        _ENTRIES: np.array([count], np.int64),
    }


def check_seal(state: Mapping[str, np.ndarray], config: Mapping[str, Any], ledger: Ledger) -> None:
    """Compare what is stored with what was sealed; a state from before there were seals has none.

    Args:
        state: saved with the newest version.
        config: as it is stored now.
        ledger: as it is stored now; rounds that were not merged may have been added.

    Raises:
        LedgerError: the settings are others, or the ledger lacks rounds or has others.
    """
    if _SETTINGS not in state:
        return
    if state[_SETTINGS].tobytes() != _digest(config):
        raise LedgerError(
            "the settings of the federation in the database are not those that it began with: somebody changed them",
            mend=_MEND,
        )
    count = int(state[_ENTRIES][0])
    if count > _released(ledger) or state[_LEDGER].tobytes() != _chain(ledger, count):
        raise LedgerError(
            "the privacy ledger in the database is not the one that was published with the model: of its first "
            f"{count} rounds some are missing or were changed",
            mend=_MEND,
        )


def check_statement(said: Mapping[str, Any], config: PrivacyConfig) -> None:
    """Compare the privacy statement of the newest version with the settings.

    Raises:
        LedgerError: the statement promises something else.
    """
    now = {
        "budget_epsilon": config.budget_epsilon,
        "clip_norm": config.clip_norm,
        "noise_multiplier": config.counted_noise,
    }
    if said.get("delta") is not None:
        now["delta"] = config.delta
    for name, value in now.items():
        if name in said and said[name] != value:
            raise LedgerError(
                f"the newest model version was published with {name} {said[name]}, the settings in the database have "
                f"{value}: somebody changed them",
                mend=_MEND,
            )


def _released(ledger: Ledger) -> int:
    """Rounds of the ledger that are stored; without noise none are."""
    return ledger.rounds if ledger.config.guarantees else 0


def _chain(ledger: Ledger, count: int) -> bytes:
    """Digest of the first rounds, each over the one before."""
    found = hashlib.sha256().digest()
    for event, times in ledger.entries:
        text = _text(event)
        for _ in range(min(times, count)):
            found = hashlib.sha256(found + text).digest()
        count -= min(times, count)
    return found


def _digest(config: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(_text(config)).digest()


def _text(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _bytes(digest: bytes) -> np.ndarray:
    return np.frombuffer(digest, np.uint8).copy()
