"""Passes over traced graphs: the same numbers, in operators that targets take."""

from __future__ import annotations

import copy
import typing
from typing import Any

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from pfl_exporters.lowering import graphs
from pfl_mobile.errors import ExportError
from pfl_mobile.programs.simplify import copied, form, simplify
from pfl_mobile.programs.trace import TracedProgram, trace_programs
from tests.exporters.models import stock_encoder

aten = torch.ops.aten


def traced(function, *examples):
    graph = make_fx(function)(*examples)
    simplify(graph, examples)
    return graph


def targets(graph):
    return [n.target for n in graph.graph.nodes if n.op == "call_function"]


def test_views_become_copies_with_the_same_values():
    x = torch.randn(2, 3, 4)
    graph = traced(lambda x: x.permute(2, 0, 1).reshape(4, 6)[1:3].unsqueeze(0).select(1, 0) + 1, x)
    expected = graph(x)
    graphs.own_views(graph)
    assert not set(targets(graph)) & set(graphs.OWNING)
    assert aten.permute_copy.default in targets(graph)
    assert torch.equal(graph(x), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_with_a_weight_that_is_an_input_is_written_out(bias):
    x, w, b = torch.randn(5, 3), torch.randn(2, 3), torch.randn(2)
    examples = (x, w, b) if bias else (x, w)
    graph = traced(lambda *a: torch.nn.functional.linear(*a), *examples)
    assert aten.linear.default in targets(graph)
    expected = graph(*examples)
    graphs.unfuse_dynamic_linear(graph, keep=lambda weight: weight.op != "placeholder")
    assert aten.linear.default not in targets(graph)
    assert (aten.addmm.default if bias else aten.mm.default) in targets(graph)
    torch.testing.assert_close(graph(*examples), expected)


@pytest.mark.parametrize(
    ("rows", "turned"), [((3,), True), ((2, 2), True), ((5,), True), ((2, 3), False), ((7,), False)]
)
@pytest.mark.parametrize("wanted", [True, False])
def test_a_weight_with_more_rows_is_the_left_side_of_its_product(rows, turned, wanted):
    x, w = torch.randn(*rows, 4), torch.randn(10, 4)
    graph = traced(lambda x, w: torch.tanh(torch.nn.functional.linear(x, w)), x, w)
    expected, before = graph(x, w), targets(graph)
    graphs.weights_in_rows(graph, lambda _, weight: wanted and weight.target == "w_1")
    torch.testing.assert_close(graph(x, w), expected)
    if not (turned and wanted):
        assert targets(graph) == before
        return
    (product,) = [n for n in graph.graph.nodes if n.target is aten.linear.default]
    assert product.args[0].op == "placeholder"
    assert targets(graph).count(aten.reshape.default) == 2 * (len(rows) - 1)
    for node in graph.graph.nodes:
        if node.op == "call_function":
            args = [form(a.meta["val"]) if isinstance(a, fx.Node) else a for a in node.args]
            assert node.meta["val"].shape == node.target(*args).shape


class TestHintsReadOnce:
    def test_a_class_is_read_once_and_gives_the_same_each_time(self, monkeypatch):
        read = []
        stock = typing.get_type_hints
        monkeypatch.setattr(typing, "get_type_hints", lambda *a: read.append(a[0]) or stock(*a))
        given = typing.get_type_hints
        one, other = ({"Other": kind} for kind in (int, str))
        with graphs.hints_read_once(typing):
            for _ in range(3):
                found = typing.get_type_hints(Hinted, globalns=one)
                assert found == {"value": int}
                found.clear()
            assert typing.get_type_hints(Hinted, globalns=other) == {"value": str}
            assert typing.get_type_hints(hinted) == typing.get_type_hints(hinted) == {"x": int}
        assert read == [Hinted, Hinted, hinted, hinted]
        assert typing.get_type_hints is given


class Hinted:
    value: Other  # noqa: F821  (known by the names that are given)


def hinted(x: int): ...


class TestCodeWhenCalled:
    @staticmethod
    def doubled(graph):
        """The graph with its sum doubled, as a pass does it."""
        for node in graph.graph.nodes:
            if node.op == "output":
                with graph.graph.inserting_before(node):
                    node.args = (graph.graph.call_function(aten.mul.Tensor, (node.args[0], 2)),)
        graph.recompile()

    @pytest.fixture
    def written(self, monkeypatch):
        """Notes the graphs whose code is written."""
        found = []
        write = fx.Graph.python_code
        monkeypatch.setattr(
            fx.Graph, "python_code", lambda graph, *a, **k: found.append(graph) or write(graph, *a, **k)
        )
        return found

    def test_a_call_runs_the_last_change_and_writes_code_once(self, written):
        graph = traced(lambda x: x + 1, torch.ones(2))
        written.clear()
        with graphs.code_when_called():
            self.doubled(graph)
            self.doubled(graph)
            assert written == []
            assert graph(torch.ones(2)).tolist() == [8, 8]
            assert graph(torch.zeros(2)).tolist() == [4, 4]
            assert written == [graph.graph]
        assert graph(torch.ones(2)).tolist() == [8, 8]

    def test_what_was_not_called_inside_is_good_outside(self, written):
        graph = traced(lambda x: x + 1, torch.ones(2))
        with graphs.code_when_called():
            self.doubled(graph)
            other = copy.deepcopy(graph)
            self.doubled(other)
        assert graph(torch.ones(2)).tolist() == [4, 4]
        assert other(torch.ones(2)).tolist() == [8, 8]

    def test_a_change_of_an_inner_graph_is_seen(self):
        inner = traced(lambda x: x + 1, torch.ones(2))
        outer = fx.Graph()
        outer.output(outer.call_module("inner", (outer.placeholder("x"),)))
        graph = fx.GraphModule({"inner": inner}, outer)
        assert graph(torch.ones(2)).tolist() == [2, 2]
        with graphs.code_when_called():
            self.doubled(inner)
            assert graph(torch.ones(2)).tolist() == [4, 4]

    def test_afterwards_code_is_written_at_once_also_after_an_error(self, written):
        graph = traced(lambda x: x + 1, torch.ones(2))
        with pytest.raises(RuntimeError, match="stop"), graphs.code_when_called():
            raise RuntimeError("stop")
        written.clear()
        self.doubled(graph)
        assert written == [graph.graph]


def test_linear_with_a_constant_weight_stays():
    weight = torch.randn(80, 80)  # too large to be stored transposed
    x = torch.randn(5, 80)
    graph = traced(lambda x: torch.nn.functional.linear(x, weight), x)
    before = targets(graph)
    assert aten.linear.default in before
    graphs.unfuse_dynamic_linear(graph, keep=lambda _: False)
    assert targets(graph) == before


def test_linear_with_a_weight_that_the_delegate_takes_stays():
    graph = traced(torch.nn.functional.linear, torch.randn(5, 3), torch.randn(2, 3))
    before = targets(graph)
    graphs.unfuse_dynamic_linear(graph, keep=lambda weight: weight.op == "placeholder")
    assert targets(graph) == before


def test_a_copy_shares_its_constants_and_nothing_else():
    table = torch.randn(3)
    x = torch.randn(3)
    graph = traced(lambda x: (x + table).reshape(3, 1), x)
    other = copied(graph)
    names = [n.target for n in graph.graph.nodes if n.op == "get_attr"]
    assert names
    for name in names:
        assert getattr(other, name).data_ptr() == getattr(graph, name).data_ptr()
    graphs.own_views(other)
    assert aten.reshape.default in targets(graph)
    assert aten.reshape.default not in targets(other)


def test_what_cannot_be_run_is_named():
    def boom(x):
        raise RuntimeError("no such operator")

    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(boom, (x,)),))
    module = fx.GraphModule(torch.nn.Module(), graph)
    program = object.__new__(TracedProgram)
    object.__setattr__(program, "name", "gradients")
    object.__setattr__(program, "graph", module)
    object.__setattr__(program, "inputs", {"x": torch.zeros(1)})
    object.__setattr__(program, "outputs", ("y",))
    with pytest.raises(
        ExportError, match="program 'gradients' cannot be exported: RuntimeError: no such operator"
    ):
        graphs.export_graph(program)


def test_targets_share_one_export_and_change_their_own_copy_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table, x = torch.randn(3), torch.randn(3)
    program = TracedProgram(
        "predict", traced(lambda x: ((x + table).reshape(3, 1),), x), {"x": x}, ("y",), ()
    )
    first = graphs.export_traced(program)
    graphs.own_views(first.graph_module)
    graphs.decomposed_once(first)
    first.graph_signature.output_specs.clear()
    monkeypatch.setattr(graphs, "export_graph", None)
    second = graphs.export_traced(program)
    assert aten.reshape.default in targets(second.graph_module)
    assert "run_decompositions" not in vars(second)
    assert torch.equal(second.module()(x)[0], (x + table).reshape(3, 1))
    (one,), (other,) = ({**e.state_dict, **e.constants}.values() for e in (first, second))
    assert one.data_ptr() == other.data_ptr()


@pytest.mark.parametrize("name", ["predict", "evaluate", "gradients"])
def test_an_exported_program_is_the_one_that_torch_makes(name: str) -> None:
    d = stock_encoder()
    program = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())[name]
    ours = graphs.export_graph(program)
    theirs = torch.export.export(program.graph, tuple(program.inputs.values()), strict=False)

    def calls(exported: torch.export.ExportedProgram) -> list[tuple[Any, ...]]:
        # torch keeps results that nothing uses
        found = [n for n in exported.graph.nodes if n.op == "call_function" and n.users]
        return [(n.target, _described(n.meta["val"])) for n in found]

    assert calls(ours) == calls(theirs)
    assert set(ours.graph_signature.inputs_to_parameters.values()) <= set(theirs.state_dict)
    assert ours.graph_signature.user_inputs == theirs.graph_signature.user_inputs
    assert len(ours.graph_signature.user_outputs) == len(theirs.graph_signature.user_outputs)
    got, wanted = (e.module()(*program.inputs.values()) for e in (ours, theirs))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.stride()
    return [_described(v) for v in value]


def test_a_program_is_decomposed_where_something_is_left_to_do_only():
    exported = torch.export.export(
        traced(lambda x: torch.nn.functional.hardswish(x), torch.randn(3)), (torch.randn(3),)
    )
    program = graphs.decomposed_once(exported)
    assert program.run_decompositions({aten.add.Tensor: None}) is program
    left = program.run_decompositions()
    assert aten.hardswish.default in targets(program.graph_module)
    assert aten.hardswish.default not in targets(left.graph_module)
