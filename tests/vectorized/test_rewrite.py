"""Shorter forms of a step keep its values."""

from __future__ import annotations

import pytest
import torch

from pfl_mobile.vectorized.compiled import Graph, stacked
from pfl_mobile.vectorized.rewrite import add_bmm, channels_last, rewrite
from tests.vectorized.inputs import different


def test_rewriting_keeps_the_values(graph: Graph) -> None:
    many = stacked(graph, 3)
    inputs = list(different(graph, 3).values())
    before = many.module(*inputs)
    rewrite(many.module)
    many.module.recompile()
    targets = {n.target for n in many.module.graph.nodes}
    assert add_bmm in targets  # otherwise nothing was rewritten
    for value, wanted in zip(many.module(*inputs), before, strict=True):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_is_seen_by_convolutions(channels: int) -> None:
    weight = torch.randn(4, channels, 3, 3)
    turned = channels_last(weight)
    assert torch.equal(turned, weight)
    image = torch.randn(2, channels, 8, 8)
    out = torch.convolution(image, turned, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    assert out.is_contiguous(memory_format=torch.channels_last)
