"""What the tensor files of a bundle must hold, as its manifest says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pfl_mobile.bundle.content import check_values, golden_cases
from pfl_mobile.errors import TensorMismatchError


def spec(name: str, *shape: int) -> Any:
    return SimpleNamespace(name=name, shape=shape, dtype="float32")


MANIFEST: Any = SimpleNamespace(
    values="tensors.safetensors",
    golden="golden.safetensors",
    tensors=[spec("w", 2), spec("b", 1)],
    programs=[
        SimpleNamespace(name="gradients", inputs=[spec("x", 3), spec("w", 2)], outputs=[spec("loss", 1)]),
        SimpleNamespace(name="predict", inputs=[spec("x", 3)], outputs=[spec("y", 1)]),
    ],
)
VALUES = {"w": np.ones(2, np.float32), "b": np.ones(1, np.float32)}
GOLDEN = {"in.gradients.x": np.zeros(3, np.float32), "out.gradients.loss": np.zeros(1, np.float32)}


def test_a_call_is_complete_with_the_initial_values() -> None:
    check_values(MANIFEST, VALUES)
    found = golden_cases(MANIFEST, GOLDEN, VALUES)
    assert list(found) == ["gradients"]
    assert list(found["gradients"].inputs) == ["x", "w"], "in the order of the program"
    assert found["gradients"].inputs["w"] is VALUES["w"]
    assert list(found["gradients"].outputs) == ["loss"]


def test_a_call_may_have_other_values_than_the_initial_ones() -> None:
    given = {**GOLDEN, "in.gradients.w": np.full(2, 9, np.float32)}
    assert golden_cases(MANIFEST, given, VALUES)["gradients"].inputs["w"][0] == 9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"w": None}, "'w' is missing"),
        ({"v": np.ones(2, np.float32)}, "unknown tensor 'v'"),
        ({"w": np.ones(3, np.float32)}, r"'w' is float32 \[3\]"),
        ({"w": np.ones(2)}, "float64"),
    ],
)
def test_other_values_than_the_manifests_are_named(change: dict[str, Any], says: str) -> None:
    values = {n: v for n, v in (VALUES | change).items() if v is not None}
    with pytest.raises(TensorMismatchError, match=says):
        check_values(MANIFEST, values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"in.gradients.x": None}, "'x' is missing"),
        ({"out.gradients.loss": None}, "'loss' is missing"),
        ({"in.gradients.z": np.zeros(1, np.float32)}, "unknown tensor 'z'"),
        ({"in.gradients.x": np.zeros(4, np.float32)}, "input of program 'gradients'"),
        ({"out.gradients.loss": np.zeros(1)}, "output of program 'gradients'"),
        ({"in.other.x": np.zeros(3, np.float32)}, "belongs to no program"),
        (dict.fromkeys(GOLDEN), "no call of any program"),
    ],
)
def test_golden_files_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    golden = {n: v for n, v in (GOLDEN | change).items() if v is not None}
    with pytest.raises(TensorMismatchError, match=says):
        golden_cases(MANIFEST, golden, VALUES)
