"""Models of transformers are exported and trained as they are: on every engine with PFL_ALL_ENGINES=1, else some on
some."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pfl_exporters.targets import resolve
from pfl_exporters.verify import cases, check_engine, check_traced, open_lowered, program_specs
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.trace import gradients, trace_programs, trained_names
from tests.exporters.hugging_face import FAMILIES, family

_ALL = bool(os.environ.get("PFL_ALL_ENGINES"))
#: The engines that each is run on in every run of the tests.
_SOME = {"DistilBERT": ["android", "onnx"], "GPT-2": ["onnx"], "wav2vec 2": ["onnx"]}
_STEPS = 20 if _ALL else 3


def trained(d: Deployment, run: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors after some steps of SGD on the example batch."""
    values = {name: value.clone() for name, value in d.model.values().items()}
    for _ in range(_STEPS):
        found = run(values)
        for name in trained_names(d.model):
            values[name] = values[name] - 0.05 * found[f"grad.{name}"] / found["weight_sum"]
    return values


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_every_gradient_equal_pytorch(name: str, tmp_path: Path) -> None:
    d = family(name)
    programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    reference = cases(d.model, d.task, d.batch, d.inputs_of_predict(), rounds=2)
    assert check_traced(programs, reference)["grad_max_rel_err"] < 1e-4
    batch, names = dict(d.batch), trained_names(d.model)
    want = trained(d, lambda values: gradients(d.model, d.task, batch, values, names))
    for target in ["onnx", "android"] if _ALL else _SOME.get(name, []):
        (found,) = resolve([target])
        found.load()
        folder = tmp_path / target
        folder.mkdir()
        lowered = found.lower(programs, folder, lambda _: None)
        with open_lowered(found, lowered, program_specs(programs)) as session:
            assert check_engine(session, reference)["grad_max_rel_err"] < 1e-4

            def step(values: dict[str, Tensor]) -> dict[str, Tensor]:
                given = {name: value.numpy() for name, value in {**batch, **values}.items()}
                return {
                    name: torch.from_numpy(value) for name, value in session.run("gradients", given).items()
                }

            ended = trained(d, step)
        for name, value in want.items():
            moved = float((value - d.model.values()[name]).norm())
            assert float((ended[name] - value).norm()) <= 1e-3 * moved, name
