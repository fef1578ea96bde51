"""Inputs of graphs with several lanes."""

from __future__ import annotations

import torch

from pfl_mobile.vectorized.compiled import Graph


def different(graph: Graph, lanes: int) -> dict[str, torch.Tensor]:
    """Inputs that differ from lane to lane."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: value.unsqueeze(0).expand(lanes, *value.shape).clone()
        if value.dtype == torch.int64
        else value + 0.3 * torch.randn(lanes, *value.shape, generator=generator)
        for name, value in graph.inputs.items()
    }
