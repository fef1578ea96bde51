"""Every operator of the table in a program equals PyTorch; those that have forms of their own on the engines too."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from pfl_exporters.targets import resolve
from tests.exporters.operators.cases import CASES, Case
from tests.exporters.operators.check import TOLERANCE, Checked, checked
from tests.exporters.operators.table import PAGE

#: One of each form, together in a program: its own numbers, not which engine has which kernel, are in question here.
TOGETHER = (
    "max_pool2d(kernel_size=3, stride=2, padding=1, ceil_mode=True)",
    "avg_pool2d(kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)",
    "adaptive_max_pool2d(3)",
    "adaptive_avg_pool2d(3)",
    "conv_transpose2d(groups=2, stride=2), trained",
    "conv3d(groups=2, stride=2), trained",
    "conv_transpose3d(stride=2), trained",
    "interpolate(bicubic, 2d, size=7)",
    "pad(replicate, 2d)",
    "grid_sample(bilinear, reflection)",
    "z[:, 2:14] = x",
    "z[:, :6] += y",
    "as_strided",
    "scatter_reduce(amax)",
    "sort(descending)",
    "cumprod",
    "cummax",
    "prod",
    "linalg.inv",
    "weight_norm (old), trained",
    "embedding_bag(mean, offsets), trained",
    "MultiheadAttention(key_padding_mask), trained",
    "GRU, trained",
    "RNN(relu), trained",
    "LSTM(2 layers, bidirectional), packed",
    "LSTM(proj_size), frozen, first states",
    "gaussian_nll_loss",
    "ctc_loss",
)


def test_names_are_unique() -> None:
    assert len({(case.group, case.name) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loss_and_gradients_of_the_traced_program_equal_autograd(case: Case) -> None:
    made = checked(case)
    assert made.error_of(made.program.run(made.program.inputs)) <= TOLERANCE


@cache
def together() -> Checked:
    """The forms in one program, traced once for all engines."""
    cases = [case for case in CASES if case.name in TOGETHER]
    assert len(cases) == len(TOGETHER)
    return checked(*cases)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["android", "onnx", "ios"])
def test_forms_equal_pytorch_on_the_engines(name: str, tmp_path: Path) -> None:
    (target,) = resolve([name])
    target.load()
    assert together().run(target, tmp_path) <= TOLERANCE


def test_the_page_names_every_case() -> None:
    assert re.findall(r"^\| `(.*?)` \|", PAGE.read_text(), re.M) == [case.name for case in CASES]
