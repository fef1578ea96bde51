"""The loss over a large vocabulary in slices, so that all logits, and their gradient, are never there at once.

For next-word losses the output layer is the largest thing in memory: at 256 tokens and 49,152 words the logits are
50 MB, their gradient as much again. Here cross entropy behind a frozen linear layer goes through the vocabulary slice
by slice, with a running maximum and sum (Milakov and Gimelshein 2018, arXiv:1805.02867; the gradient of the layer's
input is summed up in the same pass, as attention is in Dao et al. 2022, arXiv:2205.14135). The slices are equal blocks,
which `pfl_mobile.programs.blocks` makes one part of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from pfl_mobile.programs.simplify import GraphWriter, copied, put_in_order
from pfl_mobile.programs.trace import TracedProgram
from pfl_mobile.programs.weights import DEQUANTIZE

_aten = torch.ops.aten

#: Logits of fewer bytes are computed at once.
LEAST_BYTES = 8 << 20
#: Most bytes of a slice's logits, and of its rows of the layer.
MOST_BYTES = 4 << 20
MOST_WEIGHT_BYTES = 4 << 20
#: Bytes of a layer of few bits as float32 from which on it is read slice by slice.
LARGE_LAYER_BYTES = 32 << 20
#: Before the first slice: below every logit, and finite.
_LOWEST = -3.0e38
#: By which tasks make a difference of logits one word, or none.
_STEEP = 1e30


@dataclass(frozen=True)
class _Gradient:
    """Of the layer's input.

    Attributes:
        scale: gradient of each row's loss [R, 1].
        node: has the gradient of x [R, K].
    """

    scale: fx.Node
    node: fx.Node


@dataclass(frozen=True)
class _Ranks:
    """How many words are better than the label's, in each row.

    Attributes:
        mask: what is added to each word's logit [V].
        label: R entries of any shape.
        node: has the counts, of the label's shape.
    """

    mask: fx.Node
    label: fx.Node
    node: fx.Node


@dataclass(frozen=True)
class _Loss:
    """Cross entropy in a graph, and what else is computed of its logits.

    Attributes:
        x, weight, bias: of the linear layer; x [R, K], weight [V, K].
        label: [R, 1].
        normalizer: the node that has the logarithm of the sum of exponentials [R, 1].
        picked: the node that has the logit of the label [R, 1].
        gradient: None in a program without a backward pass.
        ranks: None where nobody counts hits.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    label: fx.Node
    normalizer: fx.Node
    picked: fx.Node
    gradient: _Gradient | None
    ranks: _Ranks | None


def _only(nodes: list[fx.Node]) -> fx.Node | None:
    return nodes[0] if len(nodes) == 1 else None


def _users(node: fx.Node, target: Any) -> list[fx.Node]:
    return [user for user in node.users if user.target is target]


def _losses(graph: fx.GraphModule) -> Iterator[_Loss]:
    """The cross entropies of a graph whose logits nothing else reads."""
    for softmax in graph.graph.nodes:
        if softmax.target is _aten._softmax.default and (found := _loss(softmax)) is not None:
            yield found


def _loss(softmax: fx.Node) -> _Loss | None:
    logits = softmax.args[0]
    if not isinstance(logits, fx.Node) or logits.target is not _aten.linear.default:
        return None
    value = logits.meta["val"]
    if (
        value.dim() != 2
        or value.numel() * value.element_size() < LEAST_BYTES
        or value.dtype is not torch.float32
    ):
        return None
    x, weight, *rest = logits.args
    bias = rest[0] if rest else None
    if (weight.op != "get_attr" and weight.target is not DEQUANTIZE) or (
        bias is not None and bias.op != "get_attr"
    ):
        return None
    largest, picks = _only(_users(softmax, _aten.max.dim)), _users(logits, _aten.gather.default)
    if largest is None or len(picks) != 2:
        return None
    items = {user.args[1]: user for user in largest.users}
    at_largest = next((pick for pick in picks if pick.args[2] is items.get(1)), None)
    logarithm = _only(_users(items[0], _aten.log.default)) if 0 in items else None
    if at_largest is None or logarithm is None or len(items[0].users) != 1:
        return None
    picked = next(pick for pick in picks if pick is not at_largest)
    normalizer = _only(list(logarithm.users))
    if (
        normalizer is None
        or normalizer.target is not _aten.sub.Tensor
        or normalizer.args != (at_largest, logarithm)
    ):
        return None
    label = picked.args[2]
    gradient, ranks = None, None
    others = set(softmax.users) - {largest}
    if others and (gradient := _gradient(softmax, others, label, weight)) is None:
        return None
    others = set(logits.users) - {softmax, *picks}
    if others and (ranks := _ranks(others)) is None:
        return None
    return _Loss(x, weight, bias, label, normalizer, picked, gradient, ranks)


def _gradient(softmax: fx.Node, readers: set[fx.Node], label: fx.Node, weight: fx.Node) -> _Gradient | None:
    scaled = _only(list(readers))
    if scaled is None or scaled.target is not _aten.mul.Tensor:
        return None
    scale = scaled.args[1]
    scattered = _only(list(scaled.users))
    if scattered is None or scattered.target is not _aten.scatter_add.default or scale is softmax:
        return None
    if scattered.args[:3] != (scaled, 1, label) or scattered.args[3].target is not _aten.neg.default:
        return None
    node = _only(list(scattered.users))
    if scattered.args[3].args[0] is not scale or node is None or node.target is not _aten.mm.default:
        return None
    return _Gradient(scale, node) if node.args == (scattered, weight) else None


def _ranks(readers: set[fx.Node]) -> _Ranks | None:
    """As `pfl_mobile.programs.tasks` counts: ``clamp((masked - masked[label]) * 1e30, 0, 1).sum(-1)``."""
    node = _only(list(readers))
    if node is not None and node.target is _aten.reshape.default:
        node = _only(list(node.users))
    if (
        node is None
        or node.target is not _aten.add.Tensor
        or node.args[1].op != "get_attr"
        or len(node.users) != 2
    ):
        return None
    mask = node.args[1]
    own, apart = _only(_users(node, _aten.gather.default)), _only(_users(node, _aten.sub.Tensor))
    if own is None or apart is None or apart.args != (node, own) or len(own.users) != 1:
        return None
    if (
        tuple(mask.meta["val"].shape) != node.meta["val"].shape[-1:]
        or mask.meta["val"].dtype is not torch.float32
    ):
        return None
    steep = _only(list(apart.users))
    ends = _only(list(steep.users)) if steep is not None and steep.args == (apart, _STEEP) else None
    count = _only(list(ends.users)) if ends is not None and ends.args[1:] == (0.0, 1.0) else None
    if count is None or count.target is not _aten.sum.dim_IntList or list(count.args[1]) != [-1]:
        return None
    return _Ranks(mask, own.args[2], count)


class _Writer(GraphWriter):
    """Adds operators to a graph, on slices of its constants too."""

    def number(self, value: int) -> fx.Node:
        """A whole number as a constant, which may be another one in each slice."""
        name = f"_slice_at_{value}"
        if not hasattr(self.module, name):
            self.module.register_buffer(name, torch.tensor([value]))
        node = self.module.graph.get_attr(name)
        node.meta["val"] = torch.empty(1, dtype=torch.int64, device="meta")
        return node

    def rows(self, constant: fx.Node, start: int, end: int) -> fx.Node:
        """Some rows of a constant, as a constant of its own that lies in the same memory."""
        if constant.target is DEQUANTIZE:
            numbers, scales, bits = constant.args
            return self(DEQUANTIZE, self.rows(numbers, start, end), self.rows(scales, start, end), bits)
        whole = getattr(self.module, str(constant.target))
        name = f"{constant.target}_{start}_{end}"
        if not hasattr(self.module, name):
            self.module.register_buffer(name, whole.detach()[start:end])
        node = self.module.graph.get_attr(name)
        node.meta["val"] = torch.empty_like(whole[start:end], device="meta")
        return node


def _widths(rows: int, width: int, vocabulary: int) -> list[int]:
    """Where slices begin and end: as few as fit, of one size where the vocabulary can be divided so."""
    most = max(1, min(MOST_BYTES // (4 * rows), MOST_WEIGHT_BYTES // (4 * width)))
    count = -(-vocabulary // most)
    even = next(
        (n for n in range(count, 2 * count) if vocabulary % n == 0 and (vocabulary // n) % 16 == 0), None
    )
    size = vocabulary // even if even else -(-vocabulary // (16 * count)) * 16
    return [*range(0, vocabulary, size), vocabulary]


def _write(module: fx.GraphModule, loss: _Loss) -> None:
    """The cross entropy in slices, in the place of what is there."""
    call = _Writer(module)
    rows, width = loss.x.meta["val"].shape
    cuts = _widths(rows, width, loss.weight.meta["val"].shape[0])
    form = {"dtype": torch.float32}

    def logits(start: int, end: int) -> tuple[fx.Node, fx.Node]:
        """Of a slice, and the slice's rows of the layer."""
        weight = call.rows(loss.weight, start, end)
        given = (loss.x, weight) if loss.bias is None else (loss.x, weight, call.rows(loss.bias, start, end))
        return call(_aten.linear.default, *given), weight

    own = None
    with module.graph.inserting_before(loss.normalizer):
        most = call(_aten.full.default, [rows, 1], _LOWEST, **form)
        total = call(_aten.full.default, [rows, 1], 0.0, **form)
        summed = call(_aten.full.default, [rows, width], 0.0, **form) if loss.gradient is not None else None
        if loss.ranks is not None:
            own = call(_aten.full.default, [rows, 1], _LOWEST, **form)
            ranked = call(_aten.reshape.default, loss.ranks.label, [rows, 1])
        for start, end in pairwise(cuts):
            found, weight = logits(start, end)
            higher = call(_aten.maximum.default, most, call(_aten.amax.default, found, [1], True))
            powers = call(_aten.exp.default, call(_aten.sub.Tensor, found, higher))
            shrunk = call(_aten.exp.default, call(_aten.sub.Tensor, most, higher))
            of_slice = call(_aten.sum.dim_IntList, powers, [1], True)
            total = call(_aten.add.Tensor, call(_aten.mul.Tensor, total, shrunk), of_slice)
            if summed is not None:
                product = call(_aten.mm.default, powers, weight)
                summed = call(_aten.add.Tensor, call(_aten.mul.Tensor, summed, shrunk), product)
            if loss.ranks is not None:
                masked = call(_aten.add.Tensor, found, call.rows(loss.ranks.mask, start, end))
                place = call(_aten.sub.Tensor, ranked, call.number(start))
                within = call(_aten.clamp.default, place, 0, end - start - 1)
                inside = call(_aten.eq.Tensor, place, within)
                here = call(_aten.gather.default, masked, 1, within)
                own = call(_aten.where.self, inside, here, own)
            most = higher
        normalizer = call(_aten.add.Tensor, most, call(_aten.log.default, total))
        flat = call(_aten.reshape.default, loss.label, [rows])
        of_label = call(_aten.embedding.default, loss.weight, flat)
        if loss.ranks is not None:
            count = call(_aten.full.default, [rows], 0.0, **form)
            for start, end in pairwise(cuts):
                # again, as all logits would not fit: the same operators give the same bits
                masked = call(_aten.add.Tensor, logits(start, end)[0], call.rows(loss.ranks.mask, start, end))
                apart = call(_aten.mul.Tensor, call(_aten.sub.Tensor, masked, own), _STEEP)
                better = call(_aten.clamp.default, apart, 0.0, 1.0)
                count = call(_aten.add.Tensor, count, call(_aten.sum.dim_IntList, better, [-1]))
            shaped = call(_aten.reshape.default, count, list(loss.ranks.node.meta["val"].shape))
            loss.ranks.node.replace_all_uses_with(shaped)
    loss.normalizer.replace_all_uses_with(normalizer)
    with module.graph.inserting_before(loss.picked):
        picked = call(_aten.sum.dim_IntList, call(_aten.mul.Tensor, loss.x, of_label), [1], True)
        if loss.bias is not None:
            of_bias = call(_aten.gather.default, loss.bias, 0, flat)
            picked = call(_aten.add.Tensor, picked, call(_aten.reshape.default, of_bias, [rows, 1]))
    loss.picked.replace_all_uses_with(picked)
    if loss.gradient is not None:
        with module.graph.inserting_before(loss.gradient.node):
            mean = call(_aten.div.Tensor, summed, total)
            apart = call(_aten.sub.Tensor, mean, of_label)
            gradient = call(_aten.mul.Tensor, apart, loss.gradient.scale)
        loss.gradient.node.replace_all_uses_with(gradient)


def _layers(graph: fx.GraphModule) -> Iterator[fx.Node]:
    """Linear layers whose weight would be far larger as float32 than it is stored: an output layer where one row is
    asked for."""
    for node in graph.graph.nodes:
        if node.target is not _aten.linear.default or node.args[1].target is not DEQUANTIZE:
            continue
        x, weight, *bias = node.args
        known = all(b is None or b.op == "get_attr" for b in bias)
        if known and x.meta["val"].dim() == 2 and 4 * weight.meta["val"].numel() >= LARGE_LAYER_BYTES:
            yield node


def _write_layer(module: fx.GraphModule, node: fx.Node) -> None:
    """A linear layer in slices of its outputs, in the place of what is there."""
    call = _Writer(module)
    x, weight, bias = (*node.args, None)[:3]
    rows, width = x.meta["val"].shape
    with module.graph.inserting_before(node):
        found = []
        for start, end in pairwise(_widths(rows, width, weight.meta["val"].shape[0])):
            given = (x, call.rows(weight, start, end))
            more = () if bias is None else (call.rows(bias, start, end),)
            found.append(call(_aten.linear.default, *given, *more))
        node.replace_all_uses_with(call(_aten.cat.default, found, 1))


def in_slices(program: TracedProgram) -> TracedProgram:
    """The program with each of its large losses, and of its large layers of few bits, in slices; itself without such.

    Args:
        program: as it was traced, which stays as it is.
    """
    if next(_losses(program.graph), None) is None and next(_layers(program.graph), None) is None:
        return program
    module = copied(program.graph)
    for loss in list(_losses(module)):
        _write(module, loss)
    put_in_order(module)  # what slices read may have come after them
    module.graph.eliminate_dead_code()
    for node in list(_layers(module)):
        _write_layer(module, node)
    module.graph.eliminate_dead_code()
    for node in [n for n in module.graph.nodes if n.op == "get_attr" and not n.users]:
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    return replace(program, graph=module)
