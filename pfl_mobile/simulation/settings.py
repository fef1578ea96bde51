"""Settings as plain values: for printing, and for telling whether a checkpoint belongs to a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.bundle.sealed import digest
from pfl_mobile.local.upload import update_shapes
from pfl_mobile.strategies.rules import Average
from pfl_mobile.strategies.updates import Layout

if TYPE_CHECKING:
    from pfl_mobile.simulation.rounds import Rounds


def describe(value: Any) -> Any:
    """A setting as JSON values: dataclasses by their fields, arrays by a digest, other objects by their name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "sha256": hashlib.sha256(value.tobytes()).hexdigest()[:16]}
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__} | {
            f.name: describe(getattr(value, f.name)) for f in fields(value)
        }
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(str(describe(v)) for v in value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two descriptions differ: dotted path, value in the one, value in the other (None where missing)."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif one != other:
        yield path, one, other


def decisive(rounds: Rounds) -> dict[str, Any]:
    """Everything that decides the results of a run."""
    setup, model = rounds.setup, rounds.setup.model
    return {
        "strategy": describe(rounds.strategy),
        "local": describe(rounds.local),
        "data": {"name": setup.population.name, "users": len(setup.population)},
        "groups": {name: describe(np.asarray(members, np.int64)) for name, members in rounds.groups.items()},
        "model": {
            "backbone": model.backbone_digest(),
            "tensors": {t.name: f"{t.role} {t.dtype}{list(t.shape)}" for t in rounds.server.table},
            "values": digest(rounds.initial),
        },
        "task": {"kind": setup.task.kind} | describe(setup.task.manifest()),
        "batch": len(setup.example["weight"]),
        "device": setup.device,
        "lanes": setup.lanes,
        "cohort_size": rounds.cohort_size,
        "job_size": rounds.job_size,
        "dropout": rounds.dropout,
        "seed": rounds.seed,
        "choose": describe(rounds.choose),
        "rule": None if rounds.rule == Average() else describe(rounds.rule),
        "privacy": describe(rounds.privacy and rounds.privacy.config),
        "tamper": describe(rounds.tamper),
        "client_seed": describe(rounds.client_seed),
    }


def effective(rounds: Rounds) -> dict[str, Any]:
    """The effective configuration of a run, for printing."""
    setup, table = rounds.setup, rounds.server.table
    values = {
        role: sum(int(np.prod(t.shape)) for t in table if t.role == role and t.update == "gradient")
        for role in sorted({t.role for t in table})
    }
    return {
        "strategy": describe(rounds.strategy),
        "local": describe(rounds.local),
        "data": {"name": setup.population.name, "users": len(setup.population)},
        "groups": {name: len(members) for name, members in rounds.groups.items()},
        "task": setup.task.kind,
        "trained_values": values,
        "kept_values_per_device": rounds.states.form.size,
        "bytes_up_per_device": 4 * Layout(update_shapes(rounds.plan(rounds.server.round), table)).size,
        "batch": len(setup.example["weight"]),
        "rounds": rounds.rounds,
        "rounds_done": rounds.server.round,
        "cohort_size": rounds.cohort_size,
        "dropout": rounds.dropout,
        "rule": describe(rounds.rule),
        "privacy": describe(rounds.privacy and rounds.privacy.config),
        "seed": rounds.seed,
        "job_size": rounds.effective_job_size(),
        "lanes": setup.lanes or rounds.engine.lanes,
        "device": setup.device,
        "engine": rounds.engine.describe(),
        "folder": None if rounds.folder is None else str(rounds.folder),
        "checkpoint_every": rounds.checkpoint_every,
    }
