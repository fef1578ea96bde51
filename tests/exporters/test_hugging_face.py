"""Models of transformers are exported as they are: on every engine with PFL_ALL_ENGINES=1, else some on some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pfl_exporters.export import open_lowered, program_specs
from pfl_exporters.targets import resolve
from pfl_exporters.verify import cases, check_engine
from pfl_mobile.programs.trace import trace_programs
from tests.exporters.hugging_face import FAMILIES, family

_ALL = bool(os.environ.get("PFL_ALL_ENGINES"))
#: The engine that each is run on in every run of the tests; between them both of Android's.
ENGINES = {"DistilBERT": ["android", "onnx"], "GPT-2": ["onnx"], "wav2vec 2": ["onnx"]}
RUNS = [
    (name, target)
    for name in FAMILIES
    for target in (["torch", "onnx", "android"] if _ALL else ENGINES.get(name, ["torch"]))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), RUNS)
def test_loss_and_every_gradient_equal_pytorch(name: str, target: str, tmp_path: Path) -> None:
    d = family(name)
    programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    (found,) = resolve([target])
    found.load()
    lowered = found.lower(programs, tmp_path, lambda _: None)
    with open_lowered(found, lowered, program_specs(programs)) as session:
        checked = check_engine(session, cases(d.model, d.task, d.batch, d.inputs_of_predict(), rounds=2))
    assert checked["grad_max_rel_err"] < 1e-4
