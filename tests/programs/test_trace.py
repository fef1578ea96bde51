"""Programs: exact weights, clear errors for what cannot be traced, and no silent wrong numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from pfl_exporters import verify
from pfl_exporters.export import export_bundle
from pfl_mobile import Head, LoRA
from pfl_mobile.errors import ConfigError, ExportError, GradientMismatchError, UnknownNameError
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Guard, Plan
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.tasks import Batch, ClassificationTask, CustomTask, RegressionTask, TokenTask
from pfl_mobile.programs.trace import described_on_meta, gradients, trace_programs, trained_names
from pfl_mobile.programs.weights import WeightFormat, weights_stored
from tests.exporters.models import DEPLOYMENTS, PLAN, classes, tokens


def traced(d: Deployment) -> dict[str, object]:
    return trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())  # type: ignore[return-value]


def test_padding_changes_nothing() -> None:
    """Rows of weight 0 give the same sums and gradients as a batch without them."""
    d = tokens("decoder", LoRA("*.attn.[qv]", rank=2))
    program = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())["gradients"]
    values = {k: v + 0.1 for k, v in d.model.values().items()}
    weight = torch.ones(d.batch["weight"].shape)
    weight[-1] = 0.0
    garbage = d.batch["tokens"].clone()
    garbage[-1] = 7
    padded = program.run({**d.batch, "tokens": garbage, "weight": weight, **values})
    short = {k: v[:-1] for k, v in d.batch.items()}
    want = gradients(d.model, d.task, short, values, trained_names(d.model))
    for name, value in want.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-5, atol=1e-6)


def test_weights_scale_each_example() -> None:
    d = DEPLOYMENTS["mlp"]()
    program = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())["gradients"]
    once, twice = (
        program.run({**d.batch, "weight": torch.full((5,), w), **d.model.values()}) for w in (1.0, 2.0)
    )
    for name in once:
        torch.testing.assert_close(twice[name], 2 * once[name])


class InPlace(nn.Module):
    """Writes into slices of a fresh tensor, as much code does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape[0], 4)
        y[:, :2] = self.layer(x)[:, :2]
        y[:, 2:] = torch.tanh(self.layer(x)[:, 2:])
        y += 1.0
        mask = torch.zeros(4)
        mask[1] = -3.0
        return y + mask


def deployment(model: nn.Module, target: str = "layer") -> Deployment:
    batch = {"x": torch.randn(3, 6), "labels": torch.tensor([0, 1, 2]), "weight": torch.ones(3)}
    return Deployment("own", personalize(model.eval(), [Head(target)]), ClassificationTask(4), batch, PLAN)


def test_writing_into_slices_is_traced_as_what_it_does() -> None:
    d = deployment(InPlace())
    programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    verify.check_traced(programs, verify.cases(d.model, d.task, d.batch, d.inputs_of_predict()))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.idle = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.idle(x)
        return self.layer(x)


def test_a_tensor_without_influence_is_named() -> None:
    with pytest.raises(ExportError, match=r"any influence"):
        traced(deployment(Unused(), "idle"))
    with pytest.raises(ExportError, match=r"idle\.bias.* no influence"):
        traced(deployment(Unused(), "*"))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if float(self.layer(x).sum()) > 1e9 else self.layer(2 * x)


def test_what_cannot_be_traced_says_so() -> None:
    with pytest.raises(
        ExportError, match=r"a number of Python .*float\(.*, in the model \(.*test_trace\.py:"
    ):
        traced(deployment(Branching()))


def test_batch_mistakes_are_named() -> None:
    d = classes("mlp", LoRA("hidden.[02]", rank=2))
    for change, words in (
        ({"weight": None}, "no 'weight'"),
        ({"labels": d.batch["labels"].to(torch.int32)}, "'labels' is torch.int32"),
        ({"x": d.batch["x"].double()}, "'x' is torch.float64"),
        ({"x": d.batch["x"].numpy()}, "'x' is a ndarray"),
        ({"labels": d.batch["labels"][:2]}, r"'labels' is \[2\], the weights are \[5\]"),
        ({"labels": d.batch["labels"] - 100}, r"label -100 is not in 0\.\."),
    ):
        batch = {k: v for k, v in {**d.batch, **change}.items() if v is not None}
        with pytest.raises(ConfigError, match=words):
            trace_programs(d.model, d.task, batch, d.inputs_of_predict())


def test_a_loss_of_the_wrong_shape_is_named() -> None:
    d = classes("mlp", LoRA("hidden.[02]", rank=2))
    mean = CustomTask(loss=lambda output, _: output.mean())
    with pytest.raises(ConfigError, match="one loss per weighted element"):
        trace_programs(d.model, mean, d.batch, {"x": d.batch["x"][:1]})


def test_shapes_that_would_broadcast_to_all_pairs_are_refused() -> None:
    d = classes("mlp", LoRA("hidden.[02]", rank=2))
    column = {**d.batch, "weight": torch.ones(5, 1)}
    with pytest.raises(ConfigError, match=r"loss has shape \[5\], the weights have \[5, 1\]"):
        trace_programs(d.model, d.task, column, d.inputs_of_predict())
    wide = personalize(nn.Sequential(nn.Linear(6, 1)).eval(), [Head("0")])
    values = {**d.batch, "labels": torch.randn(5)}
    with pytest.raises(ConfigError, match=r"output is \[5, 1\], the labels are \[5\]"):
        trace_programs(wide, RegressionTask(), values, d.inputs_of_predict())


def test_a_task_of_another_number_of_classes_is_refused() -> None:
    d = classes("mlp", LoRA("hidden.[02]", rank=2))
    with pytest.raises(ConfigError, match="a classification task of 9 classes"):
        trace_programs(d.model, ClassificationTask(9), d.batch, d.inputs_of_predict())
    for arguments in ({"classes": 1}, {"classes": 3, "top_k": 0}, {"classes": 3, "top_k": 4}):
        with pytest.raises(ConfigError):
            ClassificationTask(**arguments)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda o, b: F.cross_entropy(F.dropout(o), b["labels"], reduction="none"), "random numbers"),
        (
            lambda o, b: F.cross_entropy(o[:, : b["labels"].numpy().max() + 1], b["labels"]),
            r"NumPy computes with values of a tensor",
        ),
        (lambda o, b: o.sum(-1) / max(b["weight"].tolist()), r"a number of Python is made of a value"),
    ],
)
def test_what_a_trace_would_freeze_is_refused(loss: Callable[..., Tensor], words: str) -> None:
    d = classes("mlp", LoRA("hidden.[02]", rank=2))
    with pytest.raises(ExportError, match=words):
        trace_programs(d.model, CustomTask(loss=loss), d.batch, d.inputs_of_predict())


@pytest.mark.parametrize(
    ("loss", "labels", "words"),
    [
        (lambda o, _: (o - o.mean(0)).square().sum(-1), torch.ones(5), "examples of weight 0 change"),
        (lambda o, b: o.sum(-1) * b["labels"].log(), torch.rand(5) + 0.1, "examples of weight 0 change"),
        (lambda o, b: o.sum(-1) * b["labels"].log(), -torch.ones(5), "PyTorch itself .* not finite"),
    ],
)
def test_losses_that_padding_would_break_are_refused(
    loss: Callable[..., Tensor], labels: Tensor, words: str
) -> None:
    d = classes("mlp", LoRA("hidden.[02]", rank=2))
    with pytest.raises(ExportError, match=words):
        verify.cases(d.model, CustomTask(loss=loss), {**d.batch, "labels": labels}, d.inputs_of_predict())


def test_random_batches_keep_within_the_range_of_the_example() -> None:
    """A cross-entropy of probabilities refuses any label outside of 0..1."""
    d = classes("mlp", LoRA("hidden.[02]", rank=2))

    def loss(output: Tensor, batch: Batch) -> Tensor:
        return F.binary_cross_entropy(torch.sigmoid(output[:, 0]), batch["labels"], reduction="none")

    for labels in (torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]), torch.rand(5)):
        cases = verify.cases(d.model, CustomTask(loss), {**d.batch, "labels": labels}, d.inputs_of_predict())
        assert all(0 <= float(v) <= 1 for case in cases for v in case.inputs.get("labels", ()))


def test_a_guard_on_a_metric_that_is_not_measured_is_refused() -> None:
    d = classes("mlp", LoRA("hidden.[02]", rank=2))
    plan = Plan(phases=PLAN.phases, guard=Guard(metric="top3"))
    with pytest.raises(ConfigError, match="guard compares 'top3'"):
        Deployment("x", d.model, d.task, d.batch, plan)


def test_a_plan_for_tensors_that_do_not_exist_is_refused() -> None:
    d = classes("mlp", LoRA("hidden.[02]", rank=2))
    plan = Plan(phases=(TrainPhase(group=("encoder.*",), epochs=1, optimizer=Sgd(lr=0.1)),))
    with pytest.raises((ConfigError, UnknownNameError), match="encoder"):
        Deployment("x", d.model, d.task, d.batch, plan)


def test_a_model_without_modules_is_refused() -> None:
    with pytest.raises(ConfigError, match="put modules into it first"):
        Deployment("x", nn.Linear(2, 2), ClassificationTask(2), {}, PLAN)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"specials": 9}, {"top_k": 0}, {"top_k": 99}])
def test_token_task_checks_its_numbers(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        TokenTask(9, **arguments)


def test_a_wrong_gradient_stops_the_export_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    d = classes("mlp", LoRA("hidden.[02]", rank=2))
    name = trained_names(d.model)[0]
    original = verify.gradients

    def slightly_wrong(*args: object) -> dict[str, Tensor]:
        out = original(*args)  # type: ignore[arg-type]
        return {**out, f"grad.{name}": out[f"grad.{name}"] * 1.001}

    monkeypatch.setattr(verify, "gradients", slightly_wrong)
    with pytest.raises(GradientMismatchError, match=f"grad.{name}"):
        export_bundle(d, ["torch"], tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_lowering_that_is_wrong_is_caught_in_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pfl_exporters.lowering.files import Lowered
    from pfl_exporters.targets import TARGETS

    d = classes("mlp", LoRA("hidden.[02]", rank=2))
    target = TARGETS.find("torch")

    def broken(programs: dict[str, object], folder: Path, report: object) -> Lowered:
        graph = programs["gradients"].graph  # type: ignore[attr-defined]
        for node in graph.graph.nodes:
            if node.target is torch.ops.aten.tanh.default:
                node.target = torch.ops.aten.sin.default
        graph.recompile()
        return target.lower(programs, folder, report)  # type: ignore[arg-type]

    monkeypatch.setitem(TARGETS._items, "torch", (replace(target, lower=broken), __name__))
    with pytest.raises(GradientMismatchError, match="engine 'torch'"):
        export_bundle(d, ["torch"], tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_values_of_a_trace_are_described_without_modes_of_fake_tensors():
    with described_on_meta():
        graph = make_fx(lambda x: (x + 1).relu().t() * torch.ones(2, 1))(torch.randn(3, 2))
    found = [node.meta["val"] for node in graph.graph.nodes if "val" in node.meta]
    assert len(found) == 6
    assert all(type(value) is Tensor and value.device.type == "meta" for value in found)
    assert found[-1].shape == (2, 3)


class GradMode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2 if torch.is_grad_enabled() else 1)


def test_a_model_that_goes_another_way_while_it_is_traced_is_told_so() -> None:
    d = deployment(GradMode())
    batches = (d.batch, d.inputs_of_predict())
    with pytest.raises(GradientMismatchError, match="the traced graph: output") as caught:
        verify.check_traced(
            trace_programs(d.model, d.task, *batches), verify.cases(d.model, d.task, *batches)
        )
    assert "torch.is_grad_enabled()" in caught.value.mend


class _Steps(nn.Module):
    """Two layers with a constant that is made in place, read as numbers where asked for."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.reads = nn.Linear(6, 8), nn.Linear(8, 3), reads
        self.described: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.described.append(isinstance(x, FakeTensor))
        mask = torch.zeros(8)
        mask[:2] = 1.0
        scale = sum(torch.arange(4).tolist()) if self.reads else 6
        return self.second(torch.tanh(self.first(x)) * mask * scale)


@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("reads", [False, True])
def test_a_large_model_is_traced_without_computing_where_no_values_are_asked_for(
    reads: bool, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are the same, and so are the forms of their values."""
    monkeypatch.setattr("pfl_mobile.programs.weights.SMALLEST", 1)
    batch = {"x": torch.randn(4, 6), "labels": torch.arange(4) % 3, "weight": torch.ones(4)}
    model = personalize(_Steps(reads), [LoRA("first", rank=2)])
    found, described, said = [], [], list[str]()
    for least in (1 << 30, 0):
        monkeypatch.setattr("pfl_mobile.programs.trace.LARGE_BYTES", least)
        with weights_stored(model, WeightFormat(weights)):
            model.backbone.described.clear()
            found.append(
                trace_programs(model, ClassificationTask(3), batch, {"x": batch["x"][:1]}, say=said.append)
            )
            described.append(list(model.backbone.described))
    assert not any(described[0])
    assert any(described[1])
    assert described[1][-1] is not reads, "what asks for values is traced with them"
    named = [line.partition(" asks for values")[0] for line in said]
    assert named == (["gradients", "evaluate", "predict"] if reads else []), "and it is said"
    for name, program in found[0].items():
        other = found[1][name].graph
        assert program.graph.code == other.code
        values = [
            [n.meta["val"] for n in graph.graph.nodes if "val" in n.meta] for graph in (program.graph, other)
        ]
        forms = [[(v.shape, v.dtype, v.device.type) for v in of if isinstance(v, Tensor)] for of in values]
        assert forms[0] == forms[1]
        inputs = program.inputs
        for key, value in program.run(inputs).items():
            assert torch.equal(value, found[1][name].run(inputs)[key])
