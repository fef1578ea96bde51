"""Write a graph as a Python function that calls PyTorch's kernels with as little between as possible.

* Every operator is called through the shortest binding that gives the same values on the example inputs.
* An intermediate is deleted after its last use, and overwritten where the next operator can work in place.
* Matrix products that are large enough go to oneDNN: on processors that are not Intel's, PyTorch's MKL runs at
  about half its speed (measured: 100 against 200 GFLOP/s on one core of an AMD EPYC 9005).
* With plain SGD the step is part of the function: ``W.addmm_(g.T, x, alpha=-1)`` as soon as nothing reads W.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pfl_mobile.programs.simplify import shape
from pfl_mobile.vectorized.compiled import Graph
from pfl_mobile.vectorized.rewrite import add_bmm, channels_last, has_onednn, onednn_linear, rewrite

_aten = torch.ops.aten

#: Floating-point operations from which oneDNN's overhead of about 10 us is worth paying.
LARGE = 3_000_000
#: Elements of a weight from which MKL's sum of few outer products is slower than oneDNN's and a subtraction:
#: 0.64 against 0.24 ms for [128, 9216] and ten rows, but 29 against 47 us for [200, 784].
MANY = 1 << 19
#: Elements of frozen weights of which a function keeps a second copy in oneDNN's layout.
MOST_PACKED = 1 << 24
#: Operators that have a method working in place on their first argument.
_IN_PLACE = {
    _aten.add.Tensor: "add_",
    _aten.sub.Tensor: "sub_",
    _aten.mul.Tensor: "mul_",
    _aten.div.Tensor: "div_",
    _aten.add.Scalar: "add_",
    _aten.sub.Scalar: "sub_",
    _aten.mul.Scalar: "mul_",
    _aten.div.Scalar: "div_",
    _aten.relu.default: "relu_",
    _aten.tanh.default: "tanh_",
    _aten.sigmoid.default: "sigmoid_",
    _aten.exp.default: "exp_",
    _aten.log.default: "log_",
    _aten.rsqrt.default: "rsqrt_",
    _aten.scatter_add.default: "scatter_add_",
}
_COMMUTE = {_aten.add.Tensor, _aten.mul.Tensor}


def emit(
    graph: Graph, *, device: torch.device, names: Sequence[str] | None = None, sgd: bool = False
) -> Callable[..., Any]:
    """The graph as a function of its inputs, in order.

    Args:
        graph: of ``trace_step``, ``trace_evaluate`` or ``stacked``.
        device: where the inputs will be.
        names: the tensors whose gradients are wanted, after the loss; all outputs by default.
        sgd: subtract each gradient from its tensor, in place, instead of returning it.

    Returns:
        The function; it returns a tuple of the outputs, or with ``sgd`` the first output alone, or with it those
        outputs that belong to no input.
    """
    module = copy.deepcopy(graph.module)
    outputs = graph.outputs if names is None else (graph.outputs[0], *names)
    last = next(n for n in module.graph.nodes if n.op == "output")
    found = dict(zip(graph.outputs, last.args[0], strict=True))
    last.args = (tuple(found[name] for name in outputs),)
    module.graph.eliminate_dead_code()
    rewrite(module)
    return _Writer(Graph(module, graph.inputs, outputs), sgd, device).function()


class _Writer:
    """One use: walks the graph and collects lines of source."""

    def __init__(self, graph: Graph, sgd: bool, device: torch.device) -> None:
        self.graph, self.sgd, self.device, self.cpu = graph, sgd, device, device.type == "cpu"
        self.nodes = list(graph.module.graph.nodes)
        self.scope: dict[str, Any] = {}
        self.names: dict[fx.Node, str] = {}
        self.root: dict[fx.Node, fx.Node] = {}
        self.spread: set[fx.Node] = set()
        places = [n for n in self.nodes if n.op == "placeholder"]
        self.places = dict(zip(graph.inputs, places, strict=True))
        self.results: list[Any] = list(self.nodes[-1].args[0])
        self.updates: dict[fx.Node, list[fx.Node]] = {}
        self.lines: list[str] = []
        self.packed: dict[tuple[str, Any, int], Tensor] = {}
        first = found.meta["val"] if isinstance(found := self.results[0], fx.Node) else None
        self.stacked = first is not None and first.dim() == 1 and len(graph.outputs) > 1

    def function(self) -> Callable[..., Any]:
        values = self._values()
        for node in self.nodes:
            self._alias(node)
        returned = self.results
        if self.sgd:
            named = zip(self.graph.outputs, self.results, strict=True)
            returned = [node for name, node in named if name not in self.places]
        pending = self._pending() if self.sgd else []
        last = self._last_uses(returned, pending)
        fused = {n for grad in self.updates for n in (grad, _fusable(grad))}
        for i, node in enumerate(self.nodes):
            if node not in fused:
                self._name(node)
            if node.op == "call_function" and node not in fused:
                dying = {r for r, at in last.items() if at == i}
                self.lines.append(self._statement(node, dying, values))
            for at, place, grad in pending:
                if at == i:
                    self.lines.append(self._subtract(place, grad))
            dead = [n for n in self.names if n.op == "call_function" and last.get(self.root[n], -1) == i]
            if dead:
                self.lines.append("del " + ", ".join(self.names[n] for n in dead))
                for n in dead:
                    del self.names[n]
        result = ", ".join(self.names[r] for r in returned)
        alone = self.sgd and len(returned) == 1
        self.lines.append(f"return {result}" if alone else f"return ({result},)")
        head = ", ".join(f"i{k}" for k in range(len(self.places)))
        source = f"def step({head}):\n    " + "\n    ".join(self.lines) + "\n"
        exec(compile(source, "<simulated step>", "exec"), self.scope)
        function: Callable[..., Any] = self.scope["step"]
        function.__doc__ = source
        return function

    def _values(self) -> dict[fx.Node, Any]:
        """Every node's value on the example inputs: strides, and what a shorter binding must reproduce."""
        found: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for name, value in self.graph.inputs.items():
                # tensors that are held have no output, and are parts of longer rows all the same
                part = self.stacked and value.is_floating_point()
                found[self.places[name]] = _strided(value) if part else value
            for node in self.nodes:
                if node.op == "get_attr":
                    found[node] = getattr(self.graph.module, node.target)
                elif node.op == "call_function":
                    args, kwargs = _arguments(node, found)
                    found[node] = node.target(*args, **kwargs)
        return found

    def _alias(self, node: fx.Node) -> None:
        """Nodes that may be views of one memory have one root."""
        self.root[node] = node
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            return
        views = node.target in (_aten.reshape.default, operator.getitem, channels_last) or (
            isinstance(node.target, torch._ops.OpOverload)
            and any(r.alias_info is not None for r in node.target._schema.returns)
        )
        if views:
            self.root[node] = self.root[node.args[0]]
            if node.target is _aten.expand.default or node.args[0] in self.spread:
                self.spread.add(node)

    def _last_uses(
        self, returned: list[Any], pending: list[tuple[int, fx.Node, fx.Node]]
    ) -> dict[fx.Node, int]:
        last: dict[fx.Node, int] = {}
        for i, node in enumerate(self.nodes):
            if node.op == "call_function":
                last[self.root[node]] = i
                for source in node.all_input_nodes:
                    last[self.root[source]] = i
        for at, _, grad in pending:
            for source in [grad, *self.updates.get(grad, [])]:
                last[self.root[source]] = max(last.get(self.root[source], 0), at)
        for node in returned:
            last[self.root[node]] = len(self.nodes)
        return last

    def _pending(self) -> list[tuple[int, fx.Node, fx.Node]]:
        """(after which node, tensor, gradient) of every step: when the gradient is there and nothing reads on."""
        order = {node: i for i, node in enumerate(self.nodes)}
        found = []
        for name, grad in zip(self.graph.outputs, self.results, strict=True):
            if name not in self.places:
                continue
            place = self.places[name]
            uses = [
                order[n]
                for n in self.nodes
                for s in n.all_input_nodes
                if self.root[s] is place and n.op != "output"
            ]
            at = max([order[grad], *uses])
            product = _fusable(grad)
            if product is not None:
                self.updates[grad] = product.all_input_nodes
            found.append((at, place, grad))
        return found

    def _subtract(self, place: fx.Node, grad: fx.Node) -> str:
        target = self.names[place]
        product = _fusable(grad)
        if product is None:
            return f"{target}.sub_({self.names[grad]})"
        a, b = (self.names[n] for n in product.args)
        if product is not grad:  # the gradient is the product's transpose
            a, b = f"{b}.mT", f"{a}.mT"
        if (
            product.target is _aten.mm.default
            and self.cpu
            and has_onednn()
            and _flops(product) >= LARGE
            and (shape(product.args[0])[1] >= 64 or math.prod(shape(product)) >= MANY)
        ):
            return f"{target}.sub_({self._bind('onednn', onednn_linear)}({a}, {b}.t()))"
        kernel = "addmm_" if product.target is _aten.mm.default else "baddbmm_"
        return f"{target}.{kernel}({a}, {b}, alpha=-1)"

    def _name(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.names[node] = f"i{list(self.places.values()).index(node)}"
        elif node.op == "get_attr":
            self.names[node] = self._bind(
                "c", getattr(self.graph.module, node.target).detach().to(self.device)
            )
        else:
            self.names[node] = f"v{self.nodes.index(node)}"

    def _bind(self, prefix: str, value: Any) -> str:
        for name, known in self.scope.items():
            if known is value:
                return name
        name = f"{prefix}_{len(self.scope)}"
        self.scope[name] = value
        return name

    def _statement(self, node: fx.Node, dying: set[fx.Node], values: dict[fx.Node, Any]) -> str:
        name = self.names[node]
        written = self._in_place(node, dying, values)
        if written is not None:
            return f"{name} = {written}"
        args = [self._text(a) for a in node.args]
        target = node.target
        if target is operator.getitem:
            return f"{name} = {args[0]}[{args[1]}]"
        if target is _aten.reshape.default:
            # the examples of a graph without gradients say nothing of the strides its tensors will have
            known = any(name in self.places for name in self.graph.outputs)
            method = "view" if known and _viewable(values[node.args[0]], node.args[1]) else "reshape"
            return f"{name} = {args[0]}.{method}({args[1]})"
        if target is _aten.permute.default:
            return f"{name} = {args[0]}.permute({args[1]})"
        if target is add_bmm:
            return f"{name} = {self._bind('baddbmm', torch.baddbmm)}({', '.join(args)})"
        if target is channels_last:
            return f"{name} = {self._bind('channels_last', channels_last)}({args[0]})"
        if self._large(node):
            if target is _aten.mm.default:
                args[1] += ".t()"
            elif target is _aten.addmm.default:
                args = [args[1], args[2] + ".t()", args[0]]
            elif (packed := self._packed(node, values)) is not None:
                args[1] = packed
            return f"{name} = {self._bind('onednn', onednn_linear)}({', '.join(args)})"
        call, keywords = self._binding(node, values)
        parts = args + [f"{k}={self._text(v)}" for k, v in keywords.items()]
        return f"{name} = {call}({', '.join(parts)})"

    def _packed(self, node: fx.Node, values: dict[fx.Node, Any]) -> str | None:
        """A frozen weight in the layout that oneDNN chooses for this product; about a tenth faster."""
        weight = node.args[1]
        source = weight.args[0] if weight.target is _aten.permute.default else weight
        if source.op != "get_attr":
            return None
        key = (weight.op, source.target, shape(node)[0])
        if key not in self.packed:
            if sum(t.numel() for t in self.packed.values()) + math.prod(shape(weight)) > MOST_PACKED:
                return None
            value = values[weight].contiguous()
            self.packed[key] = torch.ops.mkldnn._reorder_linear_weight(value, shape(node)[0])
        return self._bind("packed", self.packed[key])

    def _large(self, node: fx.Node) -> bool:
        products = (_aten.mm.default, _aten.linear.default, _aten.addmm.default)
        if not self.cpu or not has_onednn() or node.target not in products:
            return False
        if node.meta["val"].dtype != torch.float32:
            return False
        if node.target is _aten.addmm.default and (node.kwargs or len(shape(node.args[0])) != 1):
            return False
        return len(shape(node)) == 2 and _flops(node) >= LARGE

    def _in_place(self, node: fx.Node, dying: set[fx.Node], values: dict[fx.Node, Any]) -> str | None:
        method = "baddbmm_" if node.target is add_bmm else _IN_PLACE.get(node.target)
        if method is None or node.kwargs:
            return None
        arguments = list(node.args)
        choices = [0, 1] if node.target in _COMMUTE else [0]
        for k in choices:
            first = arguments[k]
            if not isinstance(first, fx.Node) or not self._writable(first, node, dying, values):
                continue
            rest = [self._text(a) for j, a in enumerate(arguments) if j != k]
            return f"{self.names[first]}.{method}({', '.join(rest)})"
        return None

    def _writable(
        self, first: fx.Node, node: fx.Node, dying: set[fx.Node], values: dict[fx.Node, Any]
    ) -> bool:
        root = self.root[first]
        old, new = values[first], values[node]
        others = [a for a in node.all_input_nodes if a is not first and self.root[a] is root]
        return (
            root.op == "call_function"
            and root in dying
            and not others
            and first not in self.spread
            and old.shape == new.shape
            and old.dtype == new.dtype
            and not self._shared(root)
        )

    def _shared(self, root: fx.Node) -> bool:
        """Whether a kernel without alias information might have returned one of its arguments."""
        return root.target is operator.getitem

    def _binding(self, node: fx.Node, values: dict[fx.Node, Any]) -> tuple[str, dict[str, Any]]:
        target = node.target
        name = target._schema.name.split("::")[1]
        keywords = {k: self.device if k == "device" else v for k, v in node.kwargs.items()}
        if not keywords.get("pin_memory", True):
            keywords.pop("pin_memory")
        args, kwargs = _arguments(node, values)
        for holder in (torch, torch._C._nn):
            candidate = getattr(holder, name, None)
            if candidate is None:
                continue
            try:
                with torch.no_grad():
                    result = candidate(*args, **{k: v for k, v in kwargs.items() if k in keywords})
            except (TypeError, RuntimeError, ValueError):
                continue
            if _same(result, values[node]):
                return self._bind(name, candidate), keywords
        return self._bind(name, target), keywords

    def _text(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, list | tuple):
            inner = ", ".join(self._text(v) for v in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
        if value is None or isinstance(value, bool | int | str):
            return repr(value)
        if isinstance(value, float) and math.isfinite(value):
            return repr(value)
        return self._bind("k", value)


def _arguments(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[Any, Any]:
    def value(arg: Any) -> Any:
        return values[arg] if isinstance(arg, fx.Node) else arg

    return fx.node.map_aggregate(node.args, value), fx.node.map_aggregate(node.kwargs, value)


def _flops(node: fx.Node) -> int:
    """Of a matrix product."""
    inner = shape(node.args[1])
    depth = inner[1] if node.target is _aten.linear.default else inner[0]
    if node.target is _aten.addmm.default:
        depth = shape(node.args[1])[1]
    return 2 * math.prod(shape(node)) * depth


def _fusable(grad: fx.Node) -> fx.Node | None:
    """The matrix product that a gradient is, or is the transpose of."""
    node = grad
    if node.target is _aten.permute.default and len(node.users) == 1:
        dims = list(node.args[1])
        if dims[-2:] != [len(dims) - 1, len(dims) - 2] or dims[:-2] != list(range(len(dims) - 2)):
            return None
        node = node.args[0]
    if node.target in (_aten.mm.default, _aten.bmm.default) and len(node.users) == 1:
        return node
    return None


def _strided(value: Tensor) -> Tensor:
    """The same value as a part of longer rows: what a stack of clients' tensors looks like in a Layout."""
    rows = torch.zeros(len(value), value[0].numel() + 16) if value.dim() else value
    rows[:, : value[0].numel()] = value.reshape(len(value), -1)
    return rows[:, : value[0].numel()].view(value.shape)


def _viewable(value: Tensor, shape: Iterable[int]) -> bool:
    try:
        value.view(list(shape))
    except RuntimeError:
        return False
    return True


def _same(one: Any, other: Any) -> bool:
    if isinstance(other, tuple | list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if not isinstance(one, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)) if one.numel() else True
