"""The interpreter of Core ML packages: from the saved files to numbers, and what it says of files that are wrong."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_exporters.lowering import coreml as lowering
from pfl_exporters.verify import cases, check_engine, program_specs
from pfl_mobile.engines import load_engine
from pfl_mobile.engines.coreml import CoremlReferenceSession, reference
from pfl_mobile.engines.coreml.wire import Function, Operation, Reference, TensorType, read_program
from pfl_mobile.errors import EngineError, EngineUnavailableError, PflError, UnsupportedOperatorError
from pfl_mobile.programs.trace import trace_programs
from tests.exporters.lowering.test_coreml import program
from tests.exporters.models import DEPLOYMENTS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, its programs, and its packages of both kinds: by what they are for, the files."""
    torch.set_num_threads(1)
    d = DEPLOYMENTS["mlp"]()
    programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    packages = {}
    for together in (True, False):
        folder = tmp_path_factory.mktemp("packages")
        lowered = lowering.lower(programs, folder, lambda _: None, together=together)
        packages[together] = {use: str(lowered.paths[inner]) for use, inner in lowered.files.items()}
    return d, programs, packages


@pytest.mark.parametrize("together", [True, False])
def test_both_kinds_of_packages_compute_what_pytorch_computes(made, together):
    d, programs, packages = made
    with CoremlReferenceSession(packages[together], program_specs(programs)) as session:
        check_engine(session, cases(d.model, d.task, d.batch, d.inputs_of_predict(), rounds=1))
    names = {Path(path).parts[-4] for use, path in packages[together].items() if use.startswith("model")}
    assert names == ({"model.mlpackage"} if together else {f"{name}.mlpackage" for name in programs})


def test_equal_programs_give_equal_files(made, tmp_path):
    """Also after a conversion that failed."""
    _, programs, packages = made
    broken = program(lambda x: torch.ops.aten.i0.default(torch.relu(x) + torch.tanh(x)), torch.ones(3))
    with pytest.raises(UnsupportedOperatorError):
        lowering.lower({"p": broken}, tmp_path / "broken", lambda _: None)
    again = lowering.lower(programs, tmp_path, lambda _: None)
    for use, inner in again.files.items():
        assert again.paths[inner].read_bytes() == Path(packages[True][use]).read_bytes(), use


def test_apples_own_reader_takes_the_package(made):
    """Both kinds of packages are what coremltools takes for packages of these systems."""
    import coremltools

    for together, version in ((True, 9), (False, 8)):
        use = "package" if together else "package.gradients"
        package = Path(made[2][together][use]).parent
        spec = coremltools.models.MLModel(str(package), skip_model_load=True).get_spec()
        assert spec.specificationVersion == version
        functions = spec.description.functions
        assert [f.name for f in functions] == (list(made[1]) if together else [])
        described = functions[0] if together else spec.description
        program = made[1]["gradients"]
        assert [i.name for i in described.input] == [f"in_{n}" for n in range(len(program.inputs))]
        assert {o.name for o in described.output} == {f"out_{n}" for n in range(len(program.outputs))}


def test_core_ml_itself_is_for_macs(made, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(EngineUnavailableError, match="Mac"):
        load_engine("coreml")(made[2][True], program_specs(made[1]), None)


def test_a_package_without_one_of_the_programs_is_refused(made, tmp_path):
    specs = program_specs(made[1])
    other = specs[0].model_copy(update={"name": "forget"})
    with pytest.raises(EngineError, match="no function 'forget'; it has"):
        CoremlReferenceSession(made[2][True], [other])
    with pytest.raises(EngineError, match=r"no file for 'model\.forget'"):
        CoremlReferenceSession(made[2][False], [other])


def test_a_number_that_core_ml_does_not_have_is_refused():
    assert reference.narrowed(np.array([-(2**31), 2**31 - 1]), "input 'x'").dtype == np.int32
    with pytest.raises(EngineError, match="input 'x' has a number beyond 32 bits"):
        reference.narrowed(np.array([2**31]), "input 'x'")


@given(st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_an_error_or_a_package(made, tmp_path, data):
    """Never anything else: no crash, no error of Python's own."""
    specs = program_specs(made[1])
    which = data.draw(st.sampled_from(["model", "weights"]))
    files = dict(made[2][True])
    whole = Path(files[which]).read_bytes()
    if data.draw(st.booleans()):
        broken = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        broken = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
    files[which] = str(tmp_path / "broken")
    Path(files[which]).write_bytes(broken)
    try:
        with CoremlReferenceSession(files, specs) as session:
            for spec in specs:
                session.run(spec.name, {i.name: np.zeros(i.shape, i.dtype) for i in spec.inputs})
    except PflError:
        pass


def test_missing_files_are_named(made, tmp_path):
    with pytest.raises(EngineError, match="cannot be read"):
        read_program(str(tmp_path / "none.mlmodel"), None)
    # constants that are in no file
    files = dict(made[2][True])
    empty = tmp_path / "weight.bin"
    empty.write_bytes(b"")
    with pytest.raises(EngineError, match="outside of the weight file"):
        read_program(files["model"], str(empty))
    shutil.copy(__file__, tmp_path / "code.mlmodel")
    with pytest.raises(EngineError, match="cannot be read"):
        read_program(str(tmp_path / "code.mlmodel"), None)


def function(kind, shape, **inputs):
    operation = Operation(kind, {k: [v] for k, v in inputs.items()}, [("y", TensorType("float32", shape))])
    return Function([("x", TensorType("float32", (2, 3)))], ["y"], [operation])


X = np.array([[-1, 0, 1], [2, -2, 3]], np.float32)


def test_a_value_of_another_shape_than_declared_is_an_error():
    assert reference.interpret(function("relu", (2, 3), x=Reference("x")), {"x": X})["y"].max() == 3
    with pytest.raises(EngineError, match=r"relu 'y' has shape \[2, 3\], the program declares \[3\]"):
        reference.interpret(function("relu", (3,), x=Reference("x")), {"x": X})
    with pytest.raises(EngineError, match="takes 'x'"):
        reference.interpret(function("relu", (2, 3), x=Reference("x")), {})


def test_an_operator_that_cannot_be_computed_is_named():
    with pytest.raises(EngineError, match="matmul 'y' cannot be computed"):
        reference.interpret(function("matmul", (2, 2), x=Reference("x"), y=Reference("x")), {"x": X})


def test_an_operator_that_is_not_known_is_named():
    with pytest.raises(UnsupportedOperatorError, match="'quantum'"):
        reference._check_known(function("quantum", (1,)))


def test_halves_are_computed_in_32_bits_and_rounded_once():
    half = TensorType("float16", (4096,))
    ones = np.ones(4096, np.float16)
    total = Operation("reduce_sum", {"x": [Reference("h")]}, [("y", TensorType("float32", ()))])
    got = reference.interpret(Function([("h", half)], ["y"], [total]), {"h": ones})["y"]
    assert got == 4096  # in 16 bits the sum stops at 2048
