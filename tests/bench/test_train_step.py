"""What bench/train_step.py says of where a step's time goes adds up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from train_step import summed


def test_kinds_and_the_runtime_add_up_to_the_step() -> None:
    run = {
        "Dynamic Fully Connected (NC, F32) GEMM [xnnpack]": [2.0, 3.0],
        "mm.out": [1.0],
        "Transpose (ND, X32) [xnnpack]": [0.5],
        "Expand": [0.25],
        "Exp (NC) [xnnpack]": [0.125],
        "never heard of": [4.0],
    }
    parts, kinds = summed([run, run], [12.0, 12.0])
    assert parts["Dynamic Fully Connected (NC, F32) GEMM [xnnpack]"] == {"ms": 5.0, "calls": 2}
    assert next(iter(parts)) == "Dynamic Fully Connected (NC, F32) GEMM [xnnpack]"
    assert kinds == {
        "products": 5.0,
        "products outside the delegate": 1.0,
        "layout": 0.5 + 0.25,
        "elementwise": 0.125,
        "other": 4.0,
        "runtime": pytest.approx(12.0 - 10.875),
        "step": 12.0,
    }
