"""What was made of one traced graph is made once in a process, for all studies whose trace is the same.

The user's code is traced anew for every study, as no key could tell that a forward or a loss still computes the same.
What follows, batching over lanes and writing the code, takes longer than the trace and depends on nothing but the
traced operators, the values of their constants and the example values. These are the key, so that what is found is
what would have been made, to the last bit.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from pfl_mobile.vectorized.compiled import Graph

T = TypeVar("T")

#: Entries that are kept, those used last.
MOST = 64
#: Bytes of example values and constants, for all lanes, up to which something is kept: tracing takes as long for a
#: small model as for a large one, and large ones are not to fill the memory after their study.
MOST_BYTES = 4 << 20

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
#: The last used is the last; no lock, which a forked process might inherit as held.
_made: dict[Hashable, Any] = {}


class _NoKeyError(Exception):
    """Something that a key cannot hold."""


def key_of(graph: Graph, lanes: int = 1) -> Hashable | None:
    """What a graph computes, on which examples; None where that cannot be told, or is too large to be kept.

    Args:
        graph: of one client.
        lanes: for which something is made of it.
    """
    constants = [
        getattr(graph.module, n.target, None) for n in graph.module.graph.nodes if n.op == "get_attr"
    ]
    held = [v for v in constants if isinstance(v, Tensor)]
    if sum(v.nbytes for v in (*held, *graph.inputs.values())) * lanes > MOST_BYTES:
        return None
    try:
        inputs = tuple((name, _tensor(value)) for name, value in graph.inputs.items())
        return inputs, tuple(_node(graph.module, node) for node in graph.module.graph.nodes), graph.outputs
    except _NoKeyError:
        return None


def reused(key: Hashable | None, make: Callable[[], T]) -> T:
    """What was made under this key, or now; without a key it is made and not kept.

    What ``make`` raises is raised, and nothing is kept.
    """
    if key is None:
        return make()
    missing: Any = _NoKeyError
    made: T = _made.pop(key, missing)
    if made is missing:
        made = make()
    _made[key] = made
    while len(_made) > MOST:
        _made.pop(next(iter(_made)), None)
    return made


def with_own_constants(graph: Graph) -> Graph:
    """The graph with copies of its constants, in place, so that it stays what it is when a model's weights change."""
    for node in graph.module.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph.module, node.target).detach().clone()
            delattr(graph.module, node.target)
            graph.module.register_buffer(node.target, value)
    return graph


def _node(module: fx.GraphModule, node: fx.Node) -> Hashable:
    if node.op == "get_attr":
        return node.name, _tensor(getattr(module, node.target))
    if node.op == "call_function":
        if node.target is not operator.getitem and not isinstance(node.target, torch._ops.OpOverload):
            raise _NoKeyError
    elif node.op not in ("placeholder", "output"):
        raise _NoKeyError
    return node.name, node.op, node.target, _plain(node.args), _plain(node.kwargs)


def _plain(value: Any) -> Hashable:
    if isinstance(value, fx.Node):
        return fx.Node, value.name
    if isinstance(value, list | tuple):
        return isinstance(value, list), tuple(_plain(v) for v in value)
    if isinstance(value, dict):
        return tuple((name, _plain(v)) for name, v in value.items())
    if type(value) in _PLAIN:
        return type(value), repr(value)  # 0.0 and -0.0 are equal, and compute other things
    raise _NoKeyError


def _tensor(value: Any) -> Hashable:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
        raise _NoKeyError
    content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(content).digest()
    return value.dtype, str(value.device), tuple(value.shape), value.stride(), digest
