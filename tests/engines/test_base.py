"""What all engines have in common: arrays are checked before and after a program runs."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.bundle.manifest import ProgramSpec
from pfl_mobile.engines.base import EngineSession, check_inputs, file_for
from pfl_mobile.errors import EngineError, TensorMismatchError, UnknownNameError

SPEC = ProgramSpec.model_validate(
    {
        "name": "add",
        "inputs": [{"name": n, "shape": [2], "dtype": "float32"} for n in ("a", "b")],
        "outputs": [{"name": "sum", "shape": [2], "dtype": "float32"}],
    }
)
A, B = np.array([1, 2], np.float32), np.array([10, 20], np.float32)


class Adding(EngineSession):
    name = "adding"

    def __init__(self, outcome=None):
        super().__init__([SPEC])
        self.outcome = outcome

    def _execute(self, program, inputs):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return [inputs[0] + 2 * inputs[1]] if self.outcome is None else self.outcome


def test_inputs_come_in_the_order_of_the_signature_and_outputs_have_names():
    with Adding() as session:
        found = session.run("add", {"b": B, "other": A, "a": A})
    assert list(found) == ["sum"]
    np.testing.assert_array_equal(found["sum"], [21, 42])
    with pytest.raises(UnknownNameError):
        session.run("add", {"a": A, "b": B})  # it is closed


@pytest.mark.parametrize(
    "wrong", [{}, {"b": B[:1]}, {"b": B.astype(np.float64)}, {"b": B.reshape(1, 2)}, {"b": 1.0}]
)
def test_wrong_inputs_are_named(wrong):
    with pytest.raises(TensorMismatchError, match="'b'"):
        Adding().run("add", {"a": A, **wrong})


def test_inputs_that_lie_apart_in_memory_are_put_together():
    strided = np.arange(4, dtype=np.float32)[::2]
    found = check_inputs(SPEC, {"a": strided, "b": B})
    assert found[0].flags.c_contiguous
    np.testing.assert_array_equal(found[0], [0, 2])


def test_inputs_of_another_byte_order_are_turned():
    found = check_inputs(SPEC, {"a": A.astype(A.dtype.newbyteorder()), "b": B})
    assert found[0].dtype.isnative
    np.testing.assert_array_equal(found[0], A)


@pytest.mark.parametrize(
    "outcome", [[], [A, B], [A[:1]], [A.astype(np.float64)]], ids=["none", "two", "shape", "dtype"]
)
def test_wrong_outputs_are_an_error_and_never_a_number(outcome):
    with pytest.raises(TensorMismatchError, match="output"):
        Adding(outcome).run("add", {"a": A, "b": B})


def test_failures_of_a_runtime_are_one_kind_of_error():
    with pytest.raises(EngineError, match=r"'adding' failed in program 'add': boom"):
        Adding(RuntimeError("boom")).run("add", {"a": A, "b": B})
    ours = TensorMismatchError("mine", mend="m")
    with pytest.raises(TensorMismatchError, match="mine"):
        Adding(ours).run("add", {"a": A, "b": B})


def test_an_unknown_program_is_named_with_the_near_one():
    with pytest.raises(UnknownNameError) as caught:
        Adding().run("ad", {})
    assert "'add'" in caught.value.mend


def test_a_file_that_the_bundle_lacks():
    assert file_for({"model": "m.bin"}, "model") == "m.bin"
    with pytest.raises(EngineError, match="no file for 'weights'"):
        file_for({"model": "m.bin"}, "weights")
