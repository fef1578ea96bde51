"""Whole personalizations through ONNX Runtime: of bundles/arrays (runs.json) and bundles/blocks (block_runs.json).

python conformance/run_vectors.py    write

Engines differ in the order of float32 sums, so a reader compares within a
tolerance, and generate.py leaves these files alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from toy import arrays, f64

from pfl_mobile.bundle import Bundle
from pfl_mobile.engines import open_session
from pfl_mobile.local.trainer import LocalTrainer
from pfl_mobile.plan.schema import Plan
from pfl_mobile.random import uniform

FOLDER = Path(__file__).parent
CLASSES, WIDTH = 4, 6


def rows(seed: int, count: int) -> dict[str, np.ndarray]:
    """Points around a centre of their class; every fifth weighs half."""
    labels = np.arange(count, dtype=np.int64) % CLASSES
    spread = uniform(seed, count * WIDTH).reshape(count, WIDTH) - 0.5
    centre = np.eye(CLASSES, WIDTH)[labels] * 2
    weight = np.where(np.arange(count) % 5 == 4, 0.5, 1.0)
    return {"x": (centre + spread).astype(np.float32), "labels": labels, "weight": weight.astype(np.float32)}


#: Bundle and examples of each file.
RUNS = {"runs.json": ("arrays", 14), "block_runs.json": ("blocks", 12)}


def run(file: str) -> dict[str, Any]:
    """The run as JSON."""
    name, count = RUNS[file]
    train, holdout = rows(1, count), rows(2, 6)
    with Bundle.open(FOLDER / "bundles" / name) as bundle:
        plan = Plan.load(bundle.plan_json())
        with open_session(bundle, "onnxruntime", threads=1, trusted=True) as session:
            trainer = LocalTrainer(session, plan, bundle.manifest.tensors, bundle.values())
            report = trainer.personalize(train, holdout)
    assert report.state is not None
    return {
        "bundle": f"bundles/{name}",
        "train": arrays(train),
        "holdout": arrays(holdout),
        "status": report.status,
        "steps": report.steps,
        "losses": [f64(loss) for loss in report.losses],
        "before": {name: f64(value) for name, value in report.before.items()},
        "after": {name: f64(value) for name, value in report.after.items()},
        "tensors": arrays(report.state.tensors),
    }


if __name__ == "__main__":
    for file in RUNS:
        (FOLDER / file).write_text(json.dumps(run(file), ensure_ascii=False) + "\n")
