"""Core ML: operators that its converter has wrong or lacks come out right from the saved package."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from pfl_exporters.lowering import coreml
from pfl_exporters.targets import resolve
from pfl_exporters.verify import program_specs
from pfl_mobile.engines.coreml import CoremlReferenceSession
from pfl_mobile.errors import UnsupportedOperatorError
from pfl_mobile.programs.closed_forms import ClosedForms, decompositions
from pfl_mobile.programs.simplify import simplify
from pfl_mobile.programs.trace import TracedProgram, described_on_meta
from tests.exporters.operators.cases import CASES
from tests.exporters.operators.check import checked

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(2))
IDS = torch.tensor([[0, 2, 1], [1, 0, 2]])
FLAGS = torch.tensor([1, 0, 1])


def program(function, *inputs) -> TracedProgram:
    def flat(*tensors):
        with ClosedForms():
            out = function(*tensors)
        return out if isinstance(out, tuple) else (out,)

    with described_on_meta():
        graph = make_fx(flat, decomposition_table=decompositions(), tracing_mode="real")(*inputs)
    simplify(graph, inputs)
    names = tuple(f"in{n}" for n in range(len(inputs)))
    outputs = tuple(f"out{n}" for n in range(len(flat(*inputs))))
    return TracedProgram("p", graph, dict(zip(names, inputs, strict=True)), outputs, names)


def through_core_ml(made: TracedProgram, folder: Path) -> list[np.ndarray]:
    lowered = coreml.lower({"p": made}, folder, lambda _: None)
    files = {use: str(lowered.paths[inner]) for use, inner in lowered.files.items()}
    with CoremlReferenceSession(files, program_specs({"p": made})) as session:
        got = session.run("p", {name: value.numpy() for name, value in made.inputs.items()})
    return [got[name] for name in made.outputs]


def gradient(function):
    """The function's gradient by its first argument."""

    def of(x, *others):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf, *others).square().sum(), leaf)[0]

    return of


OPERATORS = {
    "zeros of a number's type": (lambda x: torch.scatter_add(torch.full_like(x, 0), 2, (x > 0).long(), x), X),
    "flags that are gathered": (
        lambda x: torch.gather(x > 0, 2, torch.full((*x.shape[:2], 1), 3)).float(),
        X,
    ),
    "full of whole numbers": (lambda i: torch.full_like(i, 3) + i, IDS),
    "flags and, or, not, xor": (lambda x: ((x > 0) & (x < 1) | ~(x > -1) ^ (x > 2)).float(), X),
    "layer norm, all its results": (
        gradient(lambda x: F.layer_norm(x, [8], torch.arange(8.0), torch.ones(8))),
        X,
    ),
    "a trained convolution": (lambda w: F.conv1d(X, w, padding=1, dilation=2), W),
    "a trained convolution's gradient": (gradient(lambda w: F.conv1d(X, w, stride=2)), W),
    "a transposed convolution": (lambda x: F.conv_transpose1d(x, W.transpose(0, 1), stride=2), X),
    "a trained transposed convolution": (
        lambda w: F.conv_transpose1d(X, w, stride=2, output_padding=1),
        W.transpose(0, 1).contiguous(),
    ),
    "a frozen convolution's gradient": (
        gradient(lambda x: F.conv2d(x, IMAGE[:, :, :3, :3], stride=2)),
        IMAGE,
    ),
    "pooling, by six dimensions": (gradient(lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2)), IMAGE),
    "an embedding's gradient": (gradient(lambda t, i: F.embedding(i, t)), X[0], IDS),
    "cross-entropy's gradient": (
        gradient(lambda x, i: F.cross_entropy(x, i, reduction="none")),
        X[:, 0],
        IDS[:, 0],
    ),
    "ids out": (lambda i: i * 2 + 1, IDS),
    "the largest": (lambda x: torch.topk(x, 3), X),
    "sums so far": (lambda x: x.cumsum(1), X),
    "a window of a tensor": (lambda x: torch.cat([x[:, 1:, ::2], x[:, :-1, 1::2]], 1), X),
    "a window written": (lambda x: torch.slice_scatter(x, x[:, :, :4], 2, 2, 6), X),
    "rows by flags": (lambda x, f: torch.where(f[:, None] > 0, x, torch.zeros(())), X, FLAGS),
    "powers and roots": (lambda x: (x.abs() + 0.1).pow(1.5) + x.abs().add(1e-9).rsqrt() + x.abs().sqrt(), X),
    "a logarithm of little": (lambda x: torch.log(x.abs() * 1e-30), X),
    "log1p and expm1": (lambda x: torch.log1p(x.abs()) + torch.expm1(x), X),
    "steep sigmoids": (lambda x: torch.sigmoid(x * 60) + F.silu(x) + F.softplus(x) + F.hardtanh(x), X),
    "gelu's gradient": (gradient(F.gelu), X),
    "gelu by a tangent": (gradient(lambda x: F.gelu(x, approximate="tanh")), X),
    "sums with factors": (
        lambda x: torch.add(x, x.tanh(), alpha=0.5) - torch.sub(x, x, alpha=3) + torch.rsub(x, x, alpha=2),
        X,
    ),
    "elu and selu": (gradient(lambda x: F.elu(x, 0.3) + F.selu(x)), X),
    "inverses of little": (lambda x: 1 / (x.abs() * 1e-6 + 1e-6), X),
    "inverse roots of little": (lambda x: torch.rsqrt(x.abs() * 1e-12 + 1e-12), X),
    "logarithms of unlikely classes": (gradient(lambda x: -F.log_softmax(x * 1000, -1)[..., 0]), X),
    "log1p and expm1 of little": (lambda x: torch.log1p(x * 1e-7) * 1e7 + torch.expm1(x * 1e-7) * 1e7, X),
    "indices from the end": (
        lambda x, i: x[i - 2] + x[:, torch.tensor([-1, -2, -3, 0, 1, 2, 3, 4])].sum(),
        X[0],
        IDS,
    ),
    "a clamp by whole numbers": (gradient(lambda x: F.hardtanh(x, -1, 1) + F.relu6(x)), X),
    "group norm": (gradient(lambda x: F.group_norm(x, 1, torch.arange(3.0), torch.ones(3))), X),
    "a trained layer norm": (gradient(lambda w: F.layer_norm(X, [8], w, w * 2)), torch.arange(8.0)),
    "an input as an output": (lambda x: (x, x.tanh()), X),
    "one value as two outputs": (lambda x: (x.tanh(), x.tanh()), X),
    "a constant as an output": (lambda x: (torch.ones(3) * 2, x * 2), X),
    "any and all": (lambda x: torch.stack([(x > 1).any(1), (x > -9).all(1)]).float(), X),
}


@pytest.mark.parametrize("what", OPERATORS)
def test_an_operator_is_pytorchs(what: str, tmp_path: Path) -> None:
    function, *inputs = OPERATORS[what]
    made = program(function, *inputs)
    want = made.run(made.inputs)
    for name, got in zip(made.outputs, through_core_ml(made, tmp_path), strict=True):
        np.testing.assert_allclose(got, want[name].numpy(), rtol=1e-5, atol=1e-5)


def test_nothing_but_our_own_steps_is_shown(tmp_path: Path) -> None:
    seen: list[str] = []
    with redirect_stderr(io.StringIO()) as shown:
        coreml.lower({"p": program(torch.relu, X)}, tmp_path, seen.append)
    assert shown.getvalue() == ""
    assert seen == ["ios: p", "ios: share the weights and write"]


def test_an_operator_that_core_ml_lacks_is_told_with_the_way_out(tmp_path: Path) -> None:
    made = program(lambda x: torch.ops.aten.i0.default(x), X)
    with pytest.raises(UnsupportedOperatorError, match=r"'p'.*i0") as caught:
        coreml.lower({"p": made}, tmp_path, lambda _: None)
    assert "--target onnx" in caught.value.mend


@pytest.mark.parametrize(
    ("function", "x", "what"),
    [
        (lambda x: x.reshape(1, 2, 3, 2, 3, 2).sum((3, 5)), IMAGE, "runs no tensor of shape"),
        (lambda x: x * 2, torch.ones(()), "is a single number"),
        (lambda x: x.sum(), X, "gives a single number"),
        (lambda x: x > 0, X, "no place for the programs' inputs or outputs|gives flags"),
        (lambda i: i + 2**40, IDS, "beyond 32 bits"),
        (lambda x: torch.digamma(x.abs() + 1), X, "digamma"),
    ],
)
def test_what_core_ml_does_not_run_is_not_written(function, x, what: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperatorError, match=what) as caught:
        through_core_ml(program(function, x), tmp_path)
    assert caught.value.mend


def test_an_option_that_would_be_dropped_is_refused(tmp_path: Path) -> None:
    made = program(lambda x: torch.ops.aten.i0.default(x), X)
    node = next(n for n in made.graph.graph.nodes if n.op == "call_function")
    node.target, node.args, node.kwargs = torch.ops.aten.addmm.default, (node.args[0],) * 3, {"beta": 2}
    with pytest.raises(UnsupportedOperatorError, match=r"addmm\.default with beta=2"):
        coreml._check_options("p", made.graph)


def test_a_package_says_what_is_in_it(tmp_path: Path) -> None:
    weight = torch.randn(64, 8)
    made = program(lambda x: F.linear(x, weight), X)
    lowered = coreml.lower({"p": made}, tmp_path, lambda _: None)
    assert set(lowered.files) == {"package", "model", "weights"}
    manifest = json.loads(lowered.paths[lowered.files["package"]].read_text())
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    assert root["path"] == "com.apple.CoreML/model.mlmodel"
    assert all(
        (tmp_path / "coreml/model.mlpackage/Data" / e["path"]).exists()
        for e in manifest["itemInfoEntries"].values()
    )
    assert lowered.measured["model_bytes"] == sum(p.stat().st_size for p in lowered.paths.values())


def test_recurrent_steps_that_are_too_many_are_refused_by_their_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = torch.nn.GRU(3, 2).requires_grad_(requires_grad=False)
    made = program(lambda x: layer(x)[0], torch.randn(6, 1, 3))
    monkeypatch.setattr(coreml, "MOST_STEPS", 5)
    (found,) = coreml.missing({"f": made})
    assert found.operator == "nn.GRU"
    assert "6 recurrent steps" in found.why
    with pytest.raises(UnsupportedOperatorError, match=r"nn\.GRU.*6 recurrent steps"):
        coreml.lower({"f": made}, tmp_path, lambda _: None)
    monkeypatch.setattr(coreml, "MOST_STEPS", 6)
    assert coreml.missing({"f": made}) == []
    said: list[str] = []
    coreml.lower({"f": made}, tmp_path, said.append)
    assert "ios: f, 6 recurrent steps, one by one" in said


def test_bounds_that_cross_are_clipped_as_pytorch_does(tmp_path: Path) -> None:
    """Where the lower bound is above the upper one, the upper one holds; coremltools' own clamp takes the other."""
    (case,) = (case for case in CASES if case.name == "clip by tensors")
    (target,) = resolve(["ios"])
    target.load()
    assert checked(case).run(target, tmp_path) < 1e-5
