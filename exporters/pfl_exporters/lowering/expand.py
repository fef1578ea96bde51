"""Operators written in other operators, for the targets that lack them or have them wrong.

A form is a function of PyTorch that computes what an operator computes, in operators that every target has right. It is
chosen by node, as it may depend on which arguments are constants, traced once and put in the place of the node.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pfl_mobile.programs.closed_forms import decompositions
from pfl_mobile.programs.forms.recurrences import LOOPS, run

from .graphs import constant_weight, traced_alone
from .names import TRACED_AS, traced_as

_aten = torch.ops.aten

#: Computes what an operator computes from its arguments.
Form = Callable[..., Any]
#: The form of a node; None where its operator is right as it is.
Choice = Callable[[fx.Node], "Form | None"]


def expand(graph: fx.GraphModule, choices: Mapping[Any, Choice]) -> None:
    """Replace operators by their forms, in place.

    Args:
        graph: each node's ``meta["val"]`` says shape and dtype (see `pfl_mobile.programs.simplify.annotate`).
        choices: by operator.
    """
    traced: dict[Any, fx.GraphModule] = {}
    for node in list(graph.graph.nodes):
        choice = choices.get(node.target) if node.op == "call_function" else None
        form = None if choice is None else choice(node)
        if form is not None:
            _replace(graph, node, form, traced)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def unroll(graph: fx.GraphModule) -> None:
    """Replace recurrent operators by all their steps, in place."""
    forms = {kind: lambda *args, loop=loop: run(loop(*args)) for kind, loop in LOOPS.items()}
    expand(graph, {kind: lambda node: forms[node.target] for kind in LOOPS})


def _replace(graph: fx.GraphModule, node: fx.Node, form: Form, traced: dict[Any, fx.GraphModule]) -> None:
    """Put a form in the place of a node; what was traced for an equal node is used again."""
    sources = node.all_input_nodes
    kinds = [source.meta["val"] for source in sources]
    # the same form for tensors of the same kind with the same other arguments
    others = fx.node.map_arg((node.args, dict(node.kwargs)), sources.index)
    key = (form, str(others), tuple((tuple(kind.shape), kind.dtype) for kind in kinds))
    if key not in traced:
        traced[key] = traced_alone(node, form, decompositions())
    inner = traced[key]
    known: dict[fx.Node, Any] = {}
    of_inputs = iter(sources)
    with graph.graph.inserting_before(node):
        for step in inner.graph.nodes:
            if step.op == "placeholder":
                known[step] = next(of_inputs)
            elif step.op == "get_attr":
                value = getattr(inner, step.target)
                known[step] = graph.graph.get_attr(_held(graph, value))
                known[step].meta["val"] = value
            elif step.op == "output":
                _give(graph, node, fx.node.map_arg(step.args[0], known.__getitem__))
            else:
                known[step] = copied = graph.graph.node_copy(step, known.__getitem__)
                copied.meta[TRACED_AS] = traced_as(node)
                if (
                    copied.target is _aten.view.default
                ):  # how the arguments lie in memory is another matter there
                    copied.target = _aten.reshape.default


def _held(graph: fx.GraphModule, value: Tensor) -> str:
    """The name of a form's constant, which equal nodes share."""
    for number in itertools.count():
        name = f"_form_{number}"
        held = getattr(graph, name, None)
        if held is None:
            graph.register_buffer(name, value)
        if held is None or held is value:
            return name
    raise AssertionError


def _give(graph: fx.GraphModule, node: fx.Node, result: Any) -> None:
    """Put results in the place of a node: its own, or one by one where it has several."""
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            if user.target is not operator.getitem:
                raise TypeError(f"{node.target} has several results, and {user.target} takes them all")
            user.replace_all_uses_with(result[user.args[1]])
            graph.graph.erase_node(user)
    graph.graph.erase_node(node)


def layer_norm(
    x: Tensor, normalized: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm, its mean and its inverse deviation, from means (Ba, Kiros and Hinton 2016)."""
    dims = list(range(-len(normalized), 0))
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    scale = inverse_root((centred * centred).mean(dims, keepdim=True) + eps)
    out = centred * scale
    if weight is not None:
        out = out * weight
    if bias is not None:
        out = out + bias
    return out, mean, scale


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    count: int,
    channels: int,
    space: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm, its means and its inverse deviations, from means (Wu and He 2018).

    Args:
        x: [B, C, *space].
        weight: [C].
        bias: [C].
        count: B.
        channels: C.
        space: product of the other dimensions.
        groups: of channels.
        eps: added to the variance.
    """
    flat = x.reshape(count, groups, channels // groups * space)
    mean = flat.mean(2, keepdim=True)
    centred = flat - mean
    scale = inverse_root((centred * centred).mean(2, keepdim=True) + eps)
    out = (centred * scale).reshape(x.shape)
    shape = [1, channels] + [1] * (x.dim() - 2)
    if weight is not None:
        out = out * weight.reshape(shape)
    if bias is not None:
        out = out + bias.reshape(shape)
    return out, mean.reshape(count, groups), scale.reshape(count, groups)


def with_alpha(operator_: Any) -> Form:
    """A sum or difference whose second operand has a factor."""

    def form(x: Tensor, y: Any, *, alpha: float = 1) -> Any:
        return operator_(x, y * alpha)

    return form


def tanh_gelu(x: Tensor, *, approximate: str = "tanh") -> Tensor:  # noqa: ARG001
    """GELU by a tangent (Hendrycks and Gimpel 2016)."""
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1.0 + torch.tanh(inner))


def elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """ELU (Clevert and others 2016), and SELU by its scales."""
    below = expm1(x.clamp(max=0.0) * input_scale) * (alpha * scale)
    return torch.where(x > 0, x * scale, below)


def reciprocal(x: Tensor) -> Tensor:
    """1 / x as a quotient."""
    return torch.ones([1] * x.dim(), dtype=x.dtype) / x


def inverse_root(x: Tensor) -> Tensor:
    """1 / sqrt(x) as a quotient."""
    return reciprocal(torch.sqrt(x))


def log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:  # noqa: ARG001
    """Logarithms of a softmax, without one of a number that became 0."""
    centred = x - x.amax(dim, keepdim=True)
    return centred - torch.log(torch.exp(centred).sum(dim, keepdim=True))


def log1p(x: Tensor) -> Tensor:
    """log(1 + x), right for small x too: what 1 + x lost is divided out (Kahan, as in Higham 2002, section 1.14)."""
    whole = 1.0 + x
    lost = whole - 1.0
    none = lost == 0.0
    return torch.where(none, x, torch.log(whole) * (x / torch.where(none, torch.ones_like(x), lost)))


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, right for small x too: 2 t / (1 - t) with t = tanh(x / 2), where that is better."""
    half = torch.tanh(x.clamp(-1.0, 1.0) * 0.5)
    near = 2.0 * half / (1.0 - half)
    return torch.where(x.abs() < 1.0, near, torch.exp(x) - 1.0)


def whole_clamp(x: Tensor, least: int | None = None, most: int | None = None) -> Tensor:
    """A clamp of whole numbers, by comparisons."""
    if least is not None:
        x = torch.where(x < least, torch.full_like(x, least), x)
    if most is not None:
        x = torch.where(x > most, torch.full_like(x, most), x)
    return x


def hardtanh(x: Tensor, least: float = -1.0, most: float = 1.0) -> Tensor:
    """A clamp by numbers with a point."""
    return x.clamp(float(least), float(most))


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution as matrix products of slices, for kernels that are computed: frameworks of phones take constant
    ones only, or have no dilation for others.

    Args:
        x: [B, C, *space].
        weight: [O, C / groups, *kernel]; transposed [C, O / groups, *kernel].
        bias: [O].
        stride: of each dimension of space; the following likewise.
        padding: zeros at both sides.
        dilation: between the entries of the kernel.
        transposed: whether it is the gradient of a convolution by its input.
        output_padding: of a transposed one, what the output has more at its ends.
        groups: of channels.
    """
    space = weight.dim() - 2
    stride, padding, dilation = (
        list(v) * space if len(v) == 1 else list(v) for v in (stride, padding, dilation)
    )
    if transposed:
        more = list(output_padding) * space if len(output_padding) == 1 else list(output_padding)
        x = _spread(x, stride)
        ends = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
        x = _pad(x, [(e, e + m) for e, m in zip(ends, more, strict=True)])
        per_group = weight.unflatten(0, (groups, -1)).transpose(1, 2)
        weight = per_group.flatten(0, 1).flip(list(range(2, 2 + space)))
        stride = [1] * space
    else:
        x = _pad(x, [(p, p) for p in padding])
    parts = [
        _products(xs, ws, stride, dilation)
        for xs, ws in zip(x.chunk(groups, 1), weight.chunk(groups, 0), strict=True)
    ]
    out = parts[0] if groups == 1 else torch.cat(parts, 1)
    return out if bias is None else out + bias.reshape([1, -1] + [1] * space)


def _spread(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Zeros between the entries, ``stride - 1`` of them."""
    for dim, step in enumerate(stride, start=2):
        if step > 1:
            size = x.shape[dim]
            zeros = x.new_zeros([*x.shape[: dim + 1], step - 1, *x.shape[dim + 1 :]])
            x = torch.cat([x.unsqueeze(dim + 1), zeros], dim + 1).flatten(dim, dim + 1)
            x = x.narrow(dim, 0, (size - 1) * step + 1)
    return x


def _pad(x: Tensor, ends: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros at both ends of each dimension of space; negative numbers cut off."""
    for dim, (before, after) in enumerate(ends, start=2):
        cut = max(-before, 0), max(-after, 0)
        if cut != (0, 0):
            x = x.narrow(dim, cut[0], x.shape[dim] - sum(cut))
    grown = [(max(before, 0), max(after, 0)) for before, after in ends]
    if any(a or b for a, b in grown):
        x = F.pad(x, list(itertools.chain.from_iterable(reversed(grown))))
    return x


def _products(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """One group of a convolution without padding: x [B, C, *space], weight [O, C, *kernel]."""
    batch, channels = x.shape[:2]
    kernel = list(weight.shape[2:])
    out = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    if math.prod(kernel) <= math.prod(out):
        # for each entry of the kernel, the inputs that it meets: [B, C, K, L]
        met = [_window(x, p, stride, dilation, out, of_kernel=True) for p in _positions(kernel)]
        columns = torch.stack([m.reshape(batch, channels, -1) for m in met], 2)
        rows = weight.reshape(1, weight.shape[0], -1)
        flat = torch.matmul(rows, columns.reshape(batch, channels * len(met), -1))
        return flat.reshape(batch, -1, *out)
    # a kernel as large as the input (a gradient by a kernel): for each output, the inputs that it sees
    seen = [_window(x, p, stride, dilation, kernel, of_kernel=False) for p in _positions(out)]
    rows = torch.stack([s.reshape(batch, -1) for s in seen], 1)  # [B, L, C * K]
    flat = torch.matmul(rows, weight.reshape(weight.shape[0], -1).t())
    return flat.transpose(1, 2).reshape(batch, -1, *out)


def _positions(size: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(n) for n in size))


def _window(
    x: Tensor,
    position: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
    *,
    of_kernel: bool,
) -> Tensor:
    """Entries of x that an entry of the kernel meets, or that an output sees."""
    for dim, (at, s, d, n) in enumerate(zip(position, stride, dilation, size, strict=True), start=2):
        start, step = (at * d, s) if of_kernel else (at * s, d)
        x = _aten.slice.Tensor(x, dim, start, start + (n - 1) * step + 1, step)
    return x


def with_constant_weight(node: fx.Node) -> bool:
    """Whether the weight of a product or convolution is a constant of the graph."""
    return constant_weight(node.args[1])
