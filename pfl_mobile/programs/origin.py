"""Where something of a program comes from: which of the user's layers, and which line of whose file.

An exception carries its origin in its traceback. A node of a traced graph has none, and noting one for each would make
every trace slow, so :func:`recording` is for tracing a second time, after something was refused: traces are
deterministic, so the same node has the same name in both.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from pfl_mobile.modules.places import Layers, Origin, is_tool, of_exception

__all__ = [
    "KEY",
    "Origin",
    "Recorder",
    "Replay",
    "is_tool",
    "noting",
    "of_call",
    "of_exception",
    "of_node",
    "origins",
    "recorder",
    "recording",
]

#: Key of ``fx.Node.meta`` under which :func:`recording` notes the origin.
KEY = "pfl_origin"

#: Code behind which the stack is no part of the model: of those who export it.
_OUTERMOST: set[CodeType] = set()


def _stack() -> Iterator[tuple[FrameType, int]]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in _OUTERMOST:
        yield frame, frame.f_lineno
        frame = frame.f_back


class Recorder:
    """Notes the origin of each node while programs are traced.

    A node of the backward pass has the origin of what it is the derivative of: autograd numbers its nodes as the
    forward pass makes them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = Layers(model)
        self._forward: dict[int, Origin] = {}
        self._copied: Origin | None = None
        self._newest: Origin | None = None
        self._backward: int | None = None

    def begin(self) -> None:
        """Another trace begins."""
        self._forward.clear()
        self._newest = self._copied = self._backward = None

    @property
    def last(self) -> Origin | None:
        """Where a trace that failed had come to: its newest node, or what it was computing the derivative of."""
        if self._backward is not None:
            return self._forward.get(self._backward, self._newest)
        return self._newest

    def follow(self, result: Any) -> None:
        """Note which derivative is being computed, of those that lead to a tensor."""
        nodes, seen = [result.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            node.register_prehook(lambda _grads, number=node._sequence_nr(): self._enter(number))
            nodes += [parent for parent, _ in node.next_functions]

    def _enter(self, number: int) -> None:
        self._backward = number

    def here(self) -> Origin:
        """Origin of what is being computed now."""
        if self._copied is not None:
            return self._copied
        numbers: Any = torch._C._autograd
        backward = torch._C._current_autograd_node()
        if backward is not None:
            found = self._forward.get(backward._sequence_nr())
            return found or self._newest or Origin()
        found = self._layers.of_frames(_stack())
        # The autograd node of an operator is made before the operator's own node of the graph.
        self._forward.setdefault(numbers._get_sequence_nr() - 1, found)
        return found

    def watch(self, graph: fx.Graph) -> None:
        """Note the origin of each node that is added to a graph from now on."""
        create: Any = graph.create_node

        def noted(*args: Any, **kwargs: Any) -> fx.Node:
            node: fx.Node = create(*args, **kwargs)
            if node.op == "call_function":
                self._newest = node.meta[KEY] = self.here()
            return node

        graph.create_node = noted

    @contextlib.contextmanager
    def copying(self, node: fx.Node) -> Iterator[None]:
        """While a graph is run again: what is added comes from where ``node`` does."""
        outer, self._copied = self._copied, node.meta.get(KEY, Origin())
        try:
            yield
        finally:
            self._copied = outer

    def fill(self, graph: fx.Graph) -> None:
        """Origins of nodes that rewriting made: that of what they compute with, or of what reads them."""
        nodes = [node for node in graph.nodes if node.op == "call_function"]
        for node in nodes:
            if not _known(node):
                _take(node, reversed(node.all_input_nodes))
        for node in reversed(nodes):
            if not _known(node):
                _take(node, node.users)


def _known(node: fx.Node) -> bool:
    found = node.meta.get(KEY)
    return found is not None and found.known


def _take(node: fx.Node, others: Iterable[fx.Node]) -> None:
    for other in others:
        if _known(other):
            node.meta[KEY] = other.meta[KEY]
            return


_recorder: Recorder | None = None


def recorder() -> Recorder | None:
    """That of the :func:`recording` under way."""
    return _recorder


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[Recorder]:
    """Nodes of programs that are traced meanwhile know their origin (:func:`of_node`); the traces are slower."""
    global _recorder
    outer, _recorder = _recorder, Recorder(model)
    try:
        yield _recorder
    finally:
        _recorder = outer


def of_node(node: fx.Node) -> Origin:
    """Origin of a node of a program that was traced in a :func:`recording`."""
    found: Origin = node.meta.get(KEY, Origin())
    return found


def origins(graph: fx.GraphModule) -> Mapping[str, Origin]:
    """Origins by the names of the nodes."""
    return {node.name: of_node(node) for node in graph.graph.nodes if node.op == "call_function"}


def noting(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for ``make_fx`` that notes the origins of its nodes, where there is a :func:`recording`."""
    found = _recorder
    if found is None:
        return function

    def outermost(*given: Any) -> Any:
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        mode: Any = get_proxy_mode()
        graph = mode.tracer.graph
        found.watch(graph)
        try:
            return function(*given)
        finally:
            del graph.create_node

    _OUTERMOST.add(outermost.__code__)
    return outermost


class Replay(fx.Interpreter):
    """Runs a graph; in a :func:`recording` what comes of a node has that node's origin."""

    @override
    def run_node(self, n: fx.Node) -> Any:
        with _recorder.copying(n) if _recorder is not None else contextlib.nullcontext():
            return self.compute(n)

    def compute(self, n: fx.Node) -> Any:
        """The value of a node."""
        return super().run_node(n)


class _Watch(TorchFunctionMode):
    """Notes the first call, or the last, that is one of those wanted."""

    def __init__(
        self, model: nn.Module, wanted: Callable[[Any, tuple[Any, ...], Any], bool], last: bool
    ) -> None:
        super().__init__()
        self._layers, self._wanted, self._last = Layers(model), wanted, last
        self.found = Origin()

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (self._last or not self.found.known) and self._wanted(
            func, (*args, *(kwargs or {}).values()), result
        ):
            self.found = self._layers.of_frames(_stack())
        return result


def of_call(
    model: nn.Module,
    run: Callable[[], Any],
    wanted: Callable[[Any, tuple[Any, ...], Any], bool],
    *,
    last: bool = False,
    differentiated: bool = False,
) -> Origin:
    """Where a model that is run calls a function of PyTorch for the first time that is ``wanted``.

    Args:
        model: whose layers are named.
        run: runs it; what it raises is left out.
        wanted: told about each function, its arguments and its result.
        last: the last time in place of the first.
        differentiated: run it with gradients.
    """
    watch = _Watch(model, wanted, last)
    with contextlib.suppress(Exception), watch, torch.set_grad_enabled(differentiated):
        run()
    return watch.found


_OUTERMOST.add(of_call.__code__)
