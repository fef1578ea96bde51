"""A whole personalization through an engine is what runs.json says, within what engines may differ by."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "conformance"


@pytest.fixture
def vectors(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    spec = importlib.util.spec_from_file_location("conformance_run_vectors", FOLDER / "run_vectors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("file", "steps"), [("runs.json", 80), ("block_runs.json", 3)])
def test_a_run_is_what_is_written_down(vectors, file, steps):
    want, found = json.loads((FOLDER / file).read_text()), vectors.run(file)
    assert (found["status"], found["steps"]) == (want["status"], want["steps"]) == ("adopted", steps)
    assert found["train"] == want["train"]
    assert found["tensors"].keys() == want["tensors"].keys()
    for name, tensor in want["tensors"].items():
        np.testing.assert_allclose(floats(found["tensors"][name]), floats(tensor), atol=1e-4, err_msg=name)
    for one, other in zip(found["losses"], want["losses"], strict=True):
        assert double(one) == pytest.approx(double(other), abs=1e-4)


def floats(tensor):
    return np.array([int(word, 16) for word in tensor["f32"].split()], np.uint32).view(np.float32)


def double(text):
    return struct.unpack(">d", bytes.fromhex(text))[0]
