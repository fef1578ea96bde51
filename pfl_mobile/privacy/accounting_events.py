"""What rounds cost, in the terms of Google's dp-accounting, as JSON values.

An event names the class of ``dp_accounting.DpEvent`` and its fields. Noise multipliers in events are relative to the
sensitivity under the neighbouring relation: where one device is replaced by another, a sum moves by 2 C and not by
C, so z becomes z / 2. (dp-accounting's accountants differ here: for a plain Gaussian event under ``REPLACE_ONE`` its
PLD accountant doubles the sensitivity itself, its RDP accountant does not. So plain Gaussian events are never given
to either under that relation, see ``accounting``.)
"""

from __future__ import annotations

from typing import Any, Literal

from pfl_mobile.errors import LedgerError, MissingDependencyError

Event = dict[str, Any]
Relation = Literal["add_or_remove_one", "replace_one", "zero_out"]

_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "NonPrivateDpEvent": {},
    "GaussianDpEvent": {"noise_multiplier": (int, float)},
    "PoissonSampledDpEvent": {"sampling_probability": (int, float), "event": dict},
    "SampledWithoutReplacementDpEvent": {"source_dataset_size": int, "sample_size": int, "event": dict},
}


def dp_accounting() -> Any:
    """Google's dp-accounting, imported when it is needed.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import dp_accounting as found
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "privacy accounting needs the package 'dp-accounting'", mend="pip install 'pfl-mobile[privacy]'"
        ) from error
    return found


def gaussian(noise_multiplier: float) -> Event:
    """A release with Gaussian noise."""
    return {"class": "GaussianDpEvent", "noise_multiplier": noise_multiplier}


def checked(event: Any) -> Event:
    """An event that was read from somewhere.

    Raises:
        LedgerError: the class is not known here, or a field is missing, too many, or not in its range.
    """
    name = event.get("class") if isinstance(event, dict) else None
    if not isinstance(name, str) or name not in _FIELDS:
        raise LedgerError(
            f"the ledger has an event of class {name!r}", mend=f"known: {', '.join(sorted(_FIELDS))}"
        )
    fields = {k: v for k, v in event.items() if k != "class"}
    typed = fields.keys() == _FIELDS[name].keys() and all(
        isinstance(value, _FIELDS[name][k]) and not isinstance(value, bool) for k, value in fields.items()
    )
    ranged = typed and (
        (fields.get("noise_multiplier", 1.0) == 0 or 1e-101 <= fields.get("noise_multiplier", 1.0) <= 1e101)
        and 0 < fields.get("sampling_probability", 1.0) <= 1
        and 1 <= fields.get("sample_size", 1) <= fields.get("source_dataset_size", 1)
    )
    inner = fields.get("event")
    if not ranged or (inner is not None and checked(inner)["class"] != "GaussianDpEvent"):
        raise LedgerError(
            f"the ledger has an event {event} whose fields are missing or out of range",
            mend="restore the ledger from a backup; it is never edited by hand",
        )
    return dict(event)


def to_dp_event(event: Event) -> Any:
    """The ``dp_accounting.DpEvent``."""
    fields = {k: v for k, v in event.items() if k != "class"}
    if "event" in fields:
        fields["event"] = to_dp_event(fields["event"])
    return getattr(dp_accounting(), event["class"])(**fields)
