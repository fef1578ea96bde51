"""A small federation without HTTP: a bundle of a few tensors, a database, a clock that stands still, devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pfl_mobile.bundle import Bundle, tensors_to_bytes, write_bundle
from pfl_server.config import FederationConfig

#: Tensors of the small model: name, role, shape.
TENSORS = (("a", "shared", (4,)), ("b", "shared", (2, 3)), ("p", "personal", (2,)))
PLAN: dict[str, Any] = {
    "phases": [
        {"kind": "train", "group": ["role:shared"], "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.1}}
    ],
    "upload": ["role:shared"],
}


class Clock:
    """Seconds since 1970 that pass when a test says so."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


def write_small_bundle(folder: Path, tensors=TENSORS, plan=PLAN, version: str = "1") -> Path:
    """A bundle whose program does not run: the aggregator never runs one."""
    named = [(n, r, s) for n, r, s in tensors]
    specs = [{"name": n, "shape": list(s), "dtype": "float32"} for n, _, s in named]
    batch = [
        {"name": "x", "shape": [2, 3], "dtype": "float32"},
        {"name": "weight", "shape": [2], "dtype": "float32"},
    ]
    sums = [{"name": n, "shape": [1], "dtype": "float32"} for n in ("loss_sum", "weight_sum")]
    grads = [{"name": f"grad.{n}", "shape": list(s), "dtype": "float32"} for n, _, s in named]
    rng = np.random.default_rng(0)
    values = {n: rng.standard_normal(s).astype(np.float32) for n, _, s in named}
    golden = {"in.gradients.x": np.ones((2, 3), np.float32), "in.gradients.weight": np.ones(2, np.float32)}
    golden |= {f"out.gradients.{s['name']}": np.zeros(s["shape"], np.float32) for s in [*sums, *grads]}
    parts = {
        "name": "small",
        "version": version,
        "programs": [{"name": "gradients", "inputs": [*batch, *specs], "outputs": [*sums, *grads]}],
        "engines": {"torch": {"files": {"model": "model.bin"}}},
        "tensors": [
            {
                **spec,
                "role": r,
                "update": "gradient",
                "module": "m",
                **({"group": "default"} if r == "group" else {}),
            }
            for spec, (_, r, _) in zip(specs, named, strict=True)
        ],
        "modules": [{"name": "m", "kind": "lora", "config": {}}],
        "task": {"kind": "classification", "metrics": ["accuracy"]},
        "encoder": {"kind": "arrays", "batch": 2},
    }
    files = {
        "model.bin": b"no program",
        "plan.json": json.dumps({"schema_version": 1, **plan}).encode(),
        "tensors.safetensors": tensors_to_bytes(values),
        "golden.safetensors": tensors_to_bytes(golden),
    }
    write_bundle(folder, parts, files)
    return folder


def federation_config(**changes: Any) -> FederationConfig:
    """Synchronous rounds of three devices without privacy, unless changed: ``rounds={...}`` adds to the rounds."""
    rounds = {"cohort": 3, "minimum": 2, "over_selection": 1.0, "deadline_s": 100.0} | changes.pop(
        "rounds", {}
    )
    privacy = {"mechanism": "none", "clip_norm": 1e6, "cohort": rounds["cohort"]} | changes.pop("privacy", {})
    base = {"rounds": rounds, "privacy": privacy}
    return FederationConfig.model_validate(base | changes)


def open_bundle(folder: Path, **arguments: Any) -> Bundle:
    return Bundle.open(write_small_bundle(folder, **arguments))
