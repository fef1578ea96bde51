"""What makes lowering for Android quick changes no byte of the file, and is undone after it."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import decomp_utils
from typing_extensions import override

from pfl_exporters.lowering import executorch
from pfl_exporters.targets import resolve
from pfl_exporters.verify import cases, check_engine, open_lowered, program_specs
from pfl_mobile import Head, LoRA
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.programs.tasks import ClassificationTask
from pfl_mobile.programs.trace import TracedProgram, trace_programs
from tests.exporters.models import DEPLOYMENTS

aten = torch.ops.aten
#: What the toolchain has before any export changes it.
STOCK = {kind: kind.call for kind in executorch._NEEDED_BY}
COLLECT = decomp_utils._collect_all_valid_cia_ops


@pytest.fixture(scope="module")
def programs() -> dict[str, TracedProgram]:
    """One of a few operators, among them those that three of the passes look for."""
    d = DEPLOYMENTS["own loss"]()
    traced = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    return {"evaluate": traced["evaluate"]}


def lowered(programs: dict[str, TracedProgram], folder: Path) -> bytes:
    found = executorch.lower(programs, folder, lambda _: None)
    return found.paths["model.pte"].read_bytes()


@pytest.mark.slow
def test_passes_that_are_left_out_change_no_byte(
    programs: dict[str, TracedProgram], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: Counter[type] = Counter()

    def counted(kind: type):
        def call(self, graph):
            ran[kind] += 1
            return STOCK[kind](self, graph)

        return call

    for kind in STOCK:
        monkeypatch.setattr(kind, "call", counted(kind))
    quick = lowered(programs, tmp_path)
    few = ran.total()
    monkeypatch.setattr(executorch, "_where_needed", nullcontext)
    monkeypatch.setattr(executorch, "operators_listed_once", nullcontext)
    monkeypatch.setattr(executorch, "_weights_read_once", nullcontext)
    monkeypatch.setattr(executorch._LeanPassManager, "_applies", staticmethod(lambda *_: True))
    assert lowered(programs, tmp_path) == quick
    assert few < ran.total() - few, "the passes were left out"


def graph(*targets: object, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    """A graph that calls each with one input twice."""
    found = fx.Graph()
    x = found.placeholder("x")
    x.meta["val"] = torch.zeros(2, 3, dtype=dtype)
    calls = [found.call_function(target, (x, x)) for target in targets]  # type: ignore[arg-type]
    found.output(tuple(calls))
    return fx.GraphModule({}, found)


@pytest.mark.parametrize(
    ("name", "needing", "other"),
    [
        ("NormalizeTransposePass", graph(aten.t.default), graph(aten.permute.default)),
        ("ReplaceBrokenOpsWithFunctionalOpsPass", graph(aten.view.default), graph(aten.view_copy.default)),
        ("ReplaceViewOpsWithViewCopyOpsPass", graph(aten._unsafe_view.default), graph(aten.mm.default)),
        ("RemoveMixedTypeOperators", graph(aten.mul.Tensor, dtype=torch.int64), graph(aten.mul.Tensor)),
    ],
)
def test_a_pass_runs_where_a_node_needs_it(
    name: str, needing: fx.GraphModule, other: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kind,) = [kind for kind in executorch._NEEDED_BY if kind.__name__ == name]
    ran: list[fx.GraphModule] = []
    monkeypatch.setattr(kind, "call", lambda self, graph: ran.append(graph))
    with executorch._where_needed():
        kind.call(kind(), needing)
        found = kind.call(kind(), other)
    assert ran == [needing]
    assert found.graph_module is other
    assert not found.modified


def test_the_toolchain_is_as_before_after_an_error() -> None:
    def fails() -> None:
        with executorch._toolchain():
            assert all(kind.call is not stock for kind, stock in STOCK.items())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert {kind: kind.call for kind in STOCK} == STOCK
    assert decomp_utils._collect_all_valid_cia_ops is COLLECT


def test_partitions_merge_where_the_toolchain_merges_them(
    programs: dict[str, TracedProgram], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, asked = executorch.GroupBasedPartitioner._can_merge_partitions, Counter[bool]()
    quick = executorch._may_merge

    def both(self, one, other, partitions):
        found = quick(self, one, other, partitions)
        assert found == stock(self, one, other, partitions)
        asked[found] += 1
        return found

    monkeypatch.setattr(executorch, "_may_merge", both)
    lowered(programs, tmp_path)
    assert min(asked[True], asked[False]) > 1


class Awkward(nn.Module):
    """Reads the bias of a product elsewhere too, and takes a maximum that XNNPACK cannot."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.conv, self.head = nn.Linear(6, 4), nn.Conv1d(1, 4, 3), nn.Linear(4, 3)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x) * 2 - self.first.bias
        first = first + self.pool(x.reshape(-1, 1, 2, 3)).mean((1, 2, 3))[:, None]
        return self.head(first + self.conv(x[:, None]).mean(-1) - self.conv.bias) + self.head.bias


@pytest.mark.slow  # lowers; before each product had a bias of its own, the runtime read freed memory and crashed
def test_what_xnnpack_fails_at_is_kept_from_it(tmp_path: Path) -> None:
    model = personalize(Awkward().eval(), [LoRA(["first", "head"], rank=2)])
    task, batch = ClassificationTask(3), {"x": torch.randn(4, 6), "labels": torch.arange(4) % 3}
    batch["weight"] = torch.ones(4)
    programs = trace_programs(model, task, batch, batch)
    (target,) = resolve(["android"])
    lowered_ = target.lower(programs, tmp_path, lambda _: None)
    with open_lowered(target, lowered_, program_specs(programs)) as session:
        assert check_engine(session, cases(model, task, batch, batch))["grad_max_rel_err"] < 1e-4


class Convolutions(nn.Module):
    """Kernels over one and two axes, plain and transposed, with strides, dilation, padding and groups."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.back = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1)
        self.line = nn.Conv1d(3, 2, 5, padding="same")
        self.head = nn.Linear(2 * 64, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.back(torch.tanh(self.grouped(torch.tanh(self.plain(x)))))
        return self.head(torch.tanh(self.line(torch.tanh(y).flatten(2))).flatten(1))


@pytest.mark.slow
def test_trained_convolutions_are_products_for_the_delegate(tmp_path: Path) -> None:
    model = personalize(Convolutions(), [Head("*")])
    task, batch = ClassificationTask(3), {"x": torch.randn(3, 2, 8, 8), "labels": torch.arange(3)}
    batch["weight"] = torch.ones(3)
    programs = trace_programs(model, task, batch, {"x": batch["x"]})
    (target,) = resolve(["android"])
    lowered_ = target.lower(programs, tmp_path, lambda _: None)
    with open_lowered(target, lowered_, program_specs(programs)) as session:
        assert check_engine(session, cases(model, task, batch, {"x": batch["x"]}))["grad_max_rel_err"] < 1e-4


def test_frozen_convolutions_stay_with_the_delegate() -> None:
    task, batch = ClassificationTask(3), {"x": torch.randn(3, 2, 8, 8), "labels": torch.arange(3)}
    batch["weight"] = torch.ones(3)
    chosen = []
    for layers in ("head", "*"):
        model = personalize(Convolutions().eval(), [Head(layers)])
        graph = trace_programs(model, task, batch, {"x": batch["x"]})["gradients"].graph
        kinds = [n for n in graph.graph.nodes if n.target is aten.convolution.default]
        assert len(kinds) >= 4
        chosen.append([executorch._as_products(node) is not None for node in kinds])
    assert not any(chosen[0])
    assert all(chosen[1])
