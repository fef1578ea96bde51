"""Models of transformers are exported as they are: on every engine with PFL_ALL_ENGINES=1, else some on some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pfl_exporters.targets import resolve
from pfl_exporters.verify import cases, check_engine, check_traced, open_lowered, program_specs
from pfl_mobile.programs.trace import trace_programs
from tests.exporters.hugging_face import FAMILIES, family

_ALL = bool(os.environ.get("PFL_ALL_ENGINES"))
#: The engines that each is run on in every run of the tests.
_SOME = {"DistilBERT": ["android", "onnx"], "GPT-2": ["onnx"], "wav2vec 2": ["onnx"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_every_gradient_equal_pytorch(name: str, tmp_path: Path) -> None:
    d = family(name)
    programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    reference = cases(d.model, d.task, d.batch, d.inputs_of_predict(), rounds=2)
    assert check_traced(programs, reference)["grad_max_rel_err"] < 1e-4
    for target in ["onnx", "android"] if _ALL else _SOME.get(name, []):
        (found,) = resolve([target])
        found.load()
        folder = tmp_path / target
        folder.mkdir()
        lowered = found.lower(programs, folder, lambda _: None)
        with open_lowered(found, lowered, program_specs(programs)) as session:
            assert check_engine(session, reference)["grad_max_rel_err"] < 1e-4
