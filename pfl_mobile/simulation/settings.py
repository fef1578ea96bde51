"""Settings as plain values: for printing, and for telling whether a checkpoint belongs to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.files.describe import describe
from pfl_mobile.files.sealed import digest
from pfl_mobile.merge.rules import Average
from pfl_mobile.plan.upload import UpdateLayout, update_shapes

if TYPE_CHECKING:
    from pfl_mobile.simulation.rounds import Rounds


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
        "bytes_up_per_device": 4 * UpdateLayout(update_shapes(rounds.plan(rounds.server.round), table)).size,
        "batch": len(setup.example["weight"]),
        "rounds": rounds.rounds,
        "rounds_done": rounds.server.round,
        "cohort_size": rounds.cohort_size,
        "dropout": rounds.dropout,
        "rule": describe(rounds.rule),
        "privacy": describe(rounds.privacy and rounds.privacy.config),
        "seed": rounds.seed,
        "job_size": rounds.effective_job_size(),
        "lanes": setup.lanes or rounds.backend.lanes,
        "device": setup.device,
        "backend": rounds.backend.describe(),
        "folder": None if rounds.folder is None else str(rounds.folder),
        "checkpoint_every": rounds.checkpoint_every,
    }
