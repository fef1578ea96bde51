"""Settings as plain values: for printing, and for telling whether a checkpoint belongs to a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pfl_mobile.bundle.sealed import digest
from pfl_mobile.local.upload import update_shapes
from pfl_mobile.simulation.code import code_digest, is_users
from pfl_mobile.strategies.rules import Average
from pfl_mobile.strategies.updates import Layout

if TYPE_CHECKING:
    from pfl_mobile.simulation.rounds import Rounds


def describe(value: Any, *, exact: bool = False) -> Any:
    """A setting as JSON values: dataclasses by their fields, arrays by a digest, other objects by their name.

    Args:
        value: any.
        exact: tell a user's functions, classes and objects of the same name apart by what they do and hold.
    """

    def inner(item: Any) -> Any:
        return describe(item, exact=exact)

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return {"torch": inner(value.detach().cpu().numpy())}
    if isinstance(value, np.ndarray):
        sha = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": sha}
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        code = {"code": code_digest(kind, inner)} if exact and is_users(kind) else {}
        return {"kind": kind.__name__} | code | {f.name: inner(getattr(value, f.name)) for f in fields(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(k): inner(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [inner(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(str(inner(v)) for v in value)
    if isinstance(value, partial):
        return {
            "kind": "partial",
            "of": inner(value.func),
            "args": inner(value.args),
            "with": inner(value.keywords),
        }
    name = getattr(value, "__qualname__", type(value).__qualname__)
    users = isinstance(value, FunctionType | MethodType | type) or is_users(type(value))
    return {"name": name, "code": code_digest(value, inner)} if exact and users else name


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
        "strategy": describe(rounds.strategy, exact=True),
        "local": describe(rounds.local),
        "data": {"name": setup.population.name, "users": len(setup.population)},
        "groups": {name: describe(np.asarray(members, np.int64)) for name, members in rounds.groups.items()},
        "model": {
            "backbone": model.backbone_digest(),
            "tensors": {t.name: f"{t.role} {t.dtype}{list(t.shape)}" for t in rounds.server.table},
            "values": digest(rounds.initial),
        },
        "task": {"kind": setup.task.kind} | describe(setup.task.manifest()),
        "program": setup.program_digest(),
        "batch": len(setup.example["weight"]),
        "device": setup.device,
        "lanes": setup.lanes,
        "cohort_size": rounds.cohort_size,
        "job_size": rounds.job_size,
        "dropout": rounds.dropout,
        "seed": rounds.seed,
        "choose": describe(rounds.choose, exact=True),
        "rule": None if rounds.rule == Average() else describe(rounds.rule, exact=True),
        "privacy": describe(rounds.privacy and rounds.privacy.config),
        "tamper": describe(rounds.tamper, exact=True),
        "client_seed": describe(rounds.client_seed, exact=True),
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
