"""What targets lack is found without lowering."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from pfl_exporters.lowering.names import TRACED_AS
from pfl_exporters.lowering.obstacles import blamed, first_line, operator_name, refused, sample, uses
from pfl_exporters.targets import resolve
from pfl_mobile.programs.simplify import annotate
from pfl_mobile.programs.trace import TracedProgram, trace_function

if TYPE_CHECKING:
    from collections.abc import Callable

aten = torch.ops.aten


@cache
def program(function: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> dict[str, TracedProgram]:
    """A function of tensors as a program."""
    values = {f"x{i}": torch.rand(shape) for i, shape in enumerate(shapes)}
    made = trace_function("evaluate", lambda _, v: {"y": function(*v.values())}, {}, values, ())
    return {"evaluate": made}


def several(x: torch.Tensor) -> torch.Tensor:
    """Equal uses, others of the same operators, a result of two, flags, a constant, and a single number."""
    a, b = x.sort(-1)
    y = F.linear(a.tanh() + a.cos().tanh(), torch.ones(5, 6))
    y = torch.where(y > 0.5, y, y.exp()) + F.linear(x.tanh(), torch.ones(5, 6)).tanh()
    return y * y.mean() + b[:, :5]


def test_one_use_stands_for_all_that_are_like_it() -> None:
    found = uses(program(several, (4, 6)))
    tanhs = [u for u in found if u.operator == "tanh"]
    assert [tuple(u.node.meta["val"].shape) for u in tanhs] == [(4, 6), (4, 5)]
    assert len({u.node for u in found}) == len(found)


def test_a_sample_has_each_use_and_runs() -> None:
    found = uses(program(several, (4, 6)))
    made = sample(found)
    named = {n.meta[TRACED_AS]: n for n in made.graph.graph.nodes if TRACED_AS in n.meta}
    for use in found:
        assert named[f"evaluate/{use.node.name}"].target is use.node.target
    annotate(made.graph, list(made.inputs.values()))
    for use in found:
        want, got = use.node.meta["val"], named[f"evaluate/{use.node.name}"].meta["val"]
        if isinstance(want, torch.Tensor):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert all(t.dim() and t.dtype != torch.bool for t in made.inputs.values())
    assert len(made.run(made.inputs)) == len(made.outputs)


@pytest.mark.parametrize("told", [True, False])
def test_all_that_is_refused_is_found(told: bool) -> None:
    """Whether the translator's error says which node it was, or not."""
    bad = {aten.tanh.default, aten.exp.default}
    tries = []

    def attempt(made: TracedProgram) -> None:
        tries.append(made)
        for node in made.graph.graph.nodes:
            if node.target in bad:
                if not told:
                    del node
                raise NotImplementedError("no such operator")

    found = list(refused(uses(program(several, (4, 6))), attempt))
    assert sorted(u.operator for u, _ in found) == ["exp", "tanh", "tanh"]
    assert all(isinstance(error, NotImplementedError) for _, error in found)
    assert not told or len(tries) == 4


def test_the_node_is_read_from_the_frames_of_the_first_cause() -> None:
    graph = fx.Graph()
    n = graph.call_function(aten.tanh.default, (graph.placeholder("x"),))
    n.meta[TRACED_AS] = "its_name"

    def convert(node: fx.Node) -> None:
        raise ValueError(f"cannot\nmuch more of {node}")

    with pytest.raises(RuntimeError) as caught:  # noqa: PT012
        try:
            convert(n)
        except ValueError as error:
            raise RuntimeError("outer") from error
    assert blamed(caught.value) == "its_name"
    assert first_line(caught.value) == "cannot"
    assert blamed(ValueError()) is None
    assert first_line(ValueError()) == "ValueError"


def test_operators_are_named_as_users_call_them() -> None:
    assert operator_name(aten.erfinv.default) == "erfinv"
    assert operator_name(aten.add.Tensor) == "add"
    assert operator_name(aten.pow.Scalar) == "pow.Scalar"


def lacking(target: str, function: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> list[str]:
    """The operators that a target lacks."""
    (found,) = resolve([target])
    found.load()
    return [o.operator for o in found.obstacles(program(function, *shapes))]


@pytest.mark.parametrize("target", ["onnx", "android", "ios"])
def test_what_every_target_has_is_no_obstacle(target: str) -> None:
    def plain(x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(F.linear(x, torch.ones(5, 6)))
        y = F.layer_norm(torch.where(y > 0.5, y, y.exp()), (5,))
        return y.softmax(-1).sum(0, keepdim=True).expand(4, 5)

    assert lacking(target, plain, (4, 6)) == []


@pytest.mark.parametrize(
    ("target", "words"), [("onnx", "ONNX"), ("android", "aten::erfinv.out"), ("ios", "core")]
)
def test_a_missing_operator_is_looked_up(target: str, words: str) -> None:
    (found,) = resolve([target])
    found.load()
    (only,) = found.missing(program(lambda x: torch.erfinv(x * 0.5), (4, 6)))
    assert (only.program, only.operator) == ("evaluate", "erfinv")
    assert words in only.why


def test_a_kernel_that_an_operator_becomes_is_looked_up() -> None:
    """instance_norm is traced as batch norm in training mode, which ExecuTorch's toolchain keeps as it is."""
    assert lacking("android", lambda x: x.digamma(), (4, 6)) == ["digamma"]


def test_what_coremltools_has_but_refuses_is_found_by_trying() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[:, [1, 3, 5]] = x[:, :3].tanh()
        return y * x

    assert lacking("ios", function, (4, 6)) == ["index_put"]
    assert lacking("onnx", function, (4, 6)) == []


def test_kernels_of_the_runtime_are_looked_up_by_type() -> None:
    """ONNX knows a sum of flags' maximum; ONNX Runtime has it of some types only."""
    import onnx
    from onnx import TensorProto, helper

    from pfl_exporters.lowering.onnx import without_kernel

    def model(op: str, kind: int) -> onnx.ModelProto:
        value = [helper.make_tensor_value_info(name, kind, [2]) for name in "xy"]
        node = helper.make_node(op, ["x"], ["y"], name="n")
        entry = node.metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.fx_node", "%seen : [num_users=1] = call_function[...]"
        graph = helper.make_graph([node], "g", value[:1], value[1:])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])

    assert without_kernel(model("Cosh", TensorProto.FLOAT), {"seen": "traced"}) == {}
    assert without_kernel(model("Cosh", TensorProto.FLOAT16), {"seen": "traced"}) == {
        "traced": "Cosh of float16"
    }
    assert without_kernel(model("Elu", TensorProto.FLOAT), {}) == {}
