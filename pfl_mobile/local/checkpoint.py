"""Training under way, saved now and then, so that a killed run goes on where it was.

A checkpoint belongs to one job: plan, examples, sets, model and the version it started from. Any other job
discards it and says so. Going on gives bit for bit what an uninterrupted run gives.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.atomic import PRIVATE, atomic_write
from pfl_mobile.bundle.sealed import damaged_head, digest, seal, unseal
from pfl_mobile.errors import TensorFileError
from pfl_mobile.local.phases import Work
from pfl_mobile.reading import MOST_TENSOR_BYTES, read_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def job_key(parts: Sequence[str], sets: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """sha256 of everything that decides how training goes."""
    sha = hashlib.sha256()
    for part in (*parts, *(f"{name}\n{digest(sets[name])}" for name in sorted(sets))):
        sha.update(hashlib.sha256(part.encode()).digest())
    return sha.hexdigest()


def save(path: Path, work: Work, job: str) -> None:
    """Write ``work`` atomically."""
    flat: dict[str, np.ndarray] = {"losses": np.array(work.losses, dtype=np.float64)}
    flat.update({f"tensor:{n}": v for n, v in work.tensors.items()})
    flat.update({f"optimizer:{n}": v for n, v in work.optimizer.items()})
    flat.update({f"start:{n}": v for n, v in work.start.items()})
    for copy, values in work.copies.items():
        flat.update({f"copy:{copy}:{n}": v for n, v in values.items()})
    counts = {"phase": work.phase, "step": work.step, "done": work.done, "rate": work.rate}
    head = {"job": job, "words": list(work.words), "reports": work.reports, **counts}
    atomic_write(path, seal(flat, json.dumps(head, sort_keys=True), form=None), mode=PRIVATE)


def load(path: Path, job: str) -> tuple[Work | None, str | None]:
    """The saved work of this job, or (None, why it cannot be used); (None, None) when there is no file."""
    try:
        flat, head = unseal(read_bytes(path, MOST_TENSOR_BYTES), form=None, what="the checkpoint")
        with damaged_head("the checkpoint"):
            known = head.pop("job")
            head["words"], head["reports"] = tuple(head["words"]), dict(head["reports"])
            for name, types in (("phase", int), ("step", int), ("done", int), ("rate", (int, float))):
                if not isinstance(head[name], types) or isinstance(head[name], bool):
                    raise TypeError(f"{name} is {head[name]!r}")
    except FileNotFoundError:
        return None, None
    except (OSError, TensorFileError) as error:
        return None, f"the checkpoint could not be read and was discarded: {error}"
    if known != job:
        return None, "the checkpoint was of other examples, another plan or an older state, and was discarded"
    work = Work({}, **{name: head[name] for name in ("words", "phase", "step", "done", "rate", "reports")})
    for key, value in flat.items():
        kind, _, name = key.partition(":")
        if kind == "tensor":
            work.tensors[name] = value
        elif kind == "optimizer":
            work.optimizer[name] = value
        elif kind == "start":
            work.start[name] = value
        elif kind == "copy":
            copy, _, tensor = name.partition(":")
            work.copies.setdefault(copy, {})[tensor] = value
        else:
            work.losses = [float(x) for x in value]
    return work, None


def discard(path: Path) -> None:
    """Remove the checkpoint if there is one."""
    path.unlink(missing_ok=True)
