"""Mixed precision: what goes over to 16 bits, what does not, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pfl_exporters.export import export_bundle
from pfl_exporters.lowering import coreml, mixed
from pfl_mobile.bundle import Bundle
from pfl_mobile.engines import open_session
from pfl_mobile.engines.compare import TOLERANCE, golden_check
from pfl_mobile.engines.coreml.wire import Function
from pfl_mobile.errors import ExportError
from pfl_mobile.programs.trace import TracedProgram, trace_programs
from tests.exporters.lowering.test_coreml import program
from tests.exporters.models import DEPLOYMENTS


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (np.float32([1, -2, 0]), True),
        (np.zeros(3, np.float32), True),
        (np.float32([40000, 1]), False),  # too near the largest
        (np.float32([1e-6, 2e-6]), False),  # all below the smallest normal number
        (np.float32([1, 1e-6]), True),  # next to nothing of it is
        (np.float32([np.inf, 1]), False),
    ],
)
def test_what_fits_sixteen_bits(value, fits):
    assert (mixed.strain(value) <= 1) is fits


def scaled_graph(factor: float) -> TracedProgram:
    """A loss with gradients so small that a product needs scaling."""
    small = torch.eye(4) * factor
    made = program(
        lambda weight, w: ((weight[:, None] * (w @ small)).sum().reshape(1), weight.sum().reshape(1)),
        torch.ones(4),
        torch.ones(4, 4),
    )
    return TracedProgram(
        "gradients",
        made.graph,
        dict(zip(("weight", "w"), made.inputs.values(), strict=True)),
        ("grad.w", "weight_sum"),
        ("weight",),
    )


def test_losses_are_scaled_by_as_little_as_helps():
    def of(factor: float) -> float:
        def gradient(weight, w):
            return ((weight * factor)[None] @ w).reshape(-1), weight.sum().reshape(1)

        made = program(gradient, torch.ones(4), torch.ones(4, 3))
        inputs = dict(zip(("weight", "w"), made.inputs.values(), strict=True))
        return mixed.loss_scale(
            TracedProgram("gradients", made.graph, inputs, ("grad.w", "weight_sum"), ("weight",))
        )

    assert of(1.0) == 1
    assert of(1e-6) == 2**6
    assert of(2e-8) == 2**12
    assert of(1e-30) == 1  # where none helps, none is used


def test_a_loss_that_does_not_grow_with_the_weights_is_not_scaled():
    made = program(
        lambda weight, w: (torch.log((weight * 1e-7)[None] @ w).reshape(-1),), torch.ones(4), torch.ones(4, 3)
    )
    inputs = dict(zip(("weight", "w"), made.inputs.values(), strict=True))
    assert mixed.loss_scale(TracedProgram("gradients", made.graph, inputs, ("grad.w",), ("weight",))) == 1


def test_scaling_does_not_show_outside():
    made = scaled_graph(1.0)
    want = made.run(made.inputs)
    mixed.scale_loss(made.graph, 0, 64.0)
    assert any(n.args[1:] == (64.0,) for n in made.graph.graph.nodes)
    for name, value in made.run(made.inputs).items():
        assert torch.equal(value, want[name])


def test_fewer_products_are_those_that_fit_best():
    found = {"a": 0.5, "b": 0.1, "c": 0.9, "d": 0.2, "e": 7.0}
    tries = [mixed.chosen(found, number) for number in range(mixed.TRIES)]
    assert tries == [{"a", "b", "c", "d"}, {"a", "b", "d"}, {"b", "d"}, {"b"}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("mixed") / "b"
    export_bundle(DEPLOYMENTS["mlp"](), ["ios-mixed"], out)
    return out


def test_a_bundle_says_its_precision_and_is_checked_with_it(bundle):
    with Bundle.open(bundle) as opened:
        entry = opened.manifest.engine("coreml")
        said = entry.precision
        assert said is not None
        assert 0 < said.products <= said.of_products
        assert 0 < said.trained_rel_err < 0.05
        with open_session(opened, "coreml-reference", trusted=True) as session:
            report = golden_check(opened, session)
            assert report.ok
            assert report.tolerance == said.tolerance == mixed.ALLOWED
            assert TOLERANCE < report.grad_max_rel_err < mixed.LIMIT  # it is in 16 bits, and near
            assert not golden_check(opened, session, tolerance=TOLERANCE).ok
        files = opened.engine_files("coreml")
        functions = mixed.read(files)
    halves = [
        t for o in functions["gradients"].operations for _, t in o.outputs if t and t.dtype == "float16"
    ]
    assert halves


def test_a_model_that_does_not_bear_it_is_refused_with_the_way_out(monkeypatch, tmp_path):
    d = DEPLOYMENTS["own loss"]()
    programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    monkeypatch.setattr(mixed, "LIMIT", 1e-9)
    monkeypatch.setattr(mixed, "TRIES", 2)
    with pytest.raises(ExportError, match="does not bear mixed precision: an output is off by") as caught:
        coreml.lower_mixed(programs, tmp_path, lambda _: None)
    assert "--target ios" in caught.value.mend


def test_a_package_that_is_wrong_in_32_bits_is_no_matter_of_precision(monkeypatch):
    made = program(lambda x: (x * 2,), torch.ones(3))
    monkeypatch.setattr(mixed, "interpret", lambda *_: {"out_0": np.float32([2, 2, 3])})
    empty = Function((), (), ())
    with pytest.raises(ExportError, match="before any number has 16 bits"):
        mixed.strains({"p": empty}, {"p": made})
