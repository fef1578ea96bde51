"""Simplify a traced ATen graph before any engine sees it.

A trace of forward and backward is full of views, copies and transposes that autograd leaves behind. Removed here,
once, for all targets: identities, repeated views and permutes, equal subexpressions, constant arithmetic; and a
matrix product with a transposed weight becomes ``linear`` again, so that forward and backward read the same bytes.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, is_fake, unset_fake_temporarily

from pfl_mobile.programs.weights import DEQUANTIZE

_aten = torch.ops.aten

_COPIES = {
    _aten.alias.default,
    _aten.detach.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.lift_fresh_copy.default,
}
_VIEWS = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.expand.default,
}
_LAYOUT = {_aten.permute.default, _aten.t.default, _aten.transpose.int}

#: Constants computed while tracing are folded up to this many elements: masks and tables, never weight matrices.
FOLD_LIMIT = 1 << 18


def shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's tensor."""
    return tuple(node.meta["val"].shape)


def form(value: Any) -> Any:
    """Shape and type of a value as a meta tensor; of several, of each."""
    if is_fake(value):  # to which operators answer with such again
        with unset_fake_temporarily():
            value = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    return tuple(form(v) for v in value) if isinstance(value, (tuple, list)) else value


def fake_mode(tensors: Sequence[Tensor]) -> FakeTensorMode | None:
    """Of descriptions of tensors, what they are made by; None of tensors."""
    return next((tensor.fake_mode for tensor in tensors if isinstance(tensor, FakeTensor)), None)


def annotate(graph: fx.GraphModule, examples: Sequence[Tensor]) -> None:
    """Note each node's shape and dtype as a meta tensor in ``meta["val"]``.

    A trace notes them, and what changes a graph does so too, or leaves the new nodes without: then it is run once.
    """

    class Annotator(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            n.meta["val"] = form(result)
            return result

    nodes = graph.graph.nodes
    missing = [node for node in nodes if node.op == "call_function" and "val" not in node.meta]
    if missing and fake_mode(examples) is None:
        with torch.no_grad():
            Annotator(graph).run(*examples)
        return
    for node, example in zip([n for n in nodes if n.op == "placeholder"], examples, strict=True):
        node.meta["val"] = form(example)
    for node in nodes:
        if node.op == "get_attr":
            node.meta["val"] = form(getattr(graph, node.target))
    other = set(missing)  # than what was noted, or new
    for node in nodes if missing else ():
        if node.op == "call_function" and not other.isdisjoint((node, *node.all_input_nodes)):
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
            before, node.meta["val"] = node.meta.get("val"), form(node.target(*args, **kwargs))
            if before is not None and repr(before) != repr(node.meta["val"]):
                other.add(node)


def put_in_order(module: fx.GraphModule) -> fx.GraphModule:
    """Move nodes that stand before what they read, in place; all others keep their places.

    What is moved comes just before its first reader, so that values live as short as in the order of the trace.

    Raises:
        RuntimeError: nodes read each other in a circle.
    """
    nodes = list(module.graph.nodes)
    most = len(nodes) + sum(len(node.all_input_nodes) for node in nodes)
    done: set[fx.Node] = set()
    for node in nodes:
        path = [node]
        while path:
            top = path[-1]
            missing = [source for source in top.all_input_nodes if source not in done]
            if top not in done and missing:
                path.extend(reversed(missing))
                if len(path) > most:
                    raise RuntimeError(
                        f"the nodes of the graph read each other in a circle, {top} among them"
                    )
                continue
            path.pop()
            if top not in done and top is not node:
                node.prepend(top)
            done.add(top)
    return module


def copied(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a traced graph whose constants are the same tensors."""
    made = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        known[node] = made.node_copy(node, known.__getitem__)
    return fx.GraphModule(graph, made)


class GraphWriter:
    """Adds operators to a graph, where it is told to insert, and notes the form of what they make.

    Attributes:
        module: whose graph is written to.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """An operator; nodes among its arguments say in ``meta["val"]`` what they are."""

        def form(value: Any) -> Any:
            return torch.empty_like(value.meta["val"], device="meta") if isinstance(value, fx.Node) else value

        node = self.module.graph.call_function(target, args, kwargs)
        made = target(*fx.node.map_aggregate(args, form), **fx.node.map_aggregate(kwargs, form))
        node.meta["val"] = made if made.device.type == "meta" else torch.empty_like(made, device="meta")
        return node


def simplify(graph: fx.GraphModule, examples: Sequence[Tensor]) -> None:
    """Simplify in place until nothing changes.

    Args:
        graph: ATen graph whose placeholders take ``examples``.
        examples: example inputs, for shapes.
    """
    annotate(graph, examples)
    _share_constants(graph)
    while _sweep(graph):
        pass
    graph.graph.eliminate_dead_code()
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


def _share_constants(graph: fx.GraphModule) -> None:
    """One ``get_attr`` for each distinct tensor, before the first use."""
    nodes = list(graph.graph.nodes)
    first = next(n for n in nodes if n.op != "placeholder")
    seen: dict[tuple[Any, ...], fx.Node] = {}
    for node in nodes:
        if node.op != "get_attr":
            continue
        tensor = getattr(graph, node.target)
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        if tensor.numel() and key in seen:
            node.replace_all_uses_with(seen[key])
            graph.graph.erase_node(node)
            continue
        seen[key] = node
        if node is not first:
            first.prepend(node)


def _sweep(graph: fx.GraphModule) -> bool:
    """One pass over the graph; True when something changed."""
    changed = False
    known: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if not node.users:
            graph.graph.erase_node(node)
            changed = True
            continue
        target = _same_value(node) or _refused_linear(graph, node) or _folded(graph, node)
        if target is None:
            changed |= _merge_layout(node)
            key = (node.target, repr(node.args), repr(node.kwargs))
            target = known.setdefault(key, node)
        if target is not node:
            node.replace_all_uses_with(target)
            graph.graph.erase_node(node)
            changed = True
    return changed


def _same_value(node: fx.Node) -> fx.Node | None:
    """The node whose value this one only repeats."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(node.meta["val"], Tensor):
        return None
    if node.target in _COPIES and node.kwargs.get("dtype") in (None, source.meta["val"].dtype):
        return source
    if node.target in _VIEWS and shape(source) == shape(node):
        return source
    if node.target is _aten.permute.default:
        order = [d % len(node.args[1]) for d in node.args[1]]
        if order == list(range(len(order))):
            return source
    # a power of one is the derivative of a square; engines compute every number of it by a logarithm
    if (
        node.target in (_aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.pow.Tensor_Scalar)
        and node.args[1] == 1
        and not isinstance(node.args[1], fx.Node)
        and source.meta["val"].dtype == node.meta["val"].dtype
    ):
        return source
    return None


def _merge_layout(node: fx.Node) -> bool:
    """Make every view a reshape of the first tensor, and permutes of permutes one permute."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return False
    if node.target in _VIEWS and source.meta["val"].numel() == node.meta["val"].numel():
        if source.target is _aten.reshape.default:
            source = source.args[0]
        args = (source, list(shape(node)))
        if node.target is _aten.reshape.default and node.args == args:
            return False
        node.target, node.args, node.kwargs = _aten.reshape.default, args, {}
        return True
    if node.target is _aten.t.default or node.target is _aten.transpose.int:
        order = list(range(len(shape(source))))
        if len(order) < 2:
            return False
        a, b = (0, 1) if node.target is _aten.t.default else (node.args[1], node.args[2])
        order[a], order[b] = order[b], order[a]
        node.target, node.args = _aten.permute.default, (source, order)
        return True
    if node.target is _aten.permute.default and source.target is _aten.permute.default:
        inner = source.args[1]
        node.args = (source.args[0], [inner[d] for d in node.args[1]])
        return True
    return False


def _refused_linear(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """``mm(x, W.T)`` and ``addmm(b, x, W.T)`` as ``linear``, which reads W itself."""
    if node.target is _aten.mm.default:
        x, weight, bias = node.args[0], node.args[1], None
    elif node.target is _aten.addmm.default and not node.kwargs and len(shape(node.args[0])) == 1:
        bias, x, weight = node.args
    else:
        return None
    if bias is not None and shape(bias) != (shape(node)[-1],):
        return None
    if weight.target is not _aten.permute.default or list(weight.args[1]) not in ([1, 0], [-1, -2]):
        return None
    args = (x, weight.args[0]) if bias is None else (x, weight.args[0], bias)
    with graph.graph.inserting_before(node):
        fused = graph.graph.call_function(_aten.linear.default, args)
    fused.meta = dict(node.meta)
    return fused


def _folded(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The value of arithmetic on constants, as a constant."""
    value = node.meta["val"]
    if not isinstance(value, Tensor) or value.numel() > FOLD_LIMIT or node.target is operator.getitem:
        return None
    sources = node.all_input_nodes
    if node.target is DEQUANTIZE or any(s.op != "get_attr" for s in sources):
        return None  # a weight of few bits would be stored in 32
    big = max((s.meta["val"].numel() for s in sources), default=0)
    if node.target in (_LAYOUT | _VIEWS) and big > 4096:
        return None  # a second layout of a weight would be stored twice

    def constant(arg: Any) -> Any:
        return getattr(graph, arg.target) if isinstance(arg, fx.Node) else arg

    with torch.no_grad():
        result = node.target(
            *fx.node.map_aggregate(node.args, constant), **fx.node.map_aggregate(node.kwargs, constant)
        )
    name = f"_folded_{len(graph._buffers)}"
    graph.register_buffer(name, result.detach().contiguous().clone())
    with graph.graph.inserting_before(node):
        folded = graph.graph.get_attr(name)
    folded.meta["val"] = torch.empty_like(result, device="meta")
    return folded
