"""Recurrent layers whose graph does not grow with time: GRU, LSTM and RNN, packed sequences among them.

PyTorch decomposes a recurrent layer into a copy of its cell for each step. Here what is sequential is one operator
forward and one backward, which targets lower to a loop of their engine (:func:`loop_of`). All else is outside of it,
as one large product for all steps: the projection of the inputs, and the gradients of the weights (as cuDNN does it:
Appleyard and others, "Optimizing Performance of Recurrent Neural Networks on GPUs", 2016). Backward is linear in the
gradients, and its factors do not depend on them, so they are computed for all steps beforehand.

Shapes: T steps, B rows, H hidden, P what goes from step to step (H, or ``proj_size``), G gates (4, 3 or 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

_aten = torch.ops.aten

#: A gate's input that makes it exactly 0 or 1.
_SHUT = 1e4

#: What a step makes of the state, the step's inputs and what is the same for all steps: new state, and results.
Step = Callable[[list[Tensor], list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]


@dataclass(frozen=True)
class Loop:
    """What a recurrent operator does: a step that is repeated along the first axis.

    The operator gives the last state, then the results of all steps, in the order of time.

    Attributes:
        step: of the loop, in operators of PyTorch.
        state: before the first step.
        steps: inputs with a first axis of T.
        fixed: inputs that are the same in every step.
        reverse: whether the loop starts at the end.
    """

    step: Step
    state: list[Any]
    steps: list[Any]
    fixed: list[Any]
    reverse: bool


def _without_none(*values: Any) -> list[Any]:
    return [value for value in values if value is not None]


def _lstm_step(projects: bool) -> Step:
    def step(
        state: list[Tensor], given: list[Tensor], fixed: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        h, c = state
        weights = list(fixed)
        projection = weights.pop() if projects else None
        hidden = F.linear(h, *weights)
        i, f, g, o = (given[0] + hidden).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        if projection is not None:
            h = F.linear(h, projection)
        return [h, c], [h, c, hidden]

    return step


def _lstm_back(projects: bool) -> Step:
    def step(
        state: list[Tensor], given: list[Tensor], fixed: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        dh, dc = state
        dy, to_cell, forget, factors = given
        dh = dh + dy
        dm = dh @ fixed[1] if projects else dh
        dc = dc + dm * to_cell
        gates = torch.cat([dc, dc, dc, dm], -1) * factors
        return [gates @ fixed[0], dc * forget], [dh, gates]

    return step


def _gru_step(
    state: list[Tensor], given: list[Tensor], fixed: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    hidden = F.linear(state[0], *fixed)
    xr, xz, xn = given[0].chunk(3, -1)
    hr, hz, hn = hidden.chunk(3, -1)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    h = n + torch.sigmoid(xz + hz) * (state[0] - n)
    return [h], [h, hidden]


def _gru_back(
    state: list[Tensor], given: list[Tensor], fixed: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    dy, keep, factors = given
    dh = state[0] + dy
    gates = torch.cat([dh, dh, dh], -1) * factors
    return [dh * keep + gates @ fixed[0]], [dh, gates]


def _tanh_step(
    state: list[Tensor], given: list[Tensor], fixed: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    h = torch.tanh(given[0] + F.linear(state[0], *fixed))
    return [h], [h]


def _relu_step(
    state: list[Tensor], given: list[Tensor], fixed: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    h = torch.relu(given[0] + F.linear(state[0], *fixed))
    return [h], [h]


def _rnn_back(
    state: list[Tensor], given: list[Tensor], fixed: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    dy, factors = given
    gates = (state[0] + dy) * factors
    return [gates @ fixed[0]], [gates]


_LSTM = {projects: (_lstm_step(projects), _lstm_back(projects)) for projects in (False, True)}


def _lstm_loop(x: Any, h: Any, c: Any, weight: Any, bias: Any, projection: Any, reverse: bool) -> Loop:
    step = _LSTM[projection is not None][0]
    return Loop(step, [h, c], [x], _without_none(weight, bias, projection), reverse)


def _lstm_back_loop(
    dy: Any,
    dh: Any,
    dc: Any,
    to_cell: Any,
    forget: Any,
    factors: Any,
    weight: Any,
    projection: Any,
    reverse: bool,
) -> Loop:
    step = _LSTM[projection is not None][1]
    steps = [dy, to_cell, forget, factors]
    return Loop(step, [dh, dc], steps, _without_none(weight, projection), not reverse)


def _gru_loop(x: Any, h: Any, weight: Any, bias: Any, reverse: bool) -> Loop:
    return Loop(_gru_step, [h], [x], _without_none(weight, bias), reverse)


def _gru_back_loop(dy: Any, dh: Any, keep: Any, factors: Any, weight: Any, reverse: bool) -> Loop:
    return Loop(_gru_back, [dh], [dy, keep, factors], [weight], not reverse)


def _rnn_loop(x: Any, h: Any, weight: Any, bias: Any, relu: bool, reverse: bool) -> Loop:
    return Loop(_relu_step if relu else _tanh_step, [h], [x], _without_none(weight, bias), reverse)


def _rnn_back_loop(dy: Any, dh: Any, factors: Any, weight: Any, reverse: bool) -> Loop:
    return Loop(_rnn_back, [dh], [dy, factors], [weight], not reverse)


def run(loop: Loop) -> tuple[Tensor, ...]:
    """The loop in PyTorch, step by step."""
    state, order = loop.state, range(loop.steps[0].shape[0])
    kept: list[list[Tensor]] = []
    for place in reversed(order) if loop.reverse else order:
        state, results = loop.step(state, [x[place] for x in loop.steps], loop.fixed)
        kept.append(results)
    if loop.reverse:
        kept.reverse()
    # neither may be another result's memory
    return (*(s.clone() for s in state), *(torch.stack(column) for column in zip(*kept, strict=True)))


#: The operators of this module, and the loop of each by its arguments.
LOOPS: dict[Any, Callable[..., Loop]] = {}


def _operator(schema: str, loop: Callable[..., Loop]) -> Any:
    """Register an operator that runs a loop; on tensors without values it runs one step."""
    name = schema.partition("(")[0]

    def kernel(*args: Any) -> tuple[Tensor, ...]:
        return run(loop(*args))

    def shapes(*args: Any) -> tuple[Tensor, ...]:
        whole = loop(*args)
        state, results = whole.step(whole.state, [x[0] for x in whole.steps], whole.fixed)
        length = whole.steps[0].shape[0]
        return (
            *(s.new_empty(s.shape) for s in state),
            *(r.new_empty((length, *r.shape)) for r in results),
        )

    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_LIBRARY.ns}::{name}", shapes, lib=_LIBRARY)
    operator = getattr(getattr(torch.ops, _LIBRARY.ns), name).default
    LOOPS[operator] = loop
    return operator


_LIBRARY = torch.library.Library("pfl_mobile", "DEF")
_lstm_forward = _operator(
    "lstm_forward(Tensor x, Tensor h, Tensor c, Tensor weight, Tensor? bias, Tensor? projection, bool reverse)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _lstm_loop,
)
_lstm_backward = _operator(
    "lstm_backward(Tensor dy, Tensor dh, Tensor dc, Tensor to_cell, Tensor forget, Tensor factors, Tensor weight,"
    " Tensor? projection, bool reverse) -> (Tensor, Tensor, Tensor, Tensor)",
    _lstm_back_loop,
)
_gru_forward = _operator(
    "gru_forward(Tensor x, Tensor h, Tensor weight, Tensor? bias, bool reverse) -> (Tensor, Tensor, Tensor)",
    _gru_loop,
)
_gru_backward = _operator(
    "gru_backward(Tensor dy, Tensor dh, Tensor keep, Tensor factors, Tensor weight, bool reverse)"
    " -> (Tensor, Tensor, Tensor)",
    _gru_back_loop,
)
_rnn_forward = _operator(
    "rnn_forward(Tensor x, Tensor h, Tensor weight, Tensor? bias, bool relu, bool reverse) -> (Tensor, Tensor)",
    _rnn_loop,
)
_rnn_backward = _operator(
    "rnn_backward(Tensor dy, Tensor dh, Tensor factors, Tensor weight, bool reverse) -> (Tensor, Tensor)",
    _rnn_back_loop,
)


#: The layer that each operator is a part of, as its users call it.
LAYERS: dict[Any, str] = {
    **dict.fromkeys((_lstm_forward, _lstm_backward), "nn.LSTM"),
    **dict.fromkeys((_gru_forward, _gru_backward), "nn.GRU"),
    **dict.fromkeys((_rnn_forward, _rnn_backward), "nn.RNN"),
}


def loop_of(target: Any, args: Sequence[Any]) -> Loop | None:
    """The loop of an operator with these arguments, tensors or nodes of a graph; None for other operators."""
    found = LOOPS.get(target)
    return None if found is None else found(*args)


def _before(states: Tensor, first: Tensor, reverse: bool) -> Tensor:
    """The state before each step [T, B, P], from those after it."""
    if reverse:
        return torch.cat([states[1:], first.unsqueeze(0)])
    return torch.cat([first.unsqueeze(0), states[:-1]])


def _product(grads: Tensor, values: Tensor) -> Tensor:
    """The gradient of a weight [O, I] by those of what it gave [T, B, O]: the sum over all rows of all steps."""
    return grads.flatten(0, 1).t() @ values.flatten(0, 1)


class _Lstm(torch.autograd.Function):
    """One direction of an LSTM layer (Hochreiter and Schmidhuber 1997; with projection Sak and others 2014)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        projection: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        last, cell, h, c, hidden = _lstm_forward(x, h0, c0, weight, bias, projection, reverse)
        ctx.save_for_backward(x, h0, c0, weight, projection, h, c, hidden)
        ctx.reverse = reverse
        return h, last, cell

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h0, c0, weight, projection, h, c, hidden = ctx.saved_tensors
        i, f, g, o = (x + hidden).chunk(4, -1)
        i, f, g, o, shown = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o), torch.tanh(c)
        factors = torch.cat(
            [
                g * i * (1 - i),
                _before(c, c0, ctx.reverse) * f * (1 - f),
                i * (1 - g * g),
                shown * o * (1 - o),
            ],
            -1,
        )
        dh0, dc0, dh, gates = _lstm_backward(
            grads[0], grads[1], grads[2], o * (1 - shown * shown), f, factors, weight, projection, ctx.reverse
        )
        needs = ctx.needs_input_grad
        return (
            gates,
            dh0,
            dc0,
            _product(gates, _before(h, h0, ctx.reverse)) if needs[3] else None,
            gates.sum((0, 1)) if needs[4] else None,
            _product(dh, o * shown) if needs[5] else None,
            None,
        )


class _Gru(torch.autograd.Function):
    """One direction of a GRU layer (Cho and others 2014), with the reset after the product, as PyTorch has it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h0: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        last, h, hidden = _gru_forward(x, h0, weight, bias, reverse)
        ctx.save_for_backward(x, h0, weight, h, hidden)
        ctx.reverse = reverse
        return h, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h0, weight, h, hidden = ctx.saved_tensors
        xr, xz, xn = x.chunk(3, -1)
        hr, hz, hn = hidden.chunk(3, -1)
        r, z, before = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz), _before(h, h0, ctx.reverse)
        n = torch.tanh(xn + r * hn)
        new = (1 - z) * (1 - n * n)
        factors = torch.cat([new * hn * r * (1 - r), (before - n) * z * (1 - z), new * r], -1)
        dh0, dh, gates = _gru_backward(grads[0], grads[1], z, factors, weight, ctx.reverse)
        needs = ctx.needs_input_grad
        return (
            torch.cat([gates[..., : 2 * z.shape[-1]], dh * new], -1) if needs[0] else None,
            dh0,
            _product(gates, before) if needs[2] else None,
            gates.sum((0, 1)) if needs[3] else None,
            None,
        )


class _Rnn(torch.autograd.Function):
    """One direction of an Elman layer (1990)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h0: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        last, h = _rnn_forward(x, h0, weight, bias, relu, reverse)
        ctx.save_for_backward(h0, weight, h)
        ctx.relu, ctx.reverse = relu, reverse
        return h, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h0, weight, h = ctx.saved_tensors
        factors = (h > 0).to(h.dtype) if ctx.relu else 1 - h * h
        dh0, gates = _rnn_backward(grads[0], grads[1], factors, weight, ctx.reverse)
        needs = ctx.needs_input_grad
        return (
            gates,
            dh0,
            _product(gates, _before(h, h0, ctx.reverse)) if needs[2] else None,
            gates.sum((0, 1)) if needs[3] else None,
            None,
            None,
        )


class _Permuted(torch.autograd.Function):
    """Rows in another order, which is its own inverse."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return torch.index_select(rows, 0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.index_select(grads[0], 0, ctx.saved_tensors[0]), None


@dataclass(frozen=True)
class Padded:
    """A packed sequence whose rows keep their padding: what stands for the ``batch_sizes`` of PyTorch's.

    Attributes:
        lengths: int64 [B], of each row, 1 or more.
        steps: T.
    """

    lengths: Tensor
    steps: int

    @property
    def rows(self) -> int:
        """B."""
        return int(self.lengths.shape[0])

    def inside(self) -> Tensor:
        """Which steps of which rows are no padding, bool [T, B, 1]."""
        return (torch.arange(self.steps).unsqueeze(1) < self.lengths).unsqueeze(-1)

    def turned(self, x: Tensor) -> Tensor:
        """Each row [T, B, *] backwards; its padding stays behind it."""
        place = torch.arange(self.steps).unsqueeze(1)
        back = self.lengths - 1 - place
        order = torch.where(back >= 0, back, place) * self.rows + torch.arange(self.rows)
        flat: Tensor = _Permuted.apply(x.flatten(0, 1), order.reshape(-1))
        return flat.reshape(x.shape)

    def at_end(self, x: Tensor) -> Tensor:
        """What each row has [T, B, P] at its last step [B, P]."""
        last = (self.lengths - 1).reshape(1, -1, 1).expand(1, self.rows, x.shape[-1])
        return torch.gather(x, 0, last).squeeze(0)


#: Of the tensors that stand for ``batch_sizes``.
_PADDED = "_pfl_padded"


def _padded(batch_sizes: Any) -> Padded | None:
    found: Padded | None = getattr(batch_sizes, _PADDED, None)
    return found


def _pack(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:  # noqa: A002
    """All rows with their padding, as what PyTorch gives has a shape that depends on the lengths."""
    x = input.transpose(0, 1) if batch_first else input
    sizes = torch.full((x.shape[0],), x.shape[1])
    setattr(sizes, _PADDED, Padded(lengths.clamp(min=1), x.shape[0]))
    return x.flatten(0, 1), sizes


class AtLeastOneStep(TorchFunctionMode):
    """Packs rows of length 0 as rows of length 1, as programs do: a device's batch has such rows, of weight 0, where
    examples are few, and PyTorch packs none."""

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch._VF._pack_padded_sequence:
            args = (args[0], args[1].clamp(min=1), *args[2:])
        return func(*args, **(kwargs or {}))


def _first_size(sizes: Tensor, index: Any) -> int | None:
    """Recurrent layers ask how many rows there are."""
    padded = _padded(sizes)
    return padded.rows if padded is not None and index is not Ellipsis and index == 0 else None


def _unpack(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor] | None:
    padded = _padded(batch_sizes)
    if padded is None:
        return None
    x = data.reshape(padded.steps, padded.rows, *data.shape[1:])
    inside = padded.inside().reshape(padded.steps, padded.rows, *[1] * (x.dim() - 2))
    x = torch.where(inside, x, torch.full([], padding_value, dtype=x.dtype))
    more = total_length - padded.steps
    if more > 0:
        x = torch.cat([x, torch.full((more, *x.shape[1:]), padding_value, dtype=x.dtype)])
    return x.transpose(0, 1) if batch_first else x, padded.lengths


#: One direction: inputs projected [T, B, G H], first states, the other parameters, and whether it runs backwards;
#: gives the states of all steps and the last ones.
_Direction = Callable[[Tensor, list[Tensor], Sequence[Tensor | None], bool], tuple[Tensor, list[Tensor]]]


def _lstm_direction(
    x: Tensor, states: list[Tensor], weights: Sequence[Tensor | None], reverse: bool
) -> tuple[Tensor, list[Tensor]]:
    h, *last = _Lstm.apply(x, *states, *weights, reverse)
    return h, last


def _gru_direction(
    x: Tensor, states: list[Tensor], weights: Sequence[Tensor | None], reverse: bool
) -> tuple[Tensor, list[Tensor]]:
    h, *last = _Gru.apply(x, *states, *weights[:2], reverse)
    return h, last


def _rnn_direction(relu: bool) -> _Direction:
    def direction(
        x: Tensor, states: list[Tensor], weights: Sequence[Tensor | None], reverse: bool
    ) -> tuple[Tensor, list[Tensor]]:
        h, *last = _Rnn.apply(x, *states, *weights[:2], relu, reverse)
        return h, last

    return direction


def _closed(x: Tensor, inside: Tensor, gates: int) -> Tensor:
    """Inputs of an LSTM that in the padding keep the cell as it is, and show nothing of it."""
    if gates != 4:
        return x
    row = torch.tensor([-_SHUT, _SHUT, 0.0, -_SHUT], dtype=x.dtype).repeat_interleave(x.shape[-1] // 4)
    return torch.where(inside, x, row)


def _packed_direction(
    one: _Direction,
    x: Tensor,
    states: list[Tensor],
    weights: Sequence[Tensor | None],
    reverse: bool,
    padded: Padded,
    gates: int,
) -> tuple[Tensor, list[Tensor]]:
    """A direction over rows of several lengths: what it does after their ends is not seen."""
    turned = padded.turned(x) if reverse else x
    h, last = one(_closed(turned, padded.inside(), gates), states, weights, False)
    last[0] = padded.at_end(h)
    return padded.turned(h) if reverse else h, last


def _parts(params: Sequence[Tensor], biases: bool, count: int) -> Iterator[list[Tensor | None]]:
    """Input weight, hidden weight, their biases and the projection of each layer and direction."""
    size = len(params) // count
    for start in range(0, len(params), size):
        rest: list[Tensor | None] = list(params[start + 2 : start + size])
        found = rest if biases else [None, None, *rest]
        yield [*params[start : start + 2], *found, *[None] * (3 - len(found))]


def _layers(
    one: _Direction,
    gates: int,
    x: Tensor,
    padded: Padded | None,
    first: Sequence[Tensor],
    params: Sequence[Tensor],
    biases: bool,
    layers: int,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """All layers over x [T, B, I] from first states [layers * directions, B, *]; states of the last, last states."""
    directions = 2 if bidirectional else 1
    ends: list[list[Tensor]] = []
    parts = _parts(params, biases, layers * directions)
    for layer in range(layers):
        sides = []
        for side in range(directions):
            w_in, w_hidden, b_in, b_hidden, projection = next(parts)
            assert w_in is not None
            states = [s[layer * directions + side] for s in first]
            # flat, or rows that lie otherwise in memory would take a copy of the weight for each step
            given = F.linear(x.flatten(0, 1), w_in, b_in).unflatten(0, x.shape[:2])
            weights = (w_hidden, b_hidden, projection)
            if padded is None:
                h, last = one(given, states, weights, side == 1)
            else:
                h, last = _packed_direction(one, given, states, weights, side == 1, padded, gates)
            sides.append(h)
            ends.append(last)
        x = sides[0] if directions == 1 else torch.cat(sides, -1)
    return (x, *(torch.stack(column) for column in zip(*ends, strict=True)))


def _form(one: _Direction, gates: int) -> Callable[..., tuple[Tensor, ...] | None]:
    """PyTorch's function of a kind of layer, of rows and of packed rows."""

    def form(x: Tensor, *rest: Any) -> tuple[Tensor, ...] | None:
        is_packed = isinstance(rest[2], list | tuple)
        if is_packed:
            sizes, first, params, biases, layers, dropout, training, bidirectional = rest
            padded, batch_first = _padded(sizes), False
            if padded is None:
                return None
            x = x.reshape(padded.steps, padded.rows, -1)
        else:
            first, params, biases, layers, dropout, training, bidirectional, batch_first = rest
            padded = None
        if training and dropout:
            return None  # the trace refuses what is drawn
        states = list(first) if isinstance(first, list | tuple) else [first]
        if batch_first:
            x = x.transpose(0, 1)
        h, *last = _layers(one, gates, x, padded, states, params, biases, layers, bidirectional)
        if batch_first:
            h = h.transpose(0, 1)
        return (h.flatten(0, 1) if is_packed else h, *last)

    return form


FORMS: dict[Any, Callable[..., Any]] = {
    torch.lstm: _form(_lstm_direction, 4),
    torch.gru: _form(_gru_direction, 3),
    torch.rnn_tanh: _form(_rnn_direction(relu=False), 1),
    torch.rnn_relu: _form(_rnn_direction(relu=True), 1),
    torch._VF._pack_padded_sequence: _pack,
    torch._VF._pad_packed_sequence: _unpack,
    Tensor.__getitem__: _first_size,
}
