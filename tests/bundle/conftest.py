"""A small bundle without a real program, and ways to make others from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pfl_mobile.bundle import generate_key, tensors_to_bytes, write_bundle

if TYPE_CHECKING:
    from pathlib import Path


def spec(name: str, shape: list[int], dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": dtype}


def make_parts(version: str = "1") -> dict[str, Any]:
    batch = [spec("tokens", [2, 4], "int64"), spec("weight", [2, 4])]
    trained = spec("out.lora_A", [3, 2])
    return {
        "name": "small",
        "version": version,
        "programs": [
            {
                "name": "gradients",
                "inputs": [*batch, trained],
                "outputs": [spec("loss_sum", [1]), spec("weight_sum", [1]), spec("grad.out.lora_A", [3, 2])],
            },
            {
                "name": "evaluate",
                "inputs": [*batch, trained, spec("slots.active", [2])],
                "outputs": [spec("loss_sum", [1])],
            },
        ],
        "engines": {"executorch": {"files": {"model": "model.pte"}, "measured": {"planned_bytes": 12}}},
        "tensors": [
            {**trained, "role": "shared", "update": "gradient", "module": "lora"},
            {**spec("slots.active", [2]), "role": "personal", "update": "assign", "module": "slots"},
        ],
        "modules": [
            {"name": "lora", "kind": "lora", "config": {"rank": 2}},
            {"name": "slots", "kind": "slots", "config": {"count": 2}},
        ],
        "task": {"kind": "tokens", "metrics": ["top1"], "vocabulary": 12},
        "encoder": {"kind": "text", "length": 4, "batch": 2, "vocabulary": 10, "slots": 2},
        "tokenizer": "tokenizer.json",
    }


def make_tensors() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Initial values and golden tensors."""
    values: dict[str, np.ndarray] = {
        "out.lora_A": np.arange(6, dtype=np.float32).reshape(3, 2),
        "slots.active": np.zeros(2, np.float32),
    }
    one = np.ones(1, np.float32)
    batch: dict[str, np.ndarray] = {
        "tokens": np.ones((2, 4), np.int64),
        "weight": np.ones((2, 4), np.float32),
    }
    golden: dict[str, np.ndarray] = {
        f"in.{program}.{k}": v for program in ("gradients", "evaluate") for k, v in batch.items()
    }
    golden |= {
        "out.gradients.loss_sum": one,
        "out.gradients.weight_sum": one * 8,
        "out.gradients.grad.out.lora_A": np.full((3, 2), 0.5, np.float32),
        "in.evaluate.slots.active": np.ones(2, np.float32),
        "out.evaluate.loss_sum": one * 2,
    }
    return values, golden


def make_files(model: bytes = b"PTE" * 700) -> dict[str, bytes | Path]:
    values, golden = make_tensors()
    return {
        "model.pte": model,
        "plan.json": b'{"schema_version": 1, "phases": []}',
        "tokenizer.json": b"{}",
        "tensors.safetensors": tensors_to_bytes(values),
        "golden.safetensors": tensors_to_bytes(golden),
    }


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def names_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "owner.pem"
    generate_key(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "bundle"
    write_bundle(out, make_parts(), make_files())
    return out


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    out = tmp_path / "bundle.pflb"
    write_bundle(out, make_parts(), make_files())
    return out
