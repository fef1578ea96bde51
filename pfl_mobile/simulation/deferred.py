"""Plain SGD on a wide layer of the input, without touching its weight in every step.

Let a trained layer compute y = x W^T with x an entry of the batch. Each step changes W by -g^T x, where g is lr times
the gradient at y, so after the steps s < t

    y_t = x_t W_0^T - sum_s (x_t x_s^T) g_s.

All x of a client are known beforehand: X W_0^T and X X^T are two large products for many steps together, a step
needs only small ones, and W <- W_0 - G^T X is a third large product at the end. That is exact, and the same in
floating point but for the order of the sums. A step of ten rows reads and writes a weight matrix three times to
do little with it; here it is read twice in a dozen steps, at the speed of large products.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pfl_mobile.simulation.compiled import Graph
from pfl_mobile.simulation.rewrite import has_onednn, onednn_linear

_aten = torch.ops.aten

#: Elements of a weight, and inputs of its layer, from which it pays.
LEAST_WEIGHT, LEAST_INPUTS = 1 << 16, 256
#: Rows of one segment: X X^T grows with their square, small products are slow.
MOST_ROWS = 128
#: With fewer steps the ordinary way is as fast.
LEAST_STEPS = 4


@dataclass(frozen=True)
class Deferral:
    """One weight that is changed at the end of a segment.

    Attributes:
        weight: its name.
        entry: the batch entry that its layer reads.
    """

    weight: str
    entry: str


def deferred(graph: Graph, names: Sequence[str]) -> tuple[Graph, list[Deferral]] | None:
    """The graph with products of the batch as inputs; None where no layer is worth it.

    Args:
        graph: of ``trace_step``, or of ``stacked`` from it.
        names: trained tensors.

    Returns:
        A graph with an input ``pre.<weight>`` [(lanes,) batch, outputs], x W^T, for every deferral, and after its
        other outputs, in order, the gradient g at that product.
    """
    module = copy.deepcopy(graph.module)
    places = dict(zip(graph.inputs, (n for n in module.graph.nodes if n.op == "placeholder"), strict=True))
    output = next(n for n in module.graph.nodes if n.op == "output")
    results = dict(zip(graph.outputs, output.args[0], strict=True))
    inputs, found, more = dict(graph.inputs), list[Deferral](), list[fx.Node]()
    for name in names:
        match = _match(name, places, results[name])
        if match is None:
            continue
        product, gradient, entry = match
        bias = product.args[2] if len(product.args) == 3 else None
        with module.graph.inserting_after(list(places.values())[-1]):
            pre = module.graph.placeholder(f"pre_{len(found)}")
        value = torch.zeros(product.meta["val"].shape)
        pre.meta["val"] = value.to("meta")
        key = f"pre.{name}"
        places[key], inputs[key] = pre, value
        new = pre
        if bias is not None:
            with module.graph.inserting_before(product):
                new = module.graph.call_function(_aten.add.Tensor, (pre, bias))
            new.meta["val"] = product.meta["val"]
        product.replace_all_uses_with(new)
        found.append(Deferral(name, entry))
        more.append(gradient)
        del results[name]
    if not found:
        return None
    output.args = ((*results.values(), *more),)
    module.graph.eliminate_dead_code()
    for key, place in places.items():
        if not place.users:
            module.graph.erase_node(place)
            del inputs[key]
    module.recompile()
    outputs = (*results, *(f"at.{d.weight}" for d in found))
    return Graph(module, inputs, outputs), found


def _match(name: str, places: dict[str, fx.Node], grad: fx.Node) -> tuple[fx.Node, fx.Node, str] | None:
    """(the product x W^T, the gradient at it, the name of x) when that is all that W is used for."""
    weight = places[name]
    shape = tuple(weight.meta["val"].shape)
    lanes = 0 if len(shape) == 2 else 1
    if len(shape) - lanes != 2 or shape[-1] < LEAST_INPUTS or shape[-1] * shape[-2] < LEAST_WEIGHT:
        return None
    readers = [u for u in weight.users if u.users]
    turned = [0, 2, 1] if lanes else [1, 0]
    if len(readers) != 1:
        return None
    product = readers[0]
    if lanes:
        if product.target is not _aten.permute.default or list(product.args[1]) != turned:
            return None
        users = list(product.users)
        if len(users) != 1 or users[0].target is not _aten.bmm.default or users[0].args[1] is not product:
            return None
        product = users[0]
    elif product.target is not _aten.linear.default or product.args[1] is not weight:
        return None
    x = product.args[0]
    entry = next((n for n, p in places.items() if p is x), None)
    if entry is None or x is weight or len(x.meta["val"].shape) != 2 + lanes:
        return None
    if grad.target not in (_aten.mm.default, _aten.bmm.default) or grad.args[1] is not x:
        return None
    left = grad.args[0]
    if left.target is not _aten.permute.default or list(left.args[1]) != turned:
        return None
    return product, left.args[0], entry


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return onednn_linear(x, weight) if x.device.type == "cpu" and has_onednn() else F.linear(x, weight)


class Segment:
    """One deferred weight over some steps.

    Args:
        x: the entry's rows [lanes, steps * batch, inputs].
        weight: [lanes, outputs, inputs]; changed by ``finish``.
        batch: rows of a step.
        counts: how many of the steps each lane takes.
    """

    def __init__(self, x: Tensor, weight: Tensor, batch: int, counts: Sequence[int]) -> None:
        lanes, rows, _ = x.shape
        self.batch, self.weight, self.lanes = batch, weight, lanes
        self.x = [own[: count * batch] for own, count in zip(x.unbind(0), counts, strict=True)]
        self.base = weight.new_zeros(lanes, rows, weight.shape[1])
        self.gram = weight.new_zeros(lanes, rows, rows)
        self.g = weight.new_empty(lanes, rows, weight.shape[1])
        for own, base, gram, w in zip(self.x, self.base, self.gram, weight, strict=True):
            if not len(own):
                continue
            base[: len(own)] = _product(own, w)
            # a step reads what lies left of its own rows; halves leave out most of the rest
            half, end = -(-len(own) // (2 * batch)) * batch, len(own)
            for begin, stop in ((batch, half), (max(half, batch), end)):
                if begin < stop:
                    gram[begin:stop, : stop - batch] = _product(own[begin:stop], own[: stop - batch])

    def before(self, step: int) -> Tensor:
        """x W^T of this step [lanes, batch, outputs], [batch, outputs] for one lane."""
        rows = slice(step * self.batch, (step + 1) * self.batch)
        return self.base[0, rows] if self.lanes == 1 else self.base[:, rows]

    def after(self, step: int, gradient: Tensor) -> None:
        """Take the gradient at that product, times the learning rate, off the later steps' products."""
        begin, end = step * self.batch, (step + 1) * self.batch
        self.g[:, begin:end] = gradient
        if end == self.base.shape[1]:
            return
        if self.lanes == 1:
            self.base[0, end:].addmm_(self.gram[0, end:, begin:end], gradient, alpha=-1)
        else:
            self.base[:, end:].baddbmm_(self.gram[:, end:, begin:end], gradient, alpha=-1)

    def finish(self) -> None:
        """Change the weight."""
        for k, own in enumerate(self.x):
            if len(own):
                self.weight[k].sub_(_product(self.g[k, : len(own)].t(), own.t()))
