"""Where something of a program comes from: which of the user's layers, and which line of whose file.

An exception carries its origin in its traceback. A node of a traced graph has none, and noting one for each would make
every trace slow, so :func:`recording` is for tracing a second time, after something was refused: traces are
deterministic, so the same node has the same name in both.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

#: Key of ``fx.Node.meta`` under which :func:`recording` notes the origin.
KEY = "pfl_origin"

_PACKAGE = Path(__file__).resolve().parents[1]
#: Folders whose lines say nothing of the user's model: the tools that it is made with and exported by.
_TOOLS = tuple(
    f"{folder}{os.sep}"
    for folder in (
        _PACKAGE,
        Path(torch.__file__).resolve().parent,
        *(
            Path(sysconfig.get_paths()["purelib"], name)
            for name in ("numpy", "einops", "functorch", "jaxtyping")
        ),
        *(
            Path(sysconfig.get_paths()["purelib"], name)
            for name in ("beartype", "typeguard", "pfl_exporters")
        ),
    )
)
_STANDARD = sysconfig.get_paths()["stdlib"] + os.sep
_INSTALLED = tuple(sysconfig.get_paths()[key] + os.sep for key in ("purelib", "platlib"))
_LONGEST_LINE = 120


@dataclass(frozen=True)
class Origin:
    """Where in the user's model something comes from; what is not known is empty.

    Attributes:
        layer: qualified name of the innermost layer in the backbone, ``""`` for the backbone itself; of a module of
            pfl-mobile's own, its name. None outside of the model: in the loss, in the predictions.
        kind: class of the layer.
        file: of the innermost line that is neither PyTorch's nor pfl-mobile's: the user's own, or a model library's.
        line: its number, from 1.
        code: its text.
    """

    layer: str | None = None
    kind: str = ""
    file: str = ""
    line: int = 0
    code: str = ""

    @property
    def known(self) -> bool:
        """Whether anything is known."""
        return self.layer is not None or bool(self.file)

    @property
    def place(self) -> str:
        """``my_model.py:31``, from the current folder or from where packages are installed; empty without a file."""
        return f"{_short(self.file)}:{self.line}" if self.file else ""

    @override
    def __str__(self) -> str:
        """For the end of a sentence: ``in layer 'net.encoder.0' (my_model.py:31: y = x.view(4, -1))``."""
        line = f"{self.place}: {self.code}" if self.code else self.place
        if self.layer is None:
            return f"at {line}" if line else "at a place that is not known"
        what = f"layer {self.layer!r}" if self.layer else "the model"
        return f"in {what} ({line or self.kind})"


def _short(file: str) -> str:
    for base in (*_INSTALLED, os.getcwd() + os.sep):
        if file.startswith(base):
            return file[len(base) :]
    return file


def is_tool(file: str) -> bool:
    """Whether a file is one of PyTorch's, pfl-mobile's or Python's own, or no file."""
    # a notebook's cells are no files, and known to Python; graphs of PyTorch have code like that too
    if file.startswith("<") and (file not in linecache.cache or file.startswith("<eval_with_key>")):
        return True
    resolved = file if file.startswith("<") else os.path.realpath(file)
    if resolved.startswith(_TOOLS) or f"{os.sep}pfl_exporters{os.sep}" in resolved:
        return True
    return resolved.startswith(_STANDARD) and not resolved.startswith(_INSTALLED)


class _Layers:
    """Names of the layers of a model, by identity."""

    def __init__(self, model: nn.Module) -> None:
        self.names: dict[int, tuple[str, str]] = {}
        for path, layer in model.named_modules():
            if path == "" and "backbone" in model._modules:
                continue  # the personalized model around the user's
            name = "" if path == "backbone" else path.removeprefix("backbone.").removeprefix("extras.")
            self.names[id(layer)] = (name, type(layer).__name__)
        self._tools: dict[str, bool] = {}

    def of_frames(self, frames: Iterable[tuple[FrameType, int]]) -> Origin:
        """Origin of frames with their lines, the innermost first."""
        layer: tuple[str, str] | None = None
        found: tuple[str, int] | None = None
        for frame, line in frames:
            code = frame.f_code
            if layer is None and code.co_argcount:
                layer = self.names.get(id(frame.f_locals.get(code.co_varnames[0])))
            if found is None and not self._is_tool(code.co_filename):
                found = (code.co_filename, line)
            if layer is not None and found is not None:
                break
        name, kind = layer if layer is not None else (None, "")
        file, line = found or ("", 0)
        text = " ".join(linecache.getline(file, line).split()) if file else ""
        if len(text) > _LONGEST_LINE:
            text = f"{text[:_LONGEST_LINE]} ..."
        return Origin(name, kind, file, line, text)

    def _is_tool(self, file: str) -> bool:
        if file not in self._tools:
            self._tools[file] = is_tool(file)
        return self._tools[file]


def _of_traceback(trace: TracebackType | None) -> list[tuple[FrameType, int]]:
    frames = []
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return frames[::-1]


def of_exception(error: BaseException, model: nn.Module) -> Origin:
    """Where in the model an exception was raised, by its traceback, or else by that of its cause."""
    layers, seen = _Layers(model), set()
    best = Origin()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        found = layers.of_frames(_of_traceback(cause.__traceback__))
        if found.layer is not None:
            return found
        best = best if best.known else found
        cause = cause.__cause__ or cause.__context__
    return best


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
        self._layers = _Layers(model)
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
        self._layers, self._wanted, self._last = _Layers(model), wanted, last
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
