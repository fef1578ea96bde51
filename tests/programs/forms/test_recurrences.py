"""Recurrent layers in closed form equal PyTorch's, and their graph does not grow with time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pfl_mobile.programs.closed_forms import ClosedForms
from pfl_mobile.programs.forms.recurrences import AtLeastOneStep
from pfl_mobile.programs.trace import TracedProgram, trace_function

KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *args, **options: nn.RNN(*args, nonlinearity="relu", **options),
}


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for part in value for t in flat(part)]


def both(layer: nn.Module, leaves: list[Tensor], run: Callable[[], Any]) -> None:
    """The same outputs and gradients with and without the closed forms."""
    found = []
    for forms in (False, True):
        if forms:
            with ClosedForms():
                outputs = flat(run())
        else:
            outputs = flat(run())
        generator = torch.Generator().manual_seed(5)
        loss = sum(
            (torch.randn(y.shape, generator=generator, dtype=y.dtype) * y).sum()
            for y in outputs
            if y.is_floating_point()
        )
        assert isinstance(loss, Tensor)
        found.append([*outputs, *torch.autograd.grad(loss, [*leaves, *layer.parameters()])])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
    st.booleans(),
    st.integers(1, 4),
)
def test_equals_pytorch(
    kind: str,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    bias: bool,
    proj_size: int,
    given_state: bool,
    steps: int,
) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "num_layers": layers,
        "bidirectional": bidirectional,
        "batch_first": batch_first,
        "bias": bias,
    }
    if kind == "lstm":
        options["proj_size"] = proj_size
    layer = KINDS[kind](2, 3, **options).double()
    x = torch.randn((2, steps, 2) if batch_first else (steps, 2, 2), dtype=torch.float64, requires_grad=True)
    first: list[Tensor] = []
    if given_state:
        sizes = [proj_size or 3, 3] if kind == "lstm" else [3]
        rows = layers * (2 if bidirectional else 1)
        first = [torch.randn(rows, 2, n, dtype=torch.float64, requires_grad=True) for n in sizes]
    state = None if not first else tuple(first) if kind == "lstm" else first[0]
    both(layer, [x, *first], lambda: layer(x, state))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.sampled_from([None, 5, 7]),
    st.sampled_from([0.0, -3.0]),
    st.booleans(),
)
def test_packed_rows_equal_pytorch(
    kind: str,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    ordered: bool,
    lengths: list[int],
    total: int | None,
    fill: float,
    given_state: bool,
) -> None:
    torch.manual_seed(0)
    if total is None:
        lengths = [*lengths[1:], 5]  # what PyTorch gives is as long as the longest row
    if ordered:
        lengths = sorted(lengths, reverse=True)
    layer = KINDS[kind](2, 3, num_layers=layers, bidirectional=bidirectional).double()
    rows = len(lengths)
    x = torch.randn((rows, 5, 2) if batch_first else (5, rows, 2), dtype=torch.float64, requires_grad=True)
    first = [
        torch.randn(layers * (2 if bidirectional else 1), rows, 3, dtype=torch.float64, requires_grad=True)
        for _ in range((2 if kind == "lstm" else 1) if given_state else 0)
    ]
    state = None if not first else tuple(first) if kind == "lstm" else first[0]

    def run() -> Any:
        packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first, enforce_sorted=ordered)
        out, last = layer(packed, state)
        return (*pad_packed_sequence(out, batch_first, fill, total), last)

    both(layer, [x, *first], run)


def program(layer: nn.RNNBase, steps: int, lengths: Tensor | None = None) -> TracedProgram:
    """Loss and gradients of all that a layer has, by the sum of its squared outputs."""

    def run(batch: Any, values: Any) -> dict[str, Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        given = batch["x"]
        if lengths is not None:
            given = pack_padded_sequence(given, batch["lengths"], enforce_sorted=False)
        out = torch.func.functional_call(layer, leaves, (given,))[0]
        loss = ((out if lengths is None else pad_packed_sequence(out)[0]) ** 2).sum()
        return {
            "loss": loss.detach(),
            **dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)),
        }

    batch = {"x": torch.randn(steps, 2, 3)} | ({} if lengths is None else {"lengths": lengths})
    return trace_function("gradients", run, batch, dict(layer.named_parameters()), tuple(batch))


@pytest.mark.parametrize("kind", KINDS)
def test_graph_does_not_grow_with_time(kind: str) -> None:
    layer = KINDS[kind](3, 4, bidirectional=True)
    lengths = torch.tensor([2, 3])
    for given_lengths in (None, lengths):
        short, long = (program(layer, steps, given_lengths) for steps in (4, 60))
        assert len(short.graph.graph.nodes) == len(long.graph.graph.nodes) < 300


@pytest.mark.parametrize("kind", KINDS)
def test_constants_do_not_grow_with_time(kind: str) -> None:
    layer = KINDS[kind](16, 12, batch_first=True).requires_grad_(requires_grad=False)

    def numbers(steps: int) -> int:
        made = trace_function(
            "f", lambda batch, _: {"out": layer(batch["x"])[0]}, {"x": torch.randn(2, steps, 16)}, {}, ("x",)
        )
        constants = [str(node.target) for node in made.graph.graph.nodes if node.op == "get_attr"]
        return sum(getattr(made.graph, name).numel() for name in constants)

    assert numbers(2) == numbers(40)


def test_rows_of_padding_have_one_step() -> None:
    layer, x = nn.GRU(2, 3, batch_first=True), torch.randn(3, 4, 2)

    def run() -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, torch.tensor([0, 4, 2]), True, enforce_sorted=False)
        out, last = layer(packed)
        return pad_packed_sequence(out, True)[0], last

    with pytest.raises(RuntimeError, match="greater than 0"):
        run()
    with AtLeastOneStep():
        want = run()
    with ClosedForms():
        got = run()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(want[0][0, 1:], torch.zeros(3, 3))
