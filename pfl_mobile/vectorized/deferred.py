"""Plain SGD on a wide layer of the input, without touching its weight in every step.

Let a trained layer compute y = x W^T with x an entry of the batch. Each step changes W by -g^T x, where g is lr times
the gradient at y, so after the steps s < t

    y_t = x_t W_0^T - sum_s (x_t x_s^T) g_s.

All x of a client are known beforehand: X W_0^T and X X^T are two large products for many steps together, a step
needs only small ones, and W <- W_0 - G^T X is a third large product at the end. That is exact, and the same in
floating point but for the order of the sums. A step of ten rows reads and writes a weight matrix three times to
do little with it; here it is read twice in a dozen steps, at the speed of large products.

A bias of the layer is the weight of one more input that is always 1: it adds 1 to every x_t x_s^T.

The third product can wait until somebody reads W, and need not be made for a client alone: where only the weighted
sum of the changes of many clients is wanted, sum_k w_k G_k^T X_k is one product over the rows of all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pfl_mobile.vectorized.compiled import Graph
from pfl_mobile.vectorized.rewrite import has_onednn, onednn_linear

_aten = torch.ops.aten

#: Elements of a weight, and inputs of its layer, from which it pays.
LEAST_WEIGHT, LEAST_INPUTS = 1 << 16, 256
#: Rows of one segment: X X^T grows with their square, small products are slow.
MOST_ROWS = 160
#: Rows up to which one product for X X^T is as fast as two halves of it.
MOST_WHOLE = 110
#: With fewer steps the ordinary way is as fast.
LEAST_STEPS = 4


@dataclass(frozen=True)
class Deferral:
    """One weight that is changed at the end of a segment.

    Attributes:
        weight: its name.
        entry: the batch entry that its layer reads.
        bias: name of the layer's bias, where that is changed at the end too.
    """

    weight: str
    entry: str
    bias: str | None


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
        match = _match(name, places, results[name]) if name in results else None
        if match is None:
            continue
        product, gradient, entry = match
        bias = product.args[2] if len(product.args) == 3 else None
        trained = _bias(product, gradient, {n: places[n] for n in names}, results)
        with module.graph.inserting_after(list(places.values())[-1]):
            pre = module.graph.placeholder(f"pre_{len(found)}")
        value = torch.zeros(product.meta["val"].shape)
        pre.meta["val"] = value.to("meta")
        key = f"pre.{name}"
        places[key], inputs[key] = pre, value
        new = pre
        if trained is not None:
            del results[trained[0]]
            product = trained[1]
        elif bias is not None:
            with module.graph.inserting_before(product):
                new = module.graph.call_function(_aten.add.Tensor, (pre, bias))
            new.meta["val"] = product.meta["val"]
        product.replace_all_uses_with(new)
        found.append(Deferral(name, entry, trained[0] if trained else None))
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


def _bias(
    product: fx.Node, gradient: fx.Node, places: dict[str, fx.Node], results: dict[str, fx.Node]
) -> tuple[str, fx.Node] | None:
    """(name of a bias that is added to the product and trained, the sum) when that is all that it is used for."""
    if product.target is _aten.bmm.default:
        batch, added = 1, next(iter(product.users))
        if len(product.users) != 1 or added.target is not _aten.add.Tensor or added.kwargs:
            return None
        term = next(a for a in added.args if a is not product)
        if not isinstance(term, fx.Node) or len(term.users) != 1:
            return None
        place = term.args[0] if term.target is _aten.reshape.default else term
    elif len(product.args) == 3:
        batch, added, term, place = 0, product, product, product.args[2]
    else:
        return None
    name = next((n for n, p in places.items() if p is place), None)
    if name is None or [u for u in place.users if u.users] != [term]:
        return None
    grad = results[name]
    total = grad.args[0] if grad.target is _aten.reshape.default else grad
    if total.target is not _aten.sum.dim_IntList or total.args[0] is not gradient or total.args[1] != [batch]:
        return None
    return name, added


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return onednn_linear(x, weight) if x.device.type == "cpu" and has_onednn() else F.linear(x, weight)


class Segment:
    """The deferred weights of one layer over some steps.

    Args:
        x: the rows of all lanes one after the other [rows, inputs].
        counts: how many of the rows each lane has, not increasing; the last ones may have none.
        weight: W_0 of all lanes [outputs, inputs], or of each [lanes, outputs, inputs].
        bias: of each lane [lanes, outputs], where it is changed at the end too.
        batch: rows of a step.

    Attributes:
        total: sum of the gradients of each lane, after ``finish`` [lanes, outputs].
        settled: as many lanes, the first ones, have their weight; for the others ``change`` is still to be made.
    """

    def __init__(
        self, x: Tensor, counts: Sequence[int], weight: Tensor, bias: Tensor | None, batch: int
    ) -> None:
        lanes, rows = len(counts), max(counts)
        self.batch, self.all_x, self.settled = batch, x, 0
        self.x = list(x.split(list(counts)))
        self.base = weight.new_zeros(lanes, rows, weight.shape[-2])
        self.gram = weight.new_zeros(lanes, rows, rows)
        self.g = torch.empty_like(self.base)
        self.total = weight.new_zeros(lanes, weight.shape[-2])
        products = (
            _product(x, weight).split(list(counts))  # one large product is faster than several
            if weight.dim() == 2
            else [_product(own, w) for own, w in zip(self.x, weight, strict=True) if len(own)]
        )
        constant = 0 if bias is None else 1
        for k, (own, product) in enumerate(zip(self.x, products, strict=False)):
            torch.add(product, 0 if bias is None else bias[k], out=self.base[k, : len(own)])
            # a step reads what lies left of its own rows; halves leave out most of the rest
            end = len(own)
            half = -(-end // (2 * batch)) * batch if end > MOST_WHOLE else batch
            for begin, stop in ((batch, half), (half, end)):
                if begin < stop:
                    product = _product(own[begin:stop], own[: stop - batch])
                    torch.add(product, constant, out=self.gram[k, begin:stop, : stop - batch])

    def before(self, step: int, lanes: int) -> Tensor:
        """x W^T of this step for the first lanes [lanes, batch, outputs], or [batch, outputs] for one."""
        begin, end = step * self.batch, (step + 1) * self.batch
        base = self.base[:lanes, begin:end]
        if step:
            base = torch.baddbmm(base, self.gram[:lanes, begin:end, :begin], self.g[:lanes, :begin], alpha=-1)
        return base[0] if lanes == 1 else base

    def after(self, step: int, gradient: Tensor, lanes: int) -> None:
        """Keep the gradient at that product, times the learning rate."""
        self.g[:lanes, step * self.batch : (step + 1) * self.batch] = gradient

    def finish(self) -> None:
        """All steps are done."""
        for own, g, total in zip(self.x, self.g, self.total, strict=True):
            torch.sum(g[: len(own)], 0, out=total)

    def change(self, lane: int) -> Tensor:
        """G^T X of one lane [outputs, inputs]: what its weight is to be less."""
        own = self.x[lane]
        return _product(self.g[lane, : len(own)].t(), own.t())

    def finite(self) -> Tensor:
        """Whether all gradients of a lane are finite, bool [lanes]."""
        return self.total.isfinite().all(1)

    def weighted_change(self, weights: Sequence[float]) -> Tensor | None:
        """The weighted sum of the changes that are still to be made [outputs, inputs], as one product.

        Args:
            weights: of each lane; one of weight 0 may have NaN.
        """
        lanes = [k for k in range(self.settled, len(self.x)) if weights[k] and len(self.x[k])]
        if not lanes:
            return None
        parts = [self.x[k] for k in lanes]
        # those of several lanes lie one after the other, unless one is left out
        whole = len(lanes) == lanes[-1] - lanes[0] + 1
        begin = sum(len(own) for own in self.x[: lanes[0]])
        rows = sum(len(part) for part in parts)
        x = self.all_x[begin : begin + rows] if whole else torch.cat(parts)
        g = self.g.new_empty(rows, self.g.shape[2])
        for k, part in zip(lanes, g.split([len(part) for part in parts]), strict=True):
            torch.mul(self.g[k, : len(part)], weights[k], out=part)
        return _product(g.t(), x.t())


class LateWeight:
    """A weight of every lane that is written only when it is asked for.

    Args:
        rows: where it belongs, [lanes, outputs, inputs].
        common: the value [outputs, inputs] that all lanes begin with; None where it stands in ``rows``.
    """

    def __init__(self, rows: Tensor, common: Tensor | None) -> None:
        self.rows, self.common = rows, common
        self.written = [common is None] * len(rows)
        self.segments: list[Segment] = []

    def begin(self, x: Tensor, counts: Sequence[int], bias: Tensor | None, batch: int) -> Segment:
        """The next segment, of the first ``len(counts)`` lanes; arguments as of ``Segment``."""
        if self.common is None or self.segments:
            self.settle(sum(count > 0 for count in counts))
            weight = self.rows[: len(counts)]
        else:
            weight = self.common
        self.segments.append(Segment(x, counts, weight, bias, batch))
        return self.segments[-1]

    def settle(self, lanes: int | None = None) -> None:
        """Write the weight of the first lanes, or of all."""
        lanes = len(self.rows) if lanes is None else lanes
        for segment in self.segments:
            for lane in range(segment.settled, min(lanes, len(segment.x))):
                if not len(segment.x[lane]):
                    break
                before = self.rows[lane] if self.written[lane] else self.common
                torch.sub(before, segment.change(lane), out=self.rows[lane])
                self.written[lane] = True
            segment.settled = max(segment.settled, min(lanes, len(segment.x)))
        for lane in range(lanes):
            if not self.written[lane]:
                self.rows[lane] = self.common
                self.written[lane] = True

    def add_changes(self, total: Tensor, sent: Tensor, weights: Sequence[float]) -> None:
        """total += the sum of weight * (this - sent) over the lanes.

        Args:
            total, sent: [outputs, inputs].
            weights: of each lane; one of weight 0 may have NaN.
        """
        late = sum(w for w, written in zip(weights, self.written, strict=True) if not written)
        if late and self.common is not None and not torch.equal(self.common, sent):
            total.add_(self.common - sent, alpha=late)
        for row, weight, written in zip(self.rows, weights, self.written, strict=True):
            if written and weight:
                total.add_(row - sent, alpha=weight)
        for segment in self.segments:
            change = segment.weighted_change(weights)
            if change is not None:
                total.sub_(change)
